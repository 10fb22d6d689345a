"""The fast path on a CUDA GPU: the losses of models.py, with what stands between the matrix products fused (Triton).

The network is small: D is 72, so a LayerNorm, a bias's gradient or a softmax does little arithmetic on much memory, and
in PyTorch's own kernels, made for wide rows, these took more than half of a step. Here each of them is one pass
(kernels.py), its backward recomputes instead of reading what the forward would have stored, and every bias's gradient
comes out of the pass that has its terms in registers anyway. The large matrix products stay PyTorch's. All sums are
float32, whatever the activations are; partial sums are written and added in a fixed order, so that the same step gives
the same bits.

The shortcuts of fast.py hold here too: queries only of the chosen steps while the masked loss is alone, one query a
window in the contrastive head, both views in one batch up to BatchNorm. tests/test_gpu.py compares with models.py.

Axes as in models.py; n rows are steps of windows, B * T of them or B * M.
"""

import torch
import torch.nn.functional as F
import triton

import kernels
from augment import hide

PROGRAMS = 528  # of the kernels that sum over rows: four for each multiprocessor of an H100
ROWS = 16  # rows of a tile in them


def width(D):
    """Columns of a tile that holds rows of D: Triton wants a power of two."""
    return triton.next_power_of_2(D)


def dot_precision():
    """How Triton multiplies float32 matrices: as PyTorch is told to (bfloat16 does not care)."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def add_up(parts):
    """The sum over the first axis of float32 parts (n, ...): what each program of a kernel left of a gradient."""
    out = torch.empty(parts.shape[1:], device=parts.device)
    kernels.add_up[(triton.cdiv(out.numel(), 32),)](parts, out, len(parts), out.numel(), 256, 32, num_warps=8)
    return out


# ------------------------------------------------------------------------- LayerNorm with a residual


def normalised(z, residual, gamma, beta):
    """models.LayerNorm of z + residual, rows (n, D); residual may be None."""
    out, (n, D) = torch.empty_like(z), z.shape
    kernels.norm_forward[(triton.cdiv(n, ROWS),)](
        z, residual, gamma, beta, out, n, D, residual is not None, ROWS, width(D)
    )
    return out


def normalised_backward(dy, z, residual, gamma):
    """The gradient of z (and of the residual), and the sums that are those of gamma, beta and z's bias."""
    ds, (n, D) = torch.empty_like(z), z.shape
    sums = torch.empty(PROGRAMS, 3, D, device=z.device)
    kernels.norm_backward[(PROGRAMS,)](dy.contiguous(), z, residual, gamma, ds, sums, n, D, residual is not None, ROWS,
                               width(D))  # fmt: skip
    return ds, add_up(sums)


class ResidualNorm(torch.autograd.Function):
    """LayerNorm(x + Linear(x)): x (n, D) -> (n, D). Weights are float32, as everywhere here."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta):
        weight = weight.to(x.dtype)
        z = torch.addmm(bias.to(x.dtype), x, weight.T)
        ctx.save_for_backward(x, weight, z, gamma)
        return normalised(z, x, gamma, beta)

    @staticmethod
    def backward(ctx, dy):
        x, weight, z, gamma = ctx.saved_tensors
        ds, (d_gamma, d_beta, d_bias) = normalised_backward(dy, z, x, gamma)
        return torch.addmm(ds, ds, weight), (ds.T @ x).float(), d_bias, d_gamma, d_beta


# ---------------------------------------------------------------------------------- GELU, feed-forward


def before_gelu(dy, pre):
    """The gradient before the GELU, rows (n, D), and its sum over them, the bias's."""
    dpre, (n, D) = torch.empty_like(pre), pre.shape
    sums = torch.empty(PROGRAMS, D, device=pre.device)
    kernels.gelu_backward[(PROGRAMS,)](dy, pre, dpre, sums, n, D, ROWS, width(D))
    return dpre, add_up(sums)


