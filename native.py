"""cpu_kernels.c, compiled for a model's sizes at first use, as autograd functions; cpu.py has a slower path without it.

It needs GCC (cc or gcc; CC names another) on Linux. What is built lies in build/, and is built again where the source,
the compiler's command or the kind of CPU is another one.
"""

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
from torch.autograd.function import once_differentiable

SOURCE, FOLDER = Path(__file__).with_name("cpu_kernels.c"), Path(__file__).with_name("build")
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC"]
STACK = 1 << 20  # bytes that a thread may need at most
FLOATS = {"dtype": torch.float32, "device": "cpu"}

why_not = {}  # what kept library() from building, by its arguments, for a message


class Built:
    """cpu_kernels.c compiled for T steps of C channels, D features in H heads, F in the feed-forward, and a type."""

    def __init__(self, path, T, C, D, H, F, dtype):
        self.library, self.dtype = ctypes.CDLL(str(path)), dtype
        self.T, self.C, self.D, self.H, self.F = T, C, D, H, F

    def call(self, name, *given):
        """One of its functions: tensors are handed over as pointers to their first number, whole numbers as long."""

        def converted(x):
            if isinstance(x, torch.Tensor):
                return ctypes.c_void_p(x.data_ptr())
            return None if x is None else ctypes.c_long(x)

        getattr(self.library, name)(*map(converted, given), ctypes.c_long(torch.get_num_threads()))

    def rows(self, x, width):
        """x (..., width) of the type that is built, checked."""
        return checked(x, self.dtype, (*x.shape[:-1], width))


def checked(x, dtype, shape):
    """x as it must lie in memory. Raises RuntimeError for another type or shape: C would read beyond."""
    if x.dtype != dtype or tuple(x.shape) != tuple(shape):
        given, wanted = (tuple(x.shape), x.dtype), (tuple(shape), dtype)
        raise RuntimeError(f"shape and type {given} where cpu_kernels.c was built for {wanted}")
    return x.contiguous()


