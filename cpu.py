"""The fast path on a CPU: the same losses as models.losses, arranged so that the work is matrix products in the cache.

Beside the shortcuts of fast.py, which also explains them: everything that depends on the weights alone is folded
together once a step (encoder_weights, token_weights), a chunk of windows goes through all operations before the next
one does, and attention keeps its features before its time steps, the order in which heads need no copy and a product
with heads of 18 features fills the vector registers. tests/test_cpu.py holds all of it against the plain functions.

Axes as in models.py; N stands for B * H, a window's heads one after another.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from augment import hide, take_steps
from models import merge_heads, nt_xent, split_heads

CHUNK = 64  # windows that go through all operations together, for each thread: the larger, the fewer calls


def chunks(n):
    """Slices that cut n windows into pieces of CHUNK windows a thread."""
    size = CHUNK * torch.get_num_threads()
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


# ------------------------------------------------------------------------------------------------------ encoder


class EncoderWeights(NamedTuple):
    """The encoder's weights as its parts below use them."""

    form: torch.Tensor  # (C + 1, C + 1): the variance over a step's D features is x form x
    lift: torch.Tensor  # (C + 1, D): channels and 1 to features of mean 0, gamma applied
    position: torch.Tensor  # (T, D), beta added
    before: tuple  # softmax; all_steps: q (D, D), its bias (D, 1), k, v (D, D); chosen_steps: both in one, its bias
    after: tuple  # it, to the first norm's input, with bias (D,); all_steps: (D, D), chosen_steps: (D, H * D)


