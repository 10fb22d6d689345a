"""The same numbers faster: an engine for every device and precision, as plain.py has one.

The door is engine(); nothing else in here is imported from outside (but by tests and benchmarks).
"""

import contextlib
import ctypes
import functools

import torch

import utils
from bookkeeping.commands import UserError
from fast.exact import Exact
from fast.parallel import Processes
from plain import Plain


def engine(gpu=None, deterministic=False, *, encoder=None, precision=None, on_gpu="fp32", plain=False):
    """What a script computes with, on the device of -g, or on each process's own under torchrun.

    encoder is the masked model's configuration where one is trained or used; precision that of --precision, whose
    default on a GPU is on_gpu (fp32 on a CPU, and where the plain path is taken); plain is --plain. Sets PyTorch's own
    precision. Raises UserError for a device or a precision that is not to be had.
    """
    if deterministic:
        utils.set_deterministic()
    team, shortcuts = Processes(gpu), encoder is None or (encoder["n_layers"] == 1 and encoder["emb_norm"])
    on_cpu = team.device.type == "cpu"
    precision = precision or ("fp32" if on_cpu or plain or not shortcuts else on_gpu)
    if on_cpu:
        if precision == "bf16" and not has_amx():
            raise UserError("--precision bf16 on a CPU needs one with AMX, which this one is not; leave it out")
        keep_freed_memory()
    else:  # with bf16 too: what it leaves in float32 is small
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    if plain or not shortcuts:
        if precision == "bf16":
            needs = "an encoder of one pass (n_layers 1) with emb_norm and no --plain"
            raise UserError(f"--precision bf16 is for the fast path, {needs}; leave it out")
        why = "" if plain else "plain path: the shortcuts need an encoder of one pass (n_layers 1) with emb_norm"
        return Plain(team, precision, why)
    return Exact(team, precision) if on_cpu or encoder is None else on_a_gpu(team, precision)


def has_amx():
    """Whether this CPU multiplies bfloat16 matrices in tiles (AMX). Without, such products may take minutes."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def on_a_gpu(team, precision):
    """The engine of the fused kernels, or where Triton does not work the one of PyTorch's own, with a note."""
    if gpu := fused():
        return gpu.Gpu(team, precision)
    why = "Triton is not installed or cannot build, so PyTorch's own kernels do the work of fast/gpu.py"
    return Exact(team, precision, f"slower path: {why}")


@functools.cache
def fused():
    """The module gpu, or None without a Triton that can build a kernel (PyTorch for CUDA brings it; it needs gcc)."""
    try:
        from fast import gpu

        gpu.add_up(torch.ones(1, 1, device="cuda"))
    except Exception:  # whatever it is: a missing module, compiler or driver, a folder that cannot be written
        return None
    return gpu


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