class FeedForwardNorm(torch.autograd.Function):
    """LayerNorm(x + Linear2(GELU(Linear1(x)))): x (n, D) -> (n, D)."""

    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, gamma, beta):
        weight1, weight2 = weight1.to(x.dtype), weight2.to(x.dtype)
        pre = torch.addmm(bias1.to(x.dtype), x, weight1.T)
        inner = F.gelu(pre)
        z = torch.addmm(bias2.to(x.dtype), inner, weight2.T)
        ctx.save_for_backward(x, weight1, weight2, pre, inner, z, gamma)
        return normalised(z, x, gamma, beta)

    @staticmethod
    def backward(ctx, dy):
        x, weight1, weight2, pre, inner, z, gamma = ctx.saved_tensors
        ds, (d_gamma, d_beta, d_bias2) = normalised_backward(dy, z, x, gamma)
        d_weight2 = (ds.T @ inner).float()
        dpre, d_bias1 = before_gelu(ds @ weight2, pre)
        dx = ds.addmm_(dpre, weight1)  # in place: the residual's gradient, then the branch's
        return dx, (dpre.T @ x).float(), d_bias1, d_weight2, d_bias2, d_gamma, d_beta


class GeluNorm(torch.autograd.Function):
    """LayerNorm(GELU(Linear(x))): x (n, I) -> (n, D)."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta):
        weight = weight.to(x.dtype)
        pre = torch.addmm(bias.to(x.dtype), x, weight.T)
        inner = F.gelu(pre)
        ctx.save_for_backward(x, weight, pre, inner, gamma)
        return normalised(inner, None, gamma, beta)

    @staticmethod
    def backward(ctx, dy):
        x, weight, pre, inner, gamma = ctx.saved_tensors
        ds, (d_gamma, d_beta, _) = normalised_backward(dy, inner, None, gamma)
        dpre, d_bias = before_gelu(ds, pre)
        return dpre @ weight, (dpre.T @ x).float(), d_bias, d_gamma, d_beta


# --------------------------------------------------------------------------------------- embedding


class Embed(torch.autograd.Function):
    """models.Embedding: x (B, T, C) float32 -> (B * T, D) of `dtype`. There is no gradient for x."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta, position, dtype):
        B, T, C = x.shape
        D = len(weight)
        out = torch.empty(B * T, D, device=x.device, dtype=dtype)
        grid = (B, triton.cdiv(T, ROWS))
        kernels.embed_forward[grid](x, weight, bias, gamma, beta, position, out, T, C, D, ROWS, width(D), num_warps=2)
        ctx.save_for_backward(x, weight, bias, gamma, beta, position)
        return out

    @staticmethod
    def backward(ctx, dh):
        x, weight, bias, gamma, beta, position = ctx.saved_tensors
        B, T, C = x.shape
        D, R = len(weight), 2
        grid = (min(B, 16), triton.cdiv(T, R))
        d_position = torch.empty(grid[0], T, D, device=x.device)
        sums = torch.empty(grid[0], grid[1], C + 3, D, device=x.device)
        kernels.embed_backward[grid](dh.contiguous(), x, weight, bias, gamma, beta, position, d_position, sums, B, T, C,
                                     D, width(C), R, width(D), num_warps=1)  # fmt: skip
        sums = add_up(sums.flatten(0, 1))
        return None, sums[:C].T, sums[C], sums[C + 1], sums[C + 2], add_up(d_position), None


# --------------------------------------------------------------------------------------- attention