def encoder_weights(transformer, all_steps):
    """Fold what depends on the weights alone, for `all_steps` or for the chosen ones.

    The first LayerNorm: see fast.embed. The residual around a projection is one matrix, a + W a = (I + W) a, which is
    applied to the value's bias at once: the attention's weights add up to 1. The scale goes to the queries, and the
    key's bias adds the same to all of a row's scores. For the few chosen steps a head's two matrices before softmax
    become one, q . k = h (W_q^T W_k) h, and so do the two after it: neither keys nor values are ever made.
    """
    embedding, attn, H = transformer.embed, transformer.attn, transformer.attn.H
    norm, D = embedding.norm, len(transformer.proj.weight)
    lift = torch.cat([embedding.lin.weight, embedding.lin.bias[:, None]], dim=1)  # (D, C + 1)
    lift = lift - lift.mean(0)
    q, b_q = (part * (D // H) ** -0.5 for part in (attn.proj_q.weight, attn.proj_q.bias))
    k, v = attn.proj_k.weight, attn.proj_v.weight
    residual = transformer.proj.weight + torch.eye(D, dtype=q.dtype)  # (D, D)
    bias = residual @ attn.proj_v.bias + transformer.proj.bias
    if all_steps:
        before, after = (q, b_q[:, None], k, v), (residual, bias)
    else:
        q, b_q, k, v = q.view(H, -1, D), b_q.view(H, 1, -1), k.view(H, -1, D), v.view(H, -1, D)
        heads = residual.view(D, H, -1).transpose(0, 1)  # (H, D, K)
        before = (k.transpose(1, 2) @ q).view(H * D, D), (b_q @ k).view(H * D)
        after = (heads @ v).transpose(0, 1).reshape(D, H * D), bias
    form, position = lift.T @ lift / D, embedding.pos_embed.weight + norm.beta
    return EncoderWeights(form, (norm.gamma[:, None] * lift).T, position, before, after)


def embed(transformer, weights, x):
    """models.Embedding with one LayerNorm fewer over D features (see fast.embed): (B, T, C) -> (B, T, D)."""
    B = len(x)
    x = F.pad(x, (0, 1), value=1.0)
    x = x * torch.rsqrt(torch.linalg.vecdot(x @ weights.form, x) + 1e-12)[..., None]
    h = torch.baddbmm(weights.position.expand(B, -1, -1), x, weights.lift.expand(B, -1, -1))
    return transformer.embed.norm(h)


def after_attention(transformer, h):
    """What follows the first residual: (B, T, D) -> (B, T, D)."""
    h = transformer.norm1(h)
    return transformer.norm2(h + transformer.pwff(h))


class Attention(torch.autograd.Function):
    """softmax(q^T k) applied to v, features before steps: q, k, v (N, K, T) -> (N, K, T).

    The five products of the backward pass as autograd has them, but without its copies of transposed T x T matrices,
    and with the scores' gradient written over that of the weights.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        weights = torch.softmax(q.transpose(1, 2) @ k, dim=-1)  # (N, T, T)
        ctx.save_for_backward(q, k, v, weights)
        return v @ weights.transpose(1, 2)

    @staticmethod
    def backward(ctx, g):
        q, k, v, weights = ctx.saved_tensors
        scores = softmax_backward(g.transpose(1, 2) @ v, weights)
        return k @ scores.transpose(1, 2), q @ scores, g @ weights


class SharedAttention(torch.autograd.Function):
    """softmax(q h^T) h, where keys and values are the same: q (B, Q, D), h (B, T, D) -> (B, Q, D).

    h gets both its gradients in one place, without a sum of a matrix and a transposed one.
    """

    @staticmethod
    def forward(ctx, q, h):
        weights = torch.softmax(q @ h.transpose(1, 2), dim=-1)  # (B, Q, T)
        ctx.save_for_backward(q, h, weights)
        return weights @ h

    @staticmethod
    def backward(ctx, g):
        q, h, weights = ctx.saved_tensors
        scores = softmax_backward(g @ h.transpose(1, 2), weights)
        return scores @ h, (weights.transpose(1, 2) @ g).baddbmm_(scores.transpose(1, 2), q)


def softmax_backward(g, weights):
    """The gradient of the scores, written over that of the weights."""
    return torch._softmax_backward_data(g, weights, -1, g.dtype, grad_input=g)


def all_steps(transformer, weights, x):
    """models.Transformer: x (B, T, C) -> (B, T, D)."""
    h = embed(transformer, weights, x)
    (B, T, D), H = h.shape, transformer.attn.H
    q, b_q, k, v = (part.expand(B, -1, -1) for part in weights.before)
    tokens = h.transpose(1, 2)  # (B, D, T)
    q, k, v = torch.baddbmm(b_q, q, tokens), k @ tokens, v @ tokens
    a = Attention.apply(*(part.view(B * H, D // H, T) for part in (q, k, v))).view(B, D, T)
    residual, bias = weights.after
    return after_attention(transformer, torch.baddbmm(bias, a.transpose(1, 2), residual.T.expand(B, -1, -1)))


def encoder(transformer):
    """A function like models.Transformer, (B, T, C) -> (B, T, D), for use without gradients; weights as they are now.

    The fused attention needs its queries, keys and values step by step; they come from one product.
    """
    if transformer.n_layers != 1 or not transformer.embed.emb_norm:
        return transformer
    weights, H = encoder_weights(transformer, all_steps=True), transformer.attn.H
    q, b_q, k, v = weights.before
    W, b = torch.cat([q, k, v]), torch.cat([b_q[:, 0], torch.zeros_like(b_q[:, 0]), torch.zeros_like(b_q[:, 0])])

    def forward(x):
        q, k, v = (split_heads(part, H) for part in F.linear(embed(transformer, weights, x), W, b).chunk(3, dim=-1))
        a = merge_heads(F.scaled_dot_product_attention(q, k, v, scale=1.0))
        return after_attention(transformer, F.linear(a, *weights.after))

    return forward


def chosen_steps(transformer, weights, x, positions):
    """The representation of the chosen steps only: x (B, T, C), positions (B, M) -> (B, M, D)."""
    h = embed(transformer, weights, x)
    (B, M), D = positions.shape, h.shape[-1]
    q = F.linear(take_steps(h, positions), *weights.before).view(B, -1, D)  # (B, M * H, D)
    a = SharedAttention.apply(q, h).view(B, M, -1)
    return after_attention(transformer, F.linear(a, *weights.after))


# ---------------------------------------------------------------------------------------------- contrastive head


class QuadraticForm(torch.autograd.Function):
    """h G h of every row with a symmetric G: (N, D), (D, D) -> (N,). Its gradient needs no product but that of G."""

    @staticmethod
    def forward(ctx, h, G):
        product = h @ G
        ctx.save_for_backward(h, product)
        return torch.linalg.vecdot(product, h)

    @staticmethod
    def backward(ctx, g):
        h, product = ctx.saved_tensors
        return product * (2 * g[:, None]), (h * g[:, None]).T @ h


class TokenWeights(NamedTuple):
    """What the class token's attention needs to know of a step's token without making its P features."""

    form: torch.Tensor  # (D, D): the variance over those features is h form h + linear h + constant
    linear: torch.Tensor  # (D,)
    constant: torch.Tensor
    key: tuple  # (H, D) and (H,): scores before the division by the standard deviation
    shift: torch.Tensor  # (H,): what the norm's beta adds to the scores
    own: torch.Tensor  # (H,): the class token's score of itself
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
    form, linear, constant = W.T @ W / P, 2 * W.T @ b / P, b @ b / P + norm1.eps
    scaled = key * norm1.weight
    key = (scaled @ W, scaled @ b), key @ norm1.bias, key @ own
    return TokenWeights(form, linear, constant, *key, (W, b))


def read_out(weights, h):
    """What the class token's heads take from the steps: (B, T, D) -> its own weight and that of all steps (B, H) twice,
    the weighted sums of the steps' normalising factors (B, H) and of their normalised features (B, H, D).
    """
    B, T, D = h.shape
    flat = h.view(B * T, D)
    variance = QuadraticForm.apply(flat, weights.form) + torch.addmv(weights.constant, flat, weights.linear)
    factor = torch.rsqrt(variance).view(B, 1, T)
    scores = F.linear(h, *weights.key).transpose(1, 2) * factor + weights.shift[:, None]  # (B, H, T)
    scores = torch.cat([weights.own.expand(B, -1)[..., None], scores], dim=2)
    own, steps = torch.softmax(scores, dim=2).split([1, T], dim=2)
    scaled = steps * factor
    return own[..., 0], steps.sum(2), scaled.sum(2), scaled @ h


def class_output(head, weights, own, steps, factors, mixed, keep=None):
    """models.Contrastive.class_output from what read_out took of the representation: (B, P)."""
    _, token, norm1, _, _, _ = head.parts()
    W, b = weights.value
    mixed = norm1.weight * (mixed @ W.T + factors[..., None] * b) + steps[..., None] * norm1.bias  # (B, H, P)
    mixed = mixed + own[..., None] * norm1(token)
    return head.after_class_query(mixed, keep)


# -------------------------------------------------------------------------------------------------------- losses


def losses(model, head, views, masks, keep, both, gather=lambda classes: classes):
    """models.losses: views (2, B, T, C) -> (masked, contrastive), contrastive 0 unless `both`."""
    x = views.flatten(0, 1)  # (2B, T, C)
    hidden = hide(x, masks)
    encoder, weights = model.transformer, encoder_weights(model.transformer, both)
    token = token_weights(head) if both else None
    chosen, taken = [], []
    for part in chunks(len(x)):
        if not both:
            chosen.append(chosen_steps(encoder, weights, hidden[part], masks.positions[part]))
            continue
        h = all_steps(encoder, weights, hidden[part])
        chosen.append(take_steps(h, masks.positions[part]))
        taken.append(read_out(token, h))
    masked = F.mse_loss(model.reconstruct(torch.cat(chosen)), take_steps(x, masks.positions))
    if not both:
        return masked, torch.zeros_like(masked)
    classes = class_output(head, token, *map(torch.cat, zip(*taken, strict=True)), keep)
    # both views together so far; from BatchNorm on, whose statistics are those of one view, each on its own
    return masked, nt_xent(*map(head.projection_head, gather(classes.unflatten(0, (2, -1)))))
