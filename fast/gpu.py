"""The fast path on a CUDA GPU: the losses of models.py, with what stands between the matrix products fused (Triton).

The network is small: D is 72, so a LayerNorm, a bias's gradient or a softmax does little arithmetic on much memory, and
in PyTorch's own kernels, made for wide rows, these took more than half of a step. Here each of them is one pass
(kernels.py), its backward recomputes most of what the forward could have stored, and every bias's gradient comes out
of the pass that has its terms in registers anyway. The large matrix products stay PyTorch's. All sums are float32,
whatever the activations are; partial sums are written and added in a fixed order, so that the same step gives the same
bits.

The shortcuts of exact.py hold here too: queries only of the chosen steps while the masked loss is alone, one query a
window in the contrastive head, both views in one batch up to BatchNorm. tests/test_gpu.py compares with models.py.

Axes as in models.py; n rows are steps of windows, B * T of them or B * M.
"""

import contextlib
import math
from concurrent.futures import ThreadPoolExecutor

import torch
import triton

import augment
import models
from fast import exact, kernels

TILES = ((64, 3), (32, 1), (16, 1))  # most queries at a time, and a pipeline's stages, largest first: see Attend.tile
MULTIPROCESSORS = 132  # of an H100: the kernels that sum over rows have some programs for each
ROWS = 16  # rows of a tile where it does not matter much


def width(D):
    """Columns of a tile that holds rows of D: Triton wants a power of two."""
    return triton.next_power_of_2(D)


def dot_precision():
    """How Triton multiplies float32 matrices: as PyTorch is told to (bfloat16 does not care).

    Three TF32 products give float32's accuracy (1e-6) on the matrix units, which float32 itself has none of. But the
    parts that they split numbers into lie in shared memory: with small tiles it is float32's own multiplication.
    """
    if Attend.tile != TILES[0]:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def add_up(parts):
    """The sum over the first axis of float32 parts (n, ...): what each program of a kernel left of a gradient."""
    out = torch.empty(parts.shape[1:], device=parts.device)
    R, W, warps = (512, 8, 8) if len(parts) > 256 else (64, 32, 4)  # as measured on an H100
    kernels.add_up[(triton.cdiv(out.numel(), W),)](parts, out, len(parts), out.numel(), R, W, num_warps=warps)
    return out


def weight_gradient(dy, x):
    """dy^T x, float32, of dy (n, A) and x (n, B), n large: in up to 64 parts at once, which are then added.

    The result is small, so that one product would keep few of the GPU's multiprocessors busy.
    """
    parts = math.gcd(len(x), 64)
    dy, x = dy.unflatten(0, (parts, -1)).transpose(1, 2), x.unflatten(0, (parts, -1))
    return add_up(torch.bmm(dy, x) if x.dtype == torch.float32 else torch.bmm(dy, x, out_dtype=torch.float32))


# ------------------------------------------------------------------------- LayerNorm with a residual


def normalised(z, bias, residual, gamma, beta):
    """models.LayerNorm of z + bias + residual, rows (n, D), or of z alone: then both are None."""
    out, (n, D) = torch.empty_like(z), z.shape
    kernels.norm_forward[(triton.cdiv(n, ROWS),)](
        z, bias, residual, gamma, beta, out, n, D, residual is not None, ROWS, width(D)
    )
    return out


def normalised_backward(dy, z, bias, residual, gamma):
    """The gradient of z (and of the residual), and the sums that are those of gamma, beta and the bias."""
    ds, (n, D) = torch.empty_like(z), z.shape
    sums = torch.empty(16 * MULTIPROCESSORS, 3, D, device=z.device)
    kernels.norm_backward[(len(sums),)](
        dy.contiguous(), z, bias, residual, gamma, ds, sums, n, D, residual is not None, 4, width(D), num_warps=1
    )
    return ds, add_up(sums)