class Attend(torch.autograd.Function):
    """Multi-head attention of some steps over all steps of their window: h (B * T, D) -> (B * M, D).

    rows (B * M,) are those of h that ask; None is all of them. weight (3, D, D) and bias (3, D) are the queries', keys'
    and values'; the key's bias adds the same to all of a row's scores, which softmax ignores.
    """

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
        R, warps = (64, 4) if M > 32 else (32, 2)  # as measured on an H100
        ctx.sizes = (K**-0.5, M, T, q.stride(0), kv.stride(0), H, K, R, width(T), max(16, width(K)), dot_precision())
        ctx.grid, ctx.warps = (B * H,), warps
        out = torch.empty(len(q), D, device=h.device, dtype=h.dtype)
        kernels.attend_forward[ctx.grid](q, kv, out, *ctx.sizes, num_warps=warps)
        ctx.save_for_backward(h, rows, asking, weight, q, kv)
        return out

    @staticmethod
    def backward(ctx, da):
        h, rows, asking, weight, q, kv = ctx.saved_tensors
        D = h.shape[1]
        d_bias = torch.empty(ctx.grid[0] // ctx.sizes[5], 2 * D, device=h.device)
        if rows is None:
            dqkv = torch.empty(len(h), 3 * D, device=h.device, dtype=h.dtype)
            dq, dkv = dqkv[:, :D], dqkv[:, D:]
        else:
            dq, dkv = torch.empty_like(q), torch.empty_like(kv)
        kernels.attend_backward[ctx.grid](q, kv, da.contiguous(), dq, dkv, d_bias, *ctx.sizes, num_warps=ctx.warps)
        if rows is None:
            dh, d_weight = dqkv @ weight, dqkv.T @ h
        else:
            dh, d_weight = dkv @ weight[D:], torch.cat([dq.T @ asking, dkv.T @ h])
            dh.index_add_(0, rows, dq @ weight[:D])
        d_bias = add_up(d_bias).view(2, D)
        d_bias = torch.stack([d_bias[0], torch.zeros_like(d_bias[0]), d_bias[1]])
        return dh, None, d_weight.float().view(3, D, D), d_bias, None, None


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
    """Standardised tokens unit = (z - mean) / sd of z = Linear(h), each head's weighted by softmax(unit . query).

    h (B * T, D), query (H, P) -> sum of weights * unit (B, H, P), log of the sum of exp(unit . query) (B, H); float32.
    """

    @staticmethod
    def forward(ctx, h, weight, bias, query, B, eps):
        (H, P), T = query.shape, len(h) // B
        weight, query = weight.to(h.dtype), query.contiguous()
        z = torch.addmm(bias.to(h.dtype), h, weight.T)  # (B * T, P)
        pooled, logs = torch.empty(B, H, P, device=h.device), torch.empty(B, H, device=h.device)
        kernels.pool_forward[(B * H,)](z, query, pooled, logs, T, eps, H, P, 4, width(P), num_warps=1)
        ctx.save_for_backward(h, weight, z, query, pooled, logs)
        ctx.eps = eps
        return pooled, logs

    @staticmethod
    def backward(ctx, d_pooled, d_logs):
        h, weight, z, query, pooled, logs = ctx.saved_tensors
        (B, H, P), R, L = pooled.shape, 4, 64
        T = len(h) // B
        shift = d_logs - (pooled * d_pooled).sum(-1)
        dz, sums = torch.empty_like(z), torch.empty(B, triton.cdiv(T, L), H + 1, P, device=h.device)
        kernels.pool_backward[(B, sums.shape[1])](z, query, logs, d_pooled.contiguous(), shift, dz, sums, T, ctx.eps, H,
                                                  P, R, L, width(P), num_warps=1)  # fmt: skip
        sums = add_up(sums.flatten(0, 1))
        return dz @ weight, (dz.T @ h).float(), sums[H], sums[:H], None, None


# --------------------------------------------------------------------------------------------- NT-Xent


class NTXent(torch.autograd.Function):
    """models.nt_xent of unit rows z (2B, F), the two views' one after the other; no similarity is written to memory."""

    @staticmethod
    def forward(ctx, z, temperature):
        n, features = z.shape
        loss, logs = torch.empty(n, device=z.device), torch.empty(n, device=z.device)
        ctx.sizes = (n, temperature, features, 16, 64, max(16, width(features)))
        kernels.nt_xent_forward[(triton.cdiv(n, 16),)](z, loss, logs, *ctx.sizes)
        ctx.save_for_backward(z, logs)
        return loss.mean()

    @staticmethod
    def backward(ctx, scale):
        z, logs = ctx.saved_tensors
        dz = torch.empty_like(z)
        kernels.nt_xent_backward[(triton.cdiv(len(z), 16),)](z, logs, scale, dz, *ctx.sizes)
        return dz, None


# ------------------------------------------------------------------------------------------ the losses


def representation(transformer, x, rows, dtype):
    """Windows (B, T, C) to representations (n, D): of the steps `rows` (B * M,) of all B * T, or, if None, of all."""
    embed, attn, ff = transformer.embed, transformer.attn, transformer.pwff
    norm1, norm2 = transformer.norm1, transformer.norm2
    h = Embed.apply(x, embed.lin.weight, embed.lin.bias, embed.norm.gamma, embed.norm.beta, embed.pos_embed.weight,
                    dtype)  # (B * T, D)  # fmt: skip
    projections = attn.proj_q, attn.proj_k, attn.proj_v
    weight, bias = (torch.stack([getattr(p, name) for p in projections]) for name in ("weight", "bias"))
    a = Attend.apply(h, rows, weight, bias, len(x), attn.H)
    h = ResidualNorm.apply(a, transformer.proj.weight, transformer.proj.bias, norm1.gamma, norm1.beta)
    return FeedForwardNorm.apply(h, ff.fc1.weight, ff.fc1.bias, ff.fc2.weight, ff.fc2.bias, norm2.gamma,
                                 norm2.beta)  # fmt: skip


def class_output(head, h, B, keep):
    """fast.class_output with the tokens' part in one pass: h (B * T, D) -> (B, P) float32.

    Their LayerNorm is gamma * unit + beta: gamma goes into the query, beta and the class token are added to what was
    pooled, the latter with the weight that its score has beside all others.
    """
    patch, _, norm1, _, _, _ = head.parts()
    own, key = head.class_query()  # (P,), (H, P)
    pooled, logs = Pool.apply(h, patch.weight, patch.bias, key * norm1.weight, B, norm1.eps)
    share = torch.sigmoid(key @ own - (logs + key @ norm1.bias))[:, :, None]  # (B, H, 1)
    mixed = share * own + (1 - share) * (norm1.weight * pooled + norm1.bias)
    return head.after_class_query(mixed, keep)


def losses(model, head, views, masks, keep, both, gather=lambda classes: classes, dtype=torch.float32):
    """models.losses on a GPU: views (2, B, T, C) -> (masked, contrastive), contrastive 0 unless `both`.

    dtype is that of the activations between the kernels, and with it of the large matrix products.
    """
    x = views.flatten(0, 1)  # (2B, T, C)
    n, T, C = x.shape
    rows = (masks.positions + T * torch.arange(n, device=x.device)[:, None]).flatten()  # (2B * M,)
    h = representation(model.transformer, hide(x, masks), None if both else rows, dtype)
    h, chosen = Branch.apply(h, rows) if both else (None, h)  # (2B * M, D)
    inner = GeluNorm.apply(chosen, model.linear.weight, model.linear.bias, model.norm.gamma, model.norm.beta)
    masked = F.mse_loss(model.decoder(inner.float()), x.view(-1, C).index_select(0, rows))
    if not both:
        return masked, torch.zeros_like(masked)
    # both views together so far; from BatchNorm on, whose statistics are those of one view, each on its own
    classes = gather(class_output(head, h, n, keep).unflatten(0, (2, -1)))
    z = torch.cat([head.projection_head(view) for view in classes])
    return masked, NTXent.apply(F.normalize(z, dim=1, eps=1e-8), 0.2)
