"""The fast path on a CPU: the same losses as models.losses, arranged so that the work is matrix products in the cache.

Beside the shortcuts of fast.py, which also explains them: everything that depends on the weights alone is folded
together once a step (encoder_weights, token_weights), a chunk of windows goes through all operations before the next
one does, attention keeps its features before its time steps, the order in which heads need no copy and a product with
heads of 18 features fills the vector registers, and softmax is left with one pass over the scores. tests/test_cpu.py
holds it against the plain functions.

With `dtype` bfloat16, on a CPU with AMX, what has many rows is made in it: the products of encoder and class token, and
attention. LayerNorms, the folding of weights and the losses stay in float32: PyTorch's LayerNorm takes two to three
times longer in bfloat16.

Axes as in models.py; N stands for B * H, a window's heads one after another.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from augment import hide, take_steps
from models import merge_heads, nt_xent, split_heads
from utils import UserError

CHUNK = 128  # windows that go through all operations together, for each thread: the larger, the fewer calls


def has_amx():
    """Whether this CPU multiplies bfloat16 matrices in tiles (AMX). Without, such products may take minutes."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def dtype_of(precision):
    """The type in which a CPU makes large products: bfloat16, or None for that of their inputs (tf32 is a GPU's)."""
    if precision != "bf16":
        return None
    if not has_amx():
        raise UserError("--precision bf16 on a CPU needs one with AMX, which this one is not; leave it out")
    return torch.bfloat16


def chunks(n):
    """Slices that cut n windows into pieces of CHUNK windows a thread."""
    size = CHUNK * torch.get_num_threads()
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


# ------------------------------------------------------------------------------------------------------ encoder


class EncoderWeights(NamedTuple):
    """The encoder's weights as its parts below use them."""

    before: tuple  # softmax; all_steps: q, k (D, D), v (H * V, D), biases (.., 1); chosen_steps: both in one, its bias;
    after: tuple  # it, to the first norm's input, with bias (D,): (D, D), of chosen_steps (D, H * D)
    form: torch.Tensor  # (C + 1, C + 1): the variance over a step's D features is x form x
    lift: torch.Tensor  # (C + 1, D): channels and 1 to features of mean 0, gamma applied
    position: torch.Tensor  # (T, D), beta added