class ResidualNorm(torch.autograd.Function):
    """LayerNorm(x + Linear(x)): x (n, D) -> (n, D). Weights are float32, as everywhere here."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta):
        weight = weight.to(x.dtype)
        z = x @ weight.T
        ctx.save_for_backward(x, weight, z, bias, gamma)
        return normalised(z, bias, x, gamma, beta)

    @staticmethod
    def backward(ctx, dy):
        x, weight, z, bias, gamma = ctx.saved_tensors
        ds, (d_gamma, d_beta, d_bias) = normalised_backward(dy, z, bias, x, gamma)
        return torch.addmm(ds, ds, weight), weight_gradient(ds, x), d_bias, d_gamma, d_beta


# ---------------------------------------------------------------------------------- GELU, feed-forward


def gelu(pre, bias):
    """The exact GELU of pre + bias, rows (n, D)."""
    out, size = torch.empty_like(pre), pre.numel()
    kernels.gelu_forward[(triton.cdiv(size, 2048),)](pre, bias, out, size, pre.shape[1], 2048)
    return out


def gelu_backward(dy, pre, bias):
    """The gradient before the GELU, rows (n, D), and its sum over them, the bias's."""
    dpre, (n, D) = torch.empty_like(pre), pre.shape
    programs = 8 * MULTIPROCESSORS // triton.cdiv(D, 32)
    sums = torch.empty(programs, D, device=pre.device)
    kernels.gelu_backward[(programs, triton.cdiv(D, 32))](dy, pre, bias, dpre, sums, n, D, 32, 32)
    return dpre, add_up(sums)


class FeedForwardNorm(torch.autograd.Function):
    """LayerNorm(x + Linear2(GELU(Linear1(x)))): x (n, D) -> (n, D)."""

    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, gamma, beta):
        weight1, weight2 = weight1.to(x.dtype), weight2.to(x.dtype)
        pre = x @ weight1.T
        inner = gelu(pre, bias1)
        z = inner @ weight2.T
        ctx.save_for_backward(x, weight1, weight2, bias1, bias2, pre, inner, z, gamma)
        return normalised(z, bias2, x, gamma, beta)

    @staticmethod
    def backward(ctx, dy):
        x, weight1, weight2, bias1, bias2, pre, inner, z, gamma = ctx.saved_tensors
        ds, (d_gamma, d_beta, d_bias2) = normalised_backward(dy, z, bias2, x, gamma)
        d_weight2 = weight_gradient(ds, inner)
        dpre, d_bias1 = gelu_backward(ds @ weight2, pre, bias1)
        dx = ds.addmm_(dpre, weight1)  # in place: the residual's gradient, then the branch's
        return dx, weight_gradient(dpre, x), d_bias1, d_weight2, d_bias2, d_gamma, d_beta


class GeluNorm(torch.autograd.Function):
    """LayerNorm(GELU(Linear(x))): x (n, I) -> (n, D)."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta):
        weight = weight.to(x.dtype)
        pre = x @ weight.T
        inner = gelu(pre, bias)
        ctx.save_for_backward(x, weight, bias, pre, inner, gamma)
        return normalised(inner, None, None, gamma, beta)

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, pre, inner, gamma = ctx.saved_tensors
        ds, (d_gamma, d_beta, _) = normalised_backward(dy, inner, None, None, gamma)
        dpre, d_bias = gelu_backward(ds, pre, bias)
        return dpre @ weight, weight_gradient(dpre, x), d_bias, d_gamma, d_beta


# --------------------------------------------------------------------------------------- embedding


class Embed(torch.autograd.Function):
    """models.Embedding: x (B, T, C) float32 -> (B * T, D) of `dtype`. There is no gradient for x."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta, position, dtype):
        (B, T, C), D = x.shape, len(weight)
        if (T, C) != (len(position), weight.shape[1]):  # the kernel would read beyond
            raise ValueError(f"windows of {T} steps and {C} channels for {len(position)} and {weight.shape[1]}")
        x, out = x.contiguous(), torch.empty(B * T, D, device=x.device, dtype=dtype)
        norm, grid = torch.empty(B, T, 2, device=x.device), (B, triton.cdiv(T, ROWS))
        kernels.embed_forward[grid](
            x, weight, bias, gamma, beta, position, out, norm, T, C, D, ROWS, width(D), num_warps=2
        )
        ctx.save_for_backward(x, weight, bias, gamma, beta, position, norm)
        return out

    @staticmethod
    def backward(ctx, dh):
        x, weight, bias, gamma, beta, position, norm = ctx.saved_tensors
        B, T, C = x.shape
        D, R = len(weight), 1
        grid = (min(B, 16), triton.cdiv(T, R))
        d_position = torch.empty(grid[0], T, D, device=x.device)
        sums = torch.empty(grid[0], grid[1], C + 3, D, device=x.device)
        kernels.embed_backward[grid](
            dh.contiguous(),
            x,
            weight,
            bias,
            gamma,
            beta,
            position,
            norm,
            d_position,
            sums,
            B,
            T,
            C,
            D,
            width(C + 1),
            R,
            width(D),
            num_warps=1,
        )
        sums = add_up(sums.flatten(0, 1))
        return None, sums[:C].T, sums[C], sums[C + 1], sums[C + 2], add_up(d_position), None


