"""The fast path of pretraining: the losses of models.py with fewer operations, exact up to rounding.

Each shortcut says what is saved and why the result is the same; tests/test_fast.py holds them against the plain
functions, gradients included.

Axes as in models.py.
"""

import contextlib
import ctypes

import torch
import torch.nn.functional as F

from augment import hide, take_steps
from models import losses as plain_losses
from models import merge_heads, nt_xent, split_heads

CPU_CHUNK = 64  # windows that go through the encoder together on a CPU: their activations stay in the cache


def losses_for(model_cfg, device):
    """The fast losses where they hold for this encoder, else the plain ones, with one line that says so."""
    if device.type == "cpu":
        keep_freed_memory()
    if model_cfg["n_layers"] == 1 and model_cfg["emb_norm"]:
        return losses
    print("plain path: the shortcuts need an encoder of one pass (n_layers 1) with emb_norm")
    return plain_losses


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


def embed(embedding, x, positions=None):
    """models.Embedding with one LayerNorm fewer over D features: (B, T, C) -> (B, T, D).

    The first LayerNorm follows a Linear from only C channels, so its mean is that of the weights' columns (taken out
    of the weights), and its variance a quadratic form of the C channels and 1: what remains of it is one factor per
    step, applied to the C channels before the Linear. `positions` (B, M) says which steps x holds, where not all.
    """
    W, b, gamma, beta = embedding.lin.weight, embedding.lin.bias, embedding.norm.gamma, embedding.norm.beta
    W = torch.cat([W, b[:, None]], dim=1)  # (D, C + 1)
    W = W - W.mean(0)
    x = F.pad(x, (0, 1), value=1.0)
    variance = ((x @ (W.T @ W / len(W))) * x).sum(-1, keepdim=True)
    x = x * torch.rsqrt(variance + 1e-12)
    if positions is None:
        position = (embedding.pos_embed.weight + beta).expand(len(x), -1, -1)
    else:
        position = F.embedding(positions, embedding.pos_embed.weight) + beta
    h = torch.baddbmm(position, x, (gamma[:, None] * W).T.expand(len(x), -1, -1))
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
    """models.Transformer with the shorter embedding: x (B, T, C) -> (B, T, D)."""
    h = embed(transformer.embed, x)
    attn, D = transformer.attn, h.shape[-1]
    W = torch.cat([attn.proj_q.weight, attn.proj_k.weight, attn.proj_v.weight])
    b = torch.cat([attn.proj_q.bias, torch.zeros_like(attn.proj_k.bias), attn.proj_v.bias])  # as in chosen_steps
    q, k, v = (split_heads(part, attn.H) for part in F.linear(h, W, b).split(D, dim=-1))
    return transformer.after_attention(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def class_output(head, h, keep=None):
    """models.Contrastive.class_output for the class token alone: (B, T, D) -> (B, P).

    Only the class token's output is used, so there is one query a window instead of T + 1 and no MLP on the others.
    Before the layer that token is the same for all windows: its query is folded into the key weights, which leaves
    one vector a head to multiply the tokens with, and the value weights are applied after the weighting.
    """
    patch, token, norm1, attention, norm2, mlp = head.parts()
    P, H = token.shape[-1], attention.H
    W_q, W_k, W_v = (part.view(H, -1, P) for part in attention.to_qkv.weight.chunk(3))  # (H, K, P)
    own = norm1(token)[0, 0]  # (P,)
    key = torch.einsum("hk,hkp->hp", W_q @ own, W_k) * P**-0.5  # (H, P)
    others = norm1(patch(h))  # (B, T, P)
    scores = others @ key.T  # (B, T, H)
    scores = torch.cat([(key @ own).expand(len(h), 1, H), scores], dim=1)
    weights = torch.softmax(scores, dim=1).transpose(1, 2)  # (B, H, 1 + T)
    mixed = weights[:, :, :1] * own + weights[:, :, 1:] @ others  # (B, H, P)
    a = attention.to_out(torch.einsum("bhp,hkp->bhk", mixed, W_v).flatten(1))
    token = token[0, 0] + (a * keep["out"] if keep else a)
    inner = F.relu(mlp.net["0"](norm2(token)))
    out = mlp.net["3"](inner * keep["inner"] if keep else inner)
    return token + (out * keep["mlp"] if keep else out)


def losses(model, head, views, masks, keep, both):
    """models.losses by the shortcuts: views (2, B, T, C) -> (masked, contrastive), contrastive 0 unless `both`."""
    x = views.flatten(0, 1)  # (2B, T, C)
    hidden = hide(x, masks)
    chunk = CPU_CHUNK if x.device.type == "cpu" else len(x)
    chosen, classes = [], []
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        if not both:
            chosen.append(chosen_steps(model.transformer, hidden[part], masks.positions[part]))
            continue
        h = all_steps(model.transformer, hidden[part])
        chosen.append(take_steps(h, masks.positions[part]))
        factors = {name: f[part] for name, f in keep.items()} if keep else None
        classes.append(class_output(head, h, factors))
    reconstruction = model.reconstruct(torch.cat(chosen))
    masked = F.mse_loss(reconstruction, take_steps(x, masks.positions))
    if not both:
        return masked, torch.zeros_like(masked)
    # both views together so far; from BatchNorm on, whose statistics are those of one view, each on its own
    z1, z2 = (head.projection_head(view) for view in torch.cat(classes).chunk(2))
    return masked, nt_xent(z1, z2)