def encoder_weights(transformer, all_steps):
    """Fold what depends on the weights alone, for `all_steps` or for the chosen ones.

    The residual around a projection is one matrix, a + W a = (I + W) a, which is applied to the value's bias at once:
    the attention's weights add up to 1. The scale goes to the queries, and the key's bias adds the same to all of a
    row's scores. For the few chosen steps a head's two matrices before softmax become one,
    q . k = h (W_q^T W_k) h, and so do the two after it: neither keys nor values are ever made. For the first LayerNorm
    see fast.embed.
    """
    embedding, attn, H = transformer.embed, transformer.attn, transformer.attn.H
    norm, D = embedding.norm, len(embedding.lin.weight)
    q, b_q = (part * (D // H) ** -0.5 for part in (attn.proj_q.weight, attn.proj_q.bias))
    k, v = attn.proj_k.weight, attn.proj_v.weight
    residual = transformer.proj.weight + torch.eye(D, dtype=q.dtype)  # (D, D)
    bias = residual @ attn.proj_v.bias + transformer.proj.bias
    if all_steps:
        K = D // H
        v = F.pad(v.view(H, K, D), (0, 0, 0, ones(K)))  # (H, V, D)
        b_v = v.new_zeros(H, v.shape[1], 1)
        b_v[:, K] = 1
        before, after = (q, k, v.flatten(0, 1), b_q[:, None], b_v.flatten(0, 1)), (residual, bias)
    else:
        q, b_q, k, v = q.view(H, -1, D), b_q.view(H, 1, -1), k.view(H, -1, D), v.view(H, -1, D)
        heads = residual.view(D, H, -1).transpose(0, 1)  # (H, D, K)
        before = (k.transpose(1, 2) @ q).view(H * D, D), (b_q @ k).view(H * D)
        after = (heads @ v).transpose(0, 1).reshape(D, H * D), bias
    lift = torch.cat([embedding.lin.weight, embedding.lin.bias[:, None]], dim=1)  # (D, C + 1)
    lift = lift - lift.mean(0)
    form, position = lift.T @ lift / D, embedding.pos_embed.weight + norm.beta
    return EncoderWeights(before, after, form, (norm.gamma[:, None] * lift).T, position)


def ones(K):
    """Rows that follow a head's K features in v: the first is 1 and adds up the weights, 0 fill them to a register."""
    return 4 - K % 4


def embed(transformer, weights, x):
    """models.Embedding: (B, T, C) -> (B, T, D), with one LayerNorm fewer over D features (see fast.embed)."""
    B = len(x)
    x = F.pad(x, (0, 1), value=1.0)
    x = x * torch.rsqrt(torch.linalg.vecdot(x @ weights.form, x) + 1e-12)[..., None]
    h = torch.baddbmm(weights.position.expand(B, -1, -1), x, weights.lift.expand(B, -1, -1))
    return transformer.embed.norm(h)


def linear(h, W, b):
    """F.linear in the type of h."""
    return F.linear(h, W.to(h.dtype), b.to(h.dtype))


def after_attention(transformer, h, dtype):
    """What follows the first residual: (B, T, D) -> (B, T, D). The feed-forward is made in `dtype`."""
    h = transformer.norm1(h)
    fc1, fc2 = transformer.pwff.fc1, transformer.pwff.fc2
    inner = F.gelu(linear(h.to(dtype), fc1.weight, fc1.bias))
    return transformer.norm2(h + linear(inner, fc2.weight, fc2.bias).to(h.dtype))


class Attention(torch.autograd.Function):
    """softmax(q^T k) applied to v, features before steps: q, k (N, K, T), v (N, V, T) -> (N, K, T).

    v holds K features, then 1 (see ones): its sum is softmax's denominator, by which K features a step are divided
    instead of T weights. So softmax is one pass over the scores, and so is its gradient, written over that of the
    weights. The five products of the backward pass are those of autograd without its copies of transposed matrices.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        K = q.shape[1]
        weights = (q.transpose(1, 2) @ k).exp_()  # (N, T, T)
        sums = v @ weights.transpose(1, 2)  # (N, V, T)
        if out_of_range(sums[:, K]):
            weights = q.transpose(1, 2) @ k
            weights.sub_(weights.amax(-1, keepdim=True)).exp_()
            sums = v @ weights.transpose(1, 2)
        total = sums[:, K : K + 1].reciprocal()
        out = sums[:, :K] * total
        ctx.save_for_backward(q, k, v, weights, total, out)
        return out

    @staticmethod
    def backward(ctx, g):
        q, k, v, weights, total, out = ctx.saved_tensors
        K = q.shape[1]
        sums = torch.zeros_like(v)  # their gradient
        torch.mul(g, total, out=sums[:, :K])
        sums[:, K] = -(sums[:, :K] * out).sum(1)
        scores = (sums.transpose(1, 2) @ v).mul_(weights)
        return k @ scores.transpose(1, 2), q @ scores, sums @ weights


class SharedAttention(torch.autograd.Function):
    """softmax(q h^T) h, where keys and values are the same: q (B, Q, D), h (B, T, D) -> (B, Q, D).

    h gets both its gradients in one place, without a sum of a matrix and a transposed one.
    """

    @staticmethod
    def forward(ctx, q, h):
        weights = (q @ h.transpose(1, 2)).exp_()  # (B, Q, T)
        total = weights.sum(-1, keepdim=True)
        if out_of_range(total):
            weights = torch.softmax(q @ h.transpose(1, 2), dim=-1)
        else:
            weights.mul_(total.reciprocal())
        ctx.save_for_backward(q, h, weights)
        return weights @ h

    @staticmethod
    def backward(ctx, g):
        q, h, weights = ctx.saved_tensors
        scores = torch._softmax_backward_data(g @ h.transpose(1, 2), weights, -1, g.dtype)
        return scores @ h, (weights.transpose(1, 2) @ g).baddbmm_(scores.transpose(1, 2), q)


def out_of_range(sums):
    """Whether sums of exponentials lie so far from 1 that softmax's shift of each row is needed, or one is NaN."""
    low, high = sums.aminmax()
    return not 1e-18 < low <= high < 1e18  # halfway to float32's limits: gradients are divided by them


def all_steps(transformer, weights, x, dtype=None):
    """models.Transformer: x (B, T, C) -> (B, T, D). The large products are made in `dtype` (that of x)."""
    dtype = dtype or x.dtype
    h = embed(transformer, weights, x)
    (B, T, D), H = h.shape, transformer.attn.H
    q, k, v, b_q, b_v = (part.to(dtype).expand(B, -1, -1) for part in weights.before)
    tokens = h.to(dtype).transpose(1, 2)  # (B, D, T)
    q, k, v = torch.baddbmm(b_q, q, tokens), k @ tokens, torch.baddbmm(b_v, v, tokens)
    a = Attention.apply(*(part.view(B * H, -1, T) for part in (q, k, v))).view(B, D, T)
    residual, bias = (part.to(dtype) for part in weights.after)
    a = torch.baddbmm(bias, a.transpose(1, 2), residual.T.expand(B, -1, -1))
    return after_attention(transformer, a.to(h.dtype), dtype)


def encoder(transformer):
    """A function like models.Transformer, (B, T, C) -> (B, T, D), for use without gradients; weights as they are now.

    The fused attention needs its queries, keys and values step by step; they come from one product.
    """
    weights, H = encoder_weights(transformer, all_steps=True), transformer.attn.H
    q, k, _, b_q, _ = weights.before
    W, b = torch.cat([q, k, transformer.attn.proj_v.weight]), F.pad(b_q[:, 0], (0, 2 * len(q)))

    def forward(x):
        qkv = F.linear(embed(transformer, weights, x), W, b)
        q, k, v = (split_heads(part, H) for part in qkv.chunk(3, dim=-1))
        a = merge_heads(F.scaled_dot_product_attention(q, k, v, scale=1.0))
        return after_attention(transformer, F.linear(a, *weights.after), a.dtype)

    return forward


def chosen_steps(transformer, weights, x, positions, dtype=None):
    """The representation of the chosen steps only: x (B, T, C), positions (B, M) -> (B, M, D); `dtype` as above."""
    dtype = dtype or x.dtype
    h = embed(transformer, weights, x).to(dtype)
    (B, M), D = positions.shape, h.shape[-1]
    q = linear(take_steps(h, positions), *weights.before).view(B, -1, D)  # (B, M * H, D)
    a = SharedAttention.apply(q, h).view(B, M, -1)
    return after_attention(transformer, linear(a, *weights.after).to(x.dtype), dtype)


# ---------------------------------------------------------------------------------------------- contrastive head


class Forms(torch.autograd.Function):
    """A quadratic form and S linear ones of every row: h (N, D), W (D + S, D) -> (N,), (N, S).

    W is the symmetric matrix of the one over the others' rows. By symmetry both gradients are one product each.
    """

    @staticmethod
    def forward(ctx, h, W):
        D = h.shape[1]
        product = h @ W.T
        ctx.save_for_backward(h, W)
        return (product[:, :D] * h).sum(1), product[:, D:].contiguous()

    @staticmethod
    def backward(ctx, g_quadratic, g_linear):
        h, W = ctx.saved_tensors
        D = h.shape[1]
        left = torch.empty(len(h), len(W), dtype=h.dtype)
        torch.mul(h, g_quadratic[:, None], out=left[:, :D])
        left[:, D:] = g_linear
        return left @ torch.cat([2 * W[:D], W[D:]]), left.T @ h


class TokenWeights(NamedTuple):
    """What the class token's attention needs to know of a step's token without making its P features."""

    forms: torch.Tensor  # (D + S, D): the variance over those features as a quadratic form, a linear one, H scores, 0s
    constants: torch.Tensor  # (1 + H,): the variance's, the scores', which are those before the standard deviation
    shift: torch.Tensor  # (H,): what the norm's beta adds to the scores
    own: torch.Tensor  # (H,): the class token's score of itself
    least: float  # variance, which rounding must not bring below 0
    value: tuple  # centred weights (P, D) and bias (P,) of the Linear to P features


def token_weights(head):
    """Fold Linear, LayerNorm and the class token's query together (fast.class_output says why the query is known).

    The Linear's output has mean 0 if its weights' columns have, its variance is a quadratic form of the D features, and
    a score is linear in the normalised features: so D features a step are enough.
    """
    patch, _, norm1, _, _, _ = head.parts()
    own, key = head.class_query()  # (P,), (H, P)
    P = len(own)
    W, b = patch.weight - patch.weight.mean(0), patch.bias - patch.bias.mean()
    scaled = key * norm1.weight
    forms = torch.cat([W.T @ W / P, (2 * W.T @ b / P)[None], scaled @ W])
    forms = F.pad(forms, (0, 0, 0, -len(forms) % 4))  # zeros fill the rows to a register
    constants = torch.cat([(b @ b / P + norm1.eps)[None], scaled @ b])
    return TokenWeights(forms, constants, key @ norm1.bias, key @ own, norm1.eps, (W, b))


def read_out(weights, h, dtype=None):
    """What the class token's heads take from the steps: (B, T, D) -> its own weight and that of all steps (B, H) twice,
    the weighted sums of the steps' normalising factors (B, H) and of their normalised features (B, H, D).

    The steps' products are made in `dtype` (that of h).
    """
    B, T, D = h.shape
    tokens, H, full = h.to(dtype or h.dtype), len(weights.own), weights.own.dtype
    variance, forms = Forms.apply(tokens.view(B * T, D), weights.forms.to(tokens.dtype))
    forms = forms[:, : 1 + H].to(full) + weights.constants
    factor = torch.rsqrt((variance.to(full) + forms[:, 0]).clamp_min(weights.least)).view(B, 1, T)
    scores = forms[:, 1:].view(B, T, H).transpose(1, 2) * factor + weights.shift[:, None]  # (B, H, T)
    scores = torch.cat([weights.own.expand(B, -1)[..., None], scores], dim=2)
    own, steps = torch.softmax(scores, dim=2).split([1, T], dim=2)
    scaled = steps * factor
    return own[..., 0], steps.sum(2), scaled.sum(2), (scaled.to(tokens.dtype) @ tokens).to(full)


def class_output(head, weights, own, steps, factors, mixed, keep=None):
    """models.Contrastive.class_output from what read_out took of the representation: (B, P)."""
    _, token, norm1, _, _, _ = head.parts()
    W, b = weights.value
    mixed = norm1.weight * (mixed @ W.T + factors[..., None] * b) + steps[..., None] * norm1.bias  # (B, H, P)
    mixed = mixed + own[..., None] * norm1(token)
    return head.after_class_query(mixed, keep)


# -------------------------------------------------------------------------------------------------------- losses


def losses(model, head, views, masks, keep, both, gather=lambda classes: classes, dtype=None):
    """models.losses: views (2, B, T, C) -> (masked, contrastive), contrastive 0 unless `both`.

    The large products of encoder and class token are made in `dtype`, the losses in that of the views.
    """
    x = views.flatten(0, 1)  # (2B, T, C)
    hidden = hide(x, masks)
    encoder, weights = model.transformer, encoder_weights(model.transformer, both)
    token = token_weights(head) if both else None
    chosen, taken = [], []
    for part in chunks(len(x)):
        if not both:
            chosen.append(chosen_steps(encoder, weights, hidden[part], masks.positions[part], dtype))
            continue
        h = all_steps(encoder, weights, hidden[part], dtype)
        chosen.append(take_steps(h, masks.positions[part]))
        taken.append(read_out(token, h, dtype))
    masked = F.mse_loss(model.reconstruct(torch.cat(chosen).to(x.dtype)), take_steps(x, masks.positions))
    if not both:
        return masked, torch.zeros_like(masked)
    classes = class_output(head, token, *map(torch.cat, zip(*taken, strict=True)), keep)
    # both views together so far; from BatchNorm on, whose statistics are those of one view, each on its own
    return masked, nt_xent(*map(head.projection_head, gather(classes.unflatten(0, (2, -1)))))
