"""cpu_kernels.c, compiled for a model's sizes at first use, as autograd functions; cpu.py has a slower path without it.

It needs GCC (cc or gcc; CC names another) on Linux. What is built lies in build/, and is built again where the source,
the compiler's command or the kind of CPU is another one.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE, FOLDER = Path(__file__).with_name("cpu_kernels.c"), Path(__file__).with_name("build")
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC"]


@functools.cache
def library(T, C, D, H, F, dtype=torch.float32):
    """What is built for T steps of C channels, D features in H heads, F in the feed-forward and numbers of `dtype`.

    None where that fails, or is neither float32 nor bfloat16.
    """
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc")), None)
    if not compiler or platform.system() != "Linux" or dtype not in (torch.float32, torch.bfloat16):
        return None
    sizes = {"T": T, "C": C, "D": D, "K": D // H, "F": F, "BF16": int(dtype == torch.bfloat16)}
    command = [*compiler.split(), *FLAGS, *(f"-D{name}={size}" for name, size in sizes.items())]
    path = FOLDER / f"{fingerprint(command)}.so"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if not path.exists():
            build(command, path)
        return ctypes.CDLL(str(path))
    return None


def fingerprint(command):
    """Of all that the result of compiling depends on."""
    kind = platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        kind = next(line for line in lines if line.startswith(("flags", "Features")))
    return hashlib.sha256(SOURCE.read_bytes() + repr((command, kind)).encode()).hexdigest()[:16]


def build(command, path):
    """Compile to `path`, whole or not at all: others may want it at the same time. Raises subprocess.SubprocessError.

    Linked without a library for OpenMP: that of PyTorch is there, and two would fight over the cores.
    """
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        made = Path(folder) / "made.o", Path(folder) / "made.so"
        for line in ([*command, "-c", SOURCE, "-o", made[0]], [command[0], "-shared", made[0], "-o", made[1]]):
            subprocess.run(line, check=True, capture_output=True, timeout=120)
        os.replace(made[1], path)


class Attention(torch.autograd.Function):
    """Multi-head softmax(q k^T) v of each of B windows, M queries to T keys: (B, M, D). Scores are not scaled.

    q (B, M, D) and kv (B, T, 2D), or q None and kv (B, T, 3D): the queries of all steps stand before keys and values.
    Both contiguous and of one type. `built` is the library() for these sizes and that type.
    """

    @staticmethod
    def forward(ctx, q, kv, H, built):
        parts = Parts(q, kv, H)
        out = kv.new_empty(parts.shape)
        kept = torch.empty(
            len(kv), H, 2, parts.shape[1]
        )  # of each query the highest score, 1 / the sum of exponentials
        built.forward(*parts.pointers, pointer(out), pointer(kept), *parts.sizes)
        ctx.save_for_backward(q, kv, out, kept)
        ctx.H, ctx.built = H, built
        return out

    @staticmethod
    def backward(ctx, g):
        q, kv, out, kept = ctx.saved_tensors
        dq, dkv, g = None if q is None else torch.empty_like(q), torch.empty_like(kv), g.contiguous()
        parts, (into_q, _, into_k, into_v, _) = Parts(q, kv, ctx.H), Parts(dq, dkv, ctx.H).pointers
        ctx.built.backward(*parts.pointers, *map(pointer, (out, kept, g)), into_q, into_k, into_v, *parts.sizes)
        return dq, dkv, None, None


class Embed(torch.autograd.Function):
    """models.Embedding: x (B, T, C) float32 -> (B, T, D) of `dtype`. There is no gradient for x."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta, position, dtype, built):
        wanted = len(position), weight.shape[1]
        if x.shape[1:] != wanted or x.dtype != torch.float32:  # the kernel would read beyond
            raise ValueError(f"windows of {tuple(x.shape[1:])}, {x.dtype} for an encoder of {wanted}, float32")
        given = [part.contiguous() for part in (x, weight, bias, gamma, beta, position)]
        out = torch.empty(*x.shape[:2], len(weight), dtype=dtype)
        built.embed_forward(*map(pointer, (*given, out)), ctypes.c_long(out.shape[:2].numel()), torch.get_num_threads())
        ctx.save_for_backward(*given)
        ctx.built = built
        return out

    @staticmethod
    def backward(ctx, dh):
        x, weight, _, _, _, position = given = ctx.saved_tensors
        (T, D), C, threads = position.shape, weight.shape[1], torch.get_num_threads()
        dh, sums = dh.contiguous(), torch.zeros(threads, T + C + 3, D)
        rows = ctypes.c_long(x.shape[:2].numel())
        ctx.built.embed_backward(*map(pointer, (dh, *given, sums)), rows, threads)
        d_position, d_weight, d_rest = sums.sum(0).split([T, C, 3])
        return None, d_weight.T, *d_rest, d_position, None, None


