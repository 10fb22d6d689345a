"""The shortcuts, exact up to rounding, in PyTorch's own operations: on a CPU, and on a GPU without Triton.

Each says what is saved and why the result is the same; tests/test_fast.py holds them against the plain functions,
gradients included.

Axes as in models.py.
"""

import copy
import functools

import torch
import torch.nn.functional as F
from torch import nn

from augment import take_steps
from fast import classifier, graphs
from models import LayerNorm, merge_heads, nt_xent, split_heads
from plain import Plain


class Recorded(Plain):
    """The plain operations, their steps recorded and replayed on a GPU."""

    def recorded(self, step, modules=(), optimizer=None, sums=()):
        return graphs.Captured(step, modules, optimizer, sums) if self.device.type == "cuda" else step

    def aside(self):
        return graphs.aside(self.device)


class Exact(Recorded):
    """The engine of the shortcuts. In bfloat16 the encoder, the class token's layer and the classifier compute in it
    (their sums stay float32 inside the kernels), the losses and everything from BatchNorm on in float32.
    """

    name = "exact"

    def __init__(self, team, precision="fp32", note=""):
        super().__init__(team, precision, note)
        self.dtype = torch.bfloat16 if precision == "bf16" else None

    def forward(self, model, head, x, positions, keep, both):
        project_to = x.dtype
        if self.dtype:
            model, head = in_bfloat16(model, head)
        if not both:
            return model.reconstruct(chosen_steps(model.transformer, x, positions)).to(project_to), None
        h = all_steps(model.transformer, x)
        factors = {name: factor.to(h.dtype) for name, factor in keep.items()} if keep else None
        classes = class_output(head, h, factors).to(project_to).unflatten(0, (2, -1))
        return model.reconstruct(take_steps(h, positions)).to(project_to), classes

    def contrast(self, head, classes):
        return nt_xent(*project(head, classes).chunk(2))

    def encoder(self, transformer):
        return functools.partial(all_steps, transformer) if shortcuts_hold(transformer) else transformer

    def dropout(self, model, generator):
        return classifier.Dropout.of(model, generator) if self.device.type == "cpu" else None

    def logits(self, model, h, dropout=None):
        if self.device.type != "cpu" or not (self.dtype or torch.is_grad_enabled()):
            return model(h)  # without dropout to draw PyTorch's own is as fast
        return classifier.logits(model, h, dropout, self.dtype)


def shortcuts_hold(transformer):
    """Whether an encoder is of the kind that the shortcuts compute: one pass, embeddings normalised."""
    return transformer.n_layers == 1 and transformer.embed.emb_norm


# ------------------------------------------------------------------------------------------------------ encoder


def embed(embedding, x, positions=None):
    """models.Embedding with one LayerNorm fewer over D features: (B, T, C) -> (B, T, D).

    The first LayerNorm follows a Linear from only C channels, so its mean is that of the weights' columns (taken out
    of the weights), and its variance a quadratic form of the C channels and 1: what remains of it is one factor per
    step, applied to the C channels before the Linear. `positions` (B, M) says which steps x holds, where not all.
    """
    W, b, gamma, beta = embedding.lin.weight, embedding.lin.bias, embedding.norm.gamma, embedding.norm.beta
    dtype = W.dtype
    W = torch.cat([W, b[:, None]], dim=1).to(x.dtype)  # (D, C + 1)
    W = W - W.mean(0)
    x = F.pad(x, (0, 1), value=1.0)
    variance = ((x @ (W.T @ W / len(W))) * x).sum(-1, keepdim=True)
    x = x * torch.rsqrt(variance + 1e-12)
    if positions is None:
        position = (embedding.pos_embed.weight + beta).expand(len(x), -1, -1)
    else:
        position = F.embedding(positions, embedding.pos_embed.weight) + beta
    W = (gamma[:, None] * W).T.to(dtype)
    h = torch.baddbmm(position.to(dtype), x.to(dtype), W.expand(len(x), -1, -1))
    return embedding.norm(h)


