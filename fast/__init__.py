"""The same numbers faster: an engine for every device and precision, as plain.py has one.

The door is engine(); nothing else in here is imported from outside (but by tests and benchmarks).
"""

import contextlib
import ctypes

import torch

import utils
from bookkeeping.commands import UserError
from fast.exact import Exact, Recorded
from fast.parallel import Processes
from plain import Plain


def engine(gpu=None, deterministic=False, *, encoder=None, training=False, precision=None, on_gpu="fp32", plain=False):
    """What a script computes with, on the device of -g, or on each process's own under torchrun.

    encoder is the masked model's configuration where one is used, or trained (training); precision that of --precision,
    whose default on a GPU is on_gpu (fp32 on a CPU, where the plain path is taken, and for bf16 on a GPU without);
    plain is --plain. Sets PyTorch's own precision. Raises UserError for a device or a precision that is not to be had.
    """
    if deterministic:
        utils.set_deterministic()
    team, shortcuts = Processes(gpu), encoder is None or (encoder["n_layers"] == 1 and encoder["emb_norm"])
    on_cpu = team.device.type == "cpu"
    bf16 = has_amx() if on_cpu else torch.cuda.get_device_capability(team.device) >= (8, 0)
    precision = precision or ("fp32" if on_cpu or plain or not shortcuts or on_gpu == "bf16" and not bf16 else on_gpu)
    if precision == "bf16" and not bf16:
        which = "on a CPU needs one with AMX" if on_cpu else "needs a GPU of compute capability 8.0"
        raise UserError(f"--precision bf16 {which}, which this one is not; leave it out")
    if on_cpu:
        keep_freed_memory()
    else:  # with bf16 too: what it leaves in float32 is small
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    if plain or not shortcuts:
        if precision == "bf16":
            needs = "an encoder of one pass (n_layers 1) with emb_norm and no --plain"
            raise UserError(f"--precision bf16 is for the fast path, {needs}; leave it out")
        why = "" if plain else "plain path: the shortcuts need an encoder of one pass (n_layers 1) with emb_norm"
        return Plain(team, precision) if plain else Recorded(team, precision, why)
    return Exact(team, precision) if on_cpu or encoder is None else on_a_gpu(team, precision, encoder, training)


def has_amx():
    """Whether this CPU multiplies bfloat16 matrices in tiles (AMX). Without, such products may take minutes."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def on_a_gpu(team, precision, encoder, training):
    """The engine of the fused kernels, or where they don't run the one of PyTorch's own, with a note."""
    try:
        from fast import gpu  # which needs Triton (PyTorch for CUDA brings it), and Triton gcc

        engine = gpu.Gpu(team, precision)
        if gpu.fit(engine, encoder, training):
            return engine
        why = "the kernels of fast/gpu.py need more shared memory than this GPU has"
    except Exception as error:  # whatever it is: a missing module, compiler or driver, a folder it cannot write
        why = f"Triton is not installed or cannot build ({type(error).__name__})"
    return Exact(team, precision, f"slower path: {why}, so PyTorch's own do its work")


def keep_freed_memory():
    """Have glibc keep freed memory for the next step instead of returning it (a third of a step's time on a CPU).

    A step allocates and frees the same large blocks again and again; by default each comes fresh from the system,
    which fills it with zeros page by page. Does nothing where the C library is another one.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