class Norm(torch.autograd.Function):
    """models.LayerNorm of z + residual + bias: (..., D) each, bias (D,); residual and bias may be None."""

    @staticmethod
    def forward(ctx, z, residual, bias, gamma, beta, built):
        given = [None if x is None else x.contiguous() for x in (z, residual, bias, gamma, beta)]
        n, keep, out = z.numel() // len(gamma), any(ctx.needs_input_grad), torch.empty_like(given[0])
        unit, scale = torch.empty_like(out) if keep else None, torch.empty(n)
        built.norm_forward(*map(pointer, (*given, out, unit, scale)), ctypes.c_long(n), torch.get_num_threads())
        ctx.save_for_backward(unit, scale, gamma)
        ctx.given, ctx.built = (residual is not None, bias is not None), built
        return out

    @staticmethod
    def backward(ctx, dy):
        unit, scale, gamma = ctx.saved_tensors
        threads = torch.get_num_threads()
        ds, sums = torch.empty_like(unit), torch.empty(threads, 3, len(gamma))
        given = dy.contiguous(), unit, scale, gamma, ds, sums
        ctx.built.norm_backward(*map(pointer, given), ctypes.c_long(len(scale)), threads)
        d_gamma, d_beta, d_bias = sums.sum(0)
        residual, bias = ctx.given
        return ds, ds if residual else None, d_bias if bias else None, d_gamma, d_beta, None


class Gelu(torch.autograd.Function):
    """The exact GELU of pre + bias: pre (..., F), bias (F,)."""

    @staticmethod
    def forward(ctx, pre, bias, built):
        pre, out, n = pre.contiguous(), torch.empty_like(pre), pre.numel() // len(bias)
        built.gelu_forward(*map(pointer, (pre, bias, out)), ctypes.c_long(n), torch.get_num_threads())
        ctx.save_for_backward(pre, bias)
        ctx.built = built
        return out

    @staticmethod
    def backward(ctx, dy):
        pre, bias = ctx.saved_tensors
        threads = torch.get_num_threads()
        dpre, sums = torch.empty_like(pre), torch.empty(threads, len(bias))
        given = dy.contiguous(), pre, bias, dpre, sums
        ctx.built.gelu_backward(*map(pointer, given), ctypes.c_long(pre.numel() // len(bias)), threads)
        return dpre, sums.sum(0), None


def pointer(tensor, offset=0):
    """Of something that the caller keeps a name for until the call is over: a pointer keeps nothing alive."""
    if tensor is None:
        return None
    return ctypes.c_void_p(tensor.data_ptr() + tensor.element_size() * offset)


class Parts:
    """Where queries, keys and values lie, as cpu_kernels.c wants to be told."""

    def __init__(self, q, kv, H):
        B, T, width = kv.shape
        D = width // (3 if q is None else 2)
        M = T if q is None else q.shape[1]
        if any(x is not None and (x.dtype != kv.dtype or not x.is_contiguous()) for x in (q, kv)) or M > T:
            raise ValueError("the kernels want contiguous tensors of one type and at most as many queries as keys")
        of_q = (pointer(kv), ctypes.c_long(width)) if q is None else (pointer(q), ctypes.c_long(D))
        first = D if q is None else 0  # of the keys, in a row
        self.pointers = *of_q, pointer(kv, first), pointer(kv, first + D), ctypes.c_long(width)
        self.shape, self.sizes = (B, M, D), (ctypes.c_long(B), H, M, torch.get_num_threads())