# --------------------------------------------------------------------------------------- attention


class Attend(torch.autograd.Function):
    """Multi-head attention of some steps over all steps of their window: h (B * T, D) -> (B * M, D).

    rows (B * M,) are those of h that ask; None is all of them. weight (3, D, D) and bias (3, D) are the queries', keys'
    and values'; the key's bias adds the same to all of a row's scores, which softmax ignores.
    """

    tile = TILES[0]  # of all kernels whose shared memory is large; fit chooses

    @staticmethod
    def forward(ctx, h, rows, weight, bias, B, H):
        n, D = h.shape
        weight = weight.to(h.dtype).flatten(0, 1)  # (3D, D)
        bias = torch.stack([bias[0], torch.zeros_like(bias[1]), bias[2]]).to(h.dtype).flatten()
        if rows is None:
            asking, qkv = h, torch.addmm(bias, h, weight.T)
            q, kv = qkv[:, :D], qkv[:, D:]
        else:
            asking = h.index_select(0, rows)
            q, kv = torch.addmm(bias[:D], asking, weight[:D].T), torch.addmm(bias[D:], h, weight[D:].T)
        M, T, K = len(q) // B, n // B, D // H
        ctx.sizes = (K**-0.5, M, T, q.stride(0), kv.stride(0), H, K, width(T), max(16, width(K)), dot_precision())
        ctx.grid = (B * H,)
        out, logs = torch.empty(len(q), D, device=h.device, dtype=h.dtype), torch.empty(B, H, M, device=h.device)
        R, warps = (64, 4) if M > 32 else (32, 2)  # as measured on an H100
        R, stages = min(R, Attend.tile[0]), Attend.tile[1]
        kernels.attend_forward[ctx.grid](q, kv, out, logs, *ctx.sizes, R, num_warps=warps, num_stages=stages)
        ctx.save_for_backward(h, rows, asking, weight, q, kv, out, logs)
        return out

    @staticmethod
    def backward(ctx, da):
        h, rows, asking, weight, q, kv, out, logs = ctx.saved_tensors
        D = h.shape[1]
        d_bias = torch.empty(len(logs), 2 * D, device=h.device)
        if rows is None:
            dqkv = torch.empty(len(h), 3 * D, device=h.device, dtype=h.dtype)
            dq, dkv = dqkv[:, :D], dqkv[:, D:]
        else:
            dq, dkv = torch.empty_like(q), torch.empty_like(kv)
        R, stages = min(16 if h.dtype == torch.bfloat16 and rows is None else 32, Attend.tile[0]), Attend.tile[1]
        kernels.attend_backward[ctx.grid](
            q, kv, out, logs, da.contiguous(), dq, dkv, d_bias, *ctx.sizes, R, num_stages=stages
        )
        if rows is None:
            dh, d_weight = dqkv @ weight, weight_gradient(dqkv, h)
        else:
            dh, d_weight = dkv @ weight[D:], torch.cat([weight_gradient(dq, asking), weight_gradient(dkv, h)])
            dh.index_add_(0, rows, dq @ weight[:D])
        d_bias = add_up(d_bias).view(2, D)
        d_bias = torch.stack([d_bias[0], torch.zeros_like(d_bias[0]), d_bias[1]])
        return dh, None, d_weight.view(3, D, D), d_bias, None, None


class Branch(torch.autograd.Function):
    """Rows h (n, D), and those of them that `rows` (m,) chooses, each at most once."""

    @staticmethod
    def forward(ctx, h, rows):
        ctx.save_for_backward(rows)
        return h.view_as(h), h.index_select(0, rows)

    @staticmethod
    def backward(ctx, dh, d_chosen):
        """Added in place: dh comes from a single function, made for this."""
        return dh.index_add_(0, ctx.saved_tensors[0], d_chosen), None