def chosen_steps(transformer, x, positions):
    """The representation of the chosen steps only: x (B, T, C), positions (B, M) -> (B, M, D).

    The masked loss reads nothing else. Keys and values need all T steps, but queries, attention rows, norms and
    feed-forward only M. With so few queries, the key weights are applied to the queries and the value weights to the
    attention's result (q . (W h) = (W^T q) . h, and the sum of a W h = W (the sum of a h)), so that neither keys nor
    values of the T steps are ever made; the key's bias adds the same to all of a row's scores, which softmax ignores.
    """
    attn, H = transformer.attn, transformer.attn.H
    h = embed(transformer.embed, x)  # (B, T, D)
    chosen = embed(transformer.embed, take_steps(x, positions), positions)  # (B, M, D)
    B, M, D = chosen.shape
    W_k, W_v = attn.proj_k.weight.view(H, -1, D), attn.proj_v.weight.view(H, -1, D)  # (H, K, D)
    q = attn.proj_q(chosen).view(B, M, H, -1) * (D // H) ** -0.5
    folded = torch.einsum("bmhk,hkd->bmhd", q, W_k).reshape(B, M * H, D)
    weights = torch.softmax(folded @ h.transpose(1, 2), dim=-1)  # (B, M * H, T)
    mixed = (weights @ h).view(B, M, H, D)
    a = torch.einsum("bmhd,hkd->bmhk", mixed, W_v).reshape(B, M, D) + attn.proj_v.bias
    return transformer.after_attention(a)


def all_steps(transformer, x):
    """models.Transformer with the shorter embedding and one product for q, k, v: x (B, T, C) -> (B, T, D).

    On a GPU the heads' K features are filled up with zeros to a multiple of 4 (float32) or 8 (bfloat16): the fused
    attention kernels need that, and without them every score is written to memory. Zeros change no product.
    """
    h = embed(transformer.embed, x)
    attn, D = transformer.attn, h.shape[-1]
    K = D // attn.H
    fill = -K % (4 if h.dtype == torch.float32 else 8) if h.is_cuda else 0
    W = torch.stack([attn.proj_q.weight, attn.proj_k.weight, attn.proj_v.weight]).view(3, attn.H, K, D)
    # the key's bias changes no weight (see chosen_steps)
    b = torch.stack([attn.proj_q.bias, torch.zeros_like(attn.proj_k.bias), attn.proj_v.bias]).view(3, attn.H, K)
    W, b = F.pad(W, (0, 0, 0, fill)).flatten(0, 2), F.pad(b, (0, fill)).flatten()
    q, k, v = (split_heads(part, attn.H) for part in F.linear(h, W, b).chunk(3, dim=-1))
    a = F.scaled_dot_product_attention(q, k, v, scale=K**-0.5)  # (B, H, T, K + fill)
    return transformer.after_attention(merge_heads(a[..., :K]))


# --------------------------------------------------------------------------- class token of the contrastive head


def class_output(head, h, keep=None):
    """models.Contrastive.class_output for the class token alone: (B, T, D) -> (B, P).

    Only the class token's output is used, so there is one query a window instead of T + 1 and no MLP on the others.
    Before the layer that token is the same for all windows: its query is folded into the key weights, which leaves
    one vector a head to multiply the tokens with, and the value weights are applied after the weighting.
    """
    patch, _, norm1, attention, _, _ = head.parts()
    H = attention.H
    own, key = class_query(head)  # (P,), (H, P)
    others = norm1(patch(h))  # (B, T, P)
    scores = others @ key.T  # (B, T, H)
    scores = torch.cat([(key @ own).expand(len(h), 1, H), scores], dim=1)
    weights = torch.softmax(scores, dim=1).transpose(1, 2)  # (B, H, 1 + T)
    mixed = weights[:, :, :1] * own + weights[:, :, 1:] @ others  # (B, H, P)
    return after_attention(head, torch.einsum("bhp,hkp->bhk", mixed, value_weights(head)).flatten(1), keep)


def class_query(head):
    """The class token normalised (P,), and its query folded into the key weights and scaled (H, P).

    Before the layer that token is the same for all windows: its score of a normalised token t is key . t.
    """
    _, token, norm1, attention, _, _ = head.parts()
    P, H = token.shape[-1], attention.H
    W_q, W_k, _ = (part.view(H, -1, P) for part in attention.to_qkv.weight.chunk(3))  # (H, K, P)
    own = norm1(token)[0, 0]
    return own, torch.einsum("hk,hkp->hp", W_q @ own, W_k) * P**-0.5


def value_weights(head):
    """Each head's (H, K, P)."""
    attention = head.parts()[3]
    return attention.to_qkv.weight.chunk(3)[2].unflatten(0, (attention.H, -1))


def after_attention(head, a, keep=None):
    """The class token after the layer from all heads' results of its query, side by side (B, P): (B, P)."""
    _, token, _, attention, norm2, mlp = head.parts()
    a = attention.to_out(a)
    token = token[0, 0] + (a * keep["out"] if keep else a)
    inner = F.relu(mlp.net["0"](norm2(token)))
    out = mlp.net["3"](inner * keep["inner"] if keep else inner)
    return token + (out * keep["mlp"] if keep else out)


def project(head, classes):
    """projection_head of the two views' class tokens (2, B, P), one after the other: (2B, 18).

    The products are made together; BatchNorm's statistics are those of each view.
    """
    first, norm, relu, last = head.projection_head
    return last(relu(torch.cat([norm(view) for view in first(classes)])))


def in_bfloat16(*modules):
    """Copies of the modules that compute with the parameters rounded to bfloat16; gradients reach the originals.

    The weights stay float32, those are what the optimiser sees. All are cast in one piece: one kernel, not seventy.
    LayerNorms compute in float32: on a CPU their backward would add up rows in bfloat16, and of 60 000 lose most.
    """
    copies = [copy.deepcopy(module) for module in modules]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    flat = torch.cat([parameter.flatten() for parameter in parameters]).to(torch.bfloat16)
    pieces = iter(flat.split([parameter.numel() for parameter in parameters]))
    for module in (part for copied in copies for part in copied.modules()):
        is_norm = isinstance(module, (LayerNorm, nn.LayerNorm))
        for name, parameter in list(module.named_parameters(recurse=False)):
            del module._parameters[name]
            piece = next(pieces).view_as(parameter)
            setattr(module, name, piece.float() if is_norm else piece)
        if is_norm:
            module.forward = functools.partial(in_float32, module.forward)
    return copies


def in_float32(forward, x):
    return forward(x.float()).to(x.dtype)