@functools.cache
def library(T, C, D, H, F, dtype=torch.float32):
    """What is Built for these sizes and `dtype`, float32 or bfloat16. None where that fails: why_not says why."""
    sizes = (T, C, D, H, F, dtype)
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc")), None)
    if not compiler or platform.system() != "Linux":
        why_not[sizes] = "no GCC was found"
    elif dtype not in (torch.float32, torch.bfloat16) or 4 * (T + 36) * (5 * (D // H) + 35) > STACK:
        why_not[sizes] = "windows or heads of these sizes are too large for it"
    else:
        numbers = {"T": T, "C": C, "D": D, "K": D // H, "F": F, "BF16": int(dtype == torch.bfloat16)}
        command = [*compiler.split(), *FLAGS, *(f"-D{name}={number}" for name, number in numbers.items())]
        path = FOLDER / f"{fingerprint(command)}.so"
        try:
            if not path.exists():
                build(compiler.split(), command, path)
            return Built(path, *sizes)
        except (OSError, subprocess.SubprocessError) as error:
            told = (getattr(error, "stderr", None) or b"").decode(errors="replace").split("\n")
            why_not[sizes] = next((line for line in told if "error" in line), str(error))
    return None


def fingerprint(command):
    """Of the source, the command and the kind of CPU."""
    kind = platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            kind = next((line for line in lines if line.startswith(("flags", "Features"))), kind)
    except OSError:
        pass
    return hashlib.sha256(SOURCE.read_bytes() + repr((command, kind)).encode()).hexdigest()[:16]


def build(compiler, command, path):
    """Compile to `path`, whole or not at all: others may want it at the same time. Raises subprocess.SubprocessError.

    Linked without a library for OpenMP: that of PyTorch is there, and two would fight over the cores.
    """
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        made = Path(folder) / "made.o", Path(folder) / "made.so"
        for line in ([*command, "-c", SOURCE, "-o", made[0]], [*compiler, "-shared", made[0], "-o", made[1], "-lm"]):
            subprocess.run(line, check=True, capture_output=True, timeout=120)
        os.replace(made[1], path)


class Embed(torch.autograd.Function):
    """models.Embedding: x (B, T, C) float32 -> (B, T, D). There is no gradient for x."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta, position, built):
        T, C, D = built.T, built.C, built.D
        shapes = (len(x), T, C), (D, C), (D,), (D,), (D,), (T, D)
        given = (x, weight, bias, gamma, beta, position)
        given = [checked(part, torch.float32, shape) for part, shape in zip(given, shapes, strict=True)]
        out = torch.empty(len(x), T, D, dtype=built.dtype, device="cpu")
        built.call("embed_forward", *given, out, len(x) * T)
        ctx.save_for_backward(*given)
        ctx.built = built
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dh):
        given, built = ctx.saved_tensors, ctx.built
        sums = torch.zeros(torch.get_num_threads(), built.T + built.C + 3, built.D, **FLOATS)
        built.call("embed_backward", built.rows(dh, built.D), *given, sums, len(dh) * built.T)
        d_position, d_weight, d_rest = sums.sum(0).split([built.T, built.C, 3])
        return None, d_weight.T, *d_rest, d_position, None


class Attention(torch.autograd.Function):
    """Multi-head softmax(q k^T) v of each of B windows, M queries to T keys: (B, M, D). Scores are not scaled.

    q (B, M, D) and kv (B, T, 2D), or q None and kv (B, T, 3D): the queries of all steps stand before keys and values.
    """

    @staticmethod
    def forward(ctx, q, kv, built):
        B, T, D = len(kv), built.T, built.D
        kv = checked(kv, built.dtype, (B, T, 3 * D if q is None else 2 * D))
        q = q if q is None else checked(q, built.dtype, (B, min(q.shape[1], T), D))  # no more queries than keys
        M = T if q is None else q.shape[1]
        out = torch.empty(B, M, D, dtype=built.dtype, device="cpu")
        kept = torch.empty(B, built.H, 2, M, **FLOATS)  # a query's highest score, 1 / its sum of exponentials
        built.call("attend_forward", *lying(q, kv, D), out, kept, B, built.H, M)
        ctx.save_for_backward(q, kv, out, kept)
        ctx.built = built
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (q, kv, out, kept), built = ctx.saved_tensors, ctx.built
        dq, dkv, g = None if q is None else torch.empty_like(q), torch.empty_like(kv), built.rows(g, built.D)
        into_q, _, into_k, into_v, _ = lying(dq, dkv, built.D)
        sizes = len(kv), built.H, out.shape[1]
        built.call("attend_backward", *lying(q, kv, built.D), out, kept, g, into_q, into_k, into_v, *sizes)
        return dq, dkv, None


def lying(q, kv, D):
    """Where queries, keys and values lie: q, the width of its rows, k, v, the width of theirs."""
    width = kv.shape[2]
    if q is None:
        return kv, width, kv[..., D:], kv[..., 2 * D :], width
    return q, D, kv, kv[..., D:], width


class Norm(torch.autograd.Function):
    """models.LayerNorm of z + residual + bias: (..., D) each, bias (D,); residual may be None."""

    @staticmethod
    def forward(ctx, z, residual, bias, gamma, beta, built):
        D = built.D
        z, residual = built.rows(z, D), None if residual is None else checked(residual, z.dtype, z.shape)
        bias, gamma, beta = (checked(part, torch.float32, (D,)) for part in (bias, gamma, beta))
        out, unit, n = torch.empty_like(z), torch.empty_like(z), z.numel() // D
        scale = torch.empty(n, **FLOATS)
        built.call("norm_forward", z, residual, bias, gamma, beta, out, unit, scale, n)
        ctx.save_for_backward(unit, scale, gamma)
        ctx.residual, ctx.built = residual is not None, built
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (unit, scale, gamma), built = ctx.saved_tensors, ctx.built
        ds, sums = torch.empty_like(unit), torch.empty(torch.get_num_threads(), 3, built.D, **FLOATS)
        built.call("norm_backward", built.rows(dy, built.D), unit, scale, gamma, ds, sums, len(scale))
        d_gamma, d_beta, d_bias = sums.sum(0)
        return ds, ds if ctx.residual else None, d_bias, d_gamma, d_beta, None


class Gelu(torch.autograd.Function):
    """The exact GELU of pre + bias: pre (..., F), bias (F,)."""

    @staticmethod
    def forward(ctx, pre, bias, built):
        pre, bias = built.rows(pre, built.F), checked(bias, torch.float32, (built.F,))
        out = torch.empty_like(pre)
        built.call("gelu_forward", pre, bias, out, pre.numel() // built.F)
        ctx.save_for_backward(pre, bias)
        ctx.built = built
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (pre, bias), built = ctx.saved_tensors, ctx.built
        dpre, sums = torch.empty_like(pre), torch.empty(torch.get_num_threads(), built.F, **FLOATS)
        built.call("gelu_backward", built.rows(dy, built.F), pre, bias, dpre, sums, pre.numel() // built.F)
        return dpre, sums.sum(0), None