# --------------------------------------------------------------------- class token of the contrastive head


class Pool(torch.autograd.Function):
    """Standardised tokens unit = (z - mean) / sd, weighted for each head by softmax(unit . query) and summed.

    A window's tokens are z = Linear(h) and the class token: h (B * T, D), token (P,), query (H, P) -> (B, H, P).
    """

    @staticmethod
    def forward(ctx, h, weight, bias, token, query, B, eps):
        (H, P), T = query.shape, len(h) // B
        weight, query = weight.to(h.dtype), query.contiguous()
        z = h @ weight.T  # (B * T, P)
        pooled, logs = torch.empty(B, H, P, device=h.device), torch.empty(B, H, device=h.device)
        sizes = (H, P, 16, width(P), max(16, width(H)), dot_precision())
        kernels.pool_forward[(B,)](z, bias, token, query, pooled, logs, T, eps, *sizes, num_warps=2)
        ctx.save_for_backward(h, weight, bias, token, z, query, pooled, logs)
        ctx.eps = eps
        return pooled

    @staticmethod
    def backward(ctx, d_pooled):
        h, weight, bias, token, z, query, pooled, logs = ctx.saved_tensors
        (B, H, P), R, L = pooled.shape, 4, 64
        T = len(h) // B
        shift = (pooled * d_pooled).sum(-1)
        dz, sums = torch.empty_like(z), torch.empty(B, triton.cdiv(T + 1, L), H + 2, P, device=h.device)
        kernels.pool_backward[(B, sums.shape[1])](
            z,
            bias,
            token,
            query,
            logs,
            d_pooled.contiguous(),
            shift,
            dz,
            sums,
            T,
            ctx.eps,
            H,
            P,
            R,
            L,
            width(P),
            num_warps=1,
        )
        sums = add_up(sums.flatten(0, 1))
        return dz @ weight, weight_gradient(dz, h), sums[H], sums[H + 1], sums[:H], None, None


# --------------------------------------------------------------------------------------------- NT-Xent


class NTXent(torch.autograd.Function):
    """models.nt_xent of z (2B, F), the two views' rows one after the other; no similarity is written to memory."""

    @staticmethod
    def forward(ctx, z, temperature):
        n, features = z.shape
        loss, logs = torch.empty(n, device=z.device), torch.empty(n, device=z.device)
        ctx.sizes = (n, temperature, features, 16, 2 * Attend.tile[0], max(16, width(features)))
        kernels.nt_xent_forward[(triton.cdiv(n, 16),)](z, loss, logs, *ctx.sizes, num_stages=Attend.tile[1])
        ctx.save_for_backward(z, logs)
        return loss.mean()

    @staticmethod
    def backward(ctx, scale):
        z, logs = ctx.saved_tensors
        dz = torch.empty_like(z)
        kernels.nt_xent_backward[(triton.cdiv(len(z), 16),)](z, logs, scale, dz, *ctx.sizes, num_stages=Attend.tile[1])
        return dz, None


# ------------------------------------------------------------------------------------------------- masking


def hide(x, masks):
    """augment.hide in one pass where no window is filled with random values; x (B, T, C)."""
    if masks.values.numel():
        return augment.hide(x, masks)
    (B, T, C), M = x.shape, masks.positions.shape[1]
    x, positions = x.contiguous(), masks.positions.contiguous()
    out = torch.empty_like(x)
    kernels.hide[(B,)](x, positions, masks.zeroed, out, M, T, C, width(M), width(T), width(C))
    return out


def add_spans(chosen, lengths, starts, M):
    """augment.add_spans with all rounds in one pass."""
    out, (n, T) = torch.empty_like(chosen), chosen.shape
    kernels.add_spans[(triton.cdiv(n, ROWS),)](chosen, lengths, starts, out, n, len(lengths), M, T, ROWS, width(T))
    return out


# ------------------------------------------------------------------------------------------ the engine


def representation(transformer, x, rows, dtype):
    """Windows (B, T, C) to representations (n, D): of the steps `rows` (B * M,) of all B * T, or, if None, of all."""
    embed, attn, ff = transformer.embed, transformer.attn, transformer.pwff
    norm1, norm2 = transformer.norm1, transformer.norm2
    h = Embed.apply(
        x, embed.lin.weight, embed.lin.bias, embed.norm.gamma, embed.norm.beta, embed.pos_embed.weight, dtype
    )  # (B * T, D)
    projections = attn.proj_q, attn.proj_k, attn.proj_v
    weight, bias = (torch.stack([getattr(p, name) for p in projections]) for name in ("weight", "bias"))
    a = Attend.apply(h, rows, weight, bias, len(x), attn.H)
    h = ResidualNorm.apply(a, transformer.proj.weight, transformer.proj.bias, norm1.gamma, norm1.beta)
    return FeedForwardNorm.apply(h, ff.fc1.weight, ff.fc1.bias, ff.fc2.weight, ff.fc2.bias, norm2.gamma, norm2.beta)


def class_output(head, h, B, keep):
    """exact.class_output with the tokens' part in one pass: h (B * T, D) -> (B, P) float32.

    Their LayerNorm is gamma * unit + beta: gamma goes into the query and into the value weights, beta adds the same to
    all of a head's scores, which softmax ignores, and a constant to its output, as the weights add up to 1.
    """
    patch, token, norm1, _, _, _ = head.parts()
    _, key = exact.class_query(head)  # (H, P)
    pooled = Pool.apply(h, patch.weight, patch.bias, token.flatten(), key * norm1.weight, B, norm1.eps)
    W_v = exact.value_weights(head)  # (H, K, P)
    values = torch.einsum("bhp,hkp->bhk", pooled, W_v * norm1.weight) + W_v @ norm1.bias
    return exact.after_attention(head, values.flatten(1), keep)


@contextlib.contextmanager
def compiled_together():
    """The kernels of the block are compiled, side by side, and not run: what it computes means nothing."""
    launch = triton.JITFunction.run
    one_thread = torch.autograd.set_multithreading_enabled(False)  # Triton's mode is that of the thread it is set in
    with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool), one_thread:
        triton.JITFunction.run = lambda self, *args, **how: launch(self, *args, **how | {"warmup": True})
        try:
            yield
        finally:
            triton.JITFunction.run = launch


def fit(engine, cfg, training):
    """Take the largest tiles that this GPU has the shared memory for; False where even the smallest don't fit.

    Found by running the kernels that will run, at the encoder's sizes (cfg) and in the engine's precision: attention's
    are the largest, in float32 140 KB where an H100 has 227 and a GeForce 99.
    """
    T, C, windows = cfg["seq_len"], cfg["feature_num"], 16
    x = torch.zeros(2 * windows, T, C, device=engine.device)
    model = models.MaskedModel(cfg).to(engine.device)
    head = models.Contrastive(cfg["hidden"]).to(engine.device)
    positions = torch.arange(augment.masked_steps(T, 0.15), device=engine.device).expand(2 * windows, -1)

    def step():
        if not training:
            engine.encoder(model.transformer)(x)
        for both in (False, True) if training else ():
            rebuilt, classes = engine.forward(model, head, x, positions, None, both)
            (rebuilt.sum() + (engine.contrast(head, classes) if both else 0)).backward()

    for Attend.tile in TILES:
        try:
            with compiled_together():
                step()
            step()
            return True
        except triton.runtime.errors.OutOfResources:
            continue
    return False


class Gpu(exact.Exact):
    """The engine of the fused kernels; in bfloat16 the activations between them are, and so the large products."""

    name = "gpu"
    hide, add_spans = staticmethod(hide), staticmethod(add_spans)

    def forward(self, model, head, x, positions, keep, both):
        n, T, _ = x.shape
        rows = (positions + T * torch.arange(n, device=x.device)[:, None]).flatten()  # (2B * M,)
        h = representation(model.transformer, x, None if both else rows, self.dtype or torch.float32)
        h, chosen = Branch.apply(h, rows) if both else (None, h)  # (2B * M, D)
        inner = GeluNorm.apply(chosen, model.linear.weight, model.linear.bias, model.norm.gamma, model.norm.beta)
        reconstruction = model.decoder(inner.float()).view(*positions.shape, -1)
        return reconstruction, class_output(head, h, n, keep).unflatten(0, (2, -1)) if both else None

    def contrast(self, head, classes):
        return NTXent.apply(exact.project(head, classes), 0.2)

    def encoder(self, transformer):
        if not exact.shortcuts_hold(transformer):
            return transformer
        return lambda x: representation(transformer, x, None, torch.float32).view(*x.shape[:2], -1)
