"""CrossHAR's networks: the masked model (encoder and reconstruction), the contrastive head, NT-Xent, the classifier.

Written plainly, as the paper and its released code compute; parameters carry the released code's names, so that its
checkpoints load. `engine` is what computes with them: plain.py as written here, fast/ the same with fewer operations.

Axes, the same letters everywhere:
  B  windows in a batch (2B where both views go through together)
  T  time steps of a window (120)             C  channels (6)
  D  features of the representation (72)      H  attention heads (4); K features each (D / H)
  M  masked steps of a window (18)            P  features inside the contrastive head (100)
"""

import torch
import torch.nn.functional as F
from torch import nn

from augment import instance_norm, take_steps

DEAD_MASKED = ("fc.",)  # weights that the released masked model saves and never uses
DEAD_CLASSIFIER = ("encoder_layer.",)  # likewise of the released classifier


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with eps 1e-12 inside the square root, under the released names gamma and beta."""

    def __init__(self, D):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(D))
        self.beta = nn.Parameter(torch.zeros(D))

    def forward(self, x):
        return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta, 1e-12)


def split_heads(x, H):
    """(B, T, H * K) -> (B, H, T, K)"""
    B, T, _ = x.shape
    return x.view(B, T, H, -1).transpose(1, 2)


def merge_heads(x):
    """(B, H, T, K) -> (B, T, H * K)"""
    B, H, T, K = x.shape
    return x.transpose(1, 2).reshape(B, T, H * K)


# ------------------------------------------------------------------------------------------------ masked model


class Embedding(nn.Module):
    """Channels to features plus a learned position; one LayerNorm is used before and after adding the position."""

    def __init__(self, cfg):
        super().__init__()
        self.lin = nn.Linear(cfg["feature_num"], cfg["hidden"])
        self.pos_embed = nn.Embedding(cfg["seq_len"], cfg["hidden"])
        self.norm = LayerNorm(cfg["hidden"])
        self.emb_norm = cfg["emb_norm"]

    def forward(self, x):
        h = self.lin(x)
        if self.emb_norm:
            h = self.norm(h)
        return self.norm(h + self.pos_embed.weight)


class Attention(nn.Module):
    """Multi-head self-attention without an output projection of its own and without dropout."""

    def __init__(self, D, H):
        super().__init__()
        self.H = H
        self.proj_q = nn.Linear(D, D)
        self.proj_k = nn.Linear(D, D)
        self.proj_v = nn.Linear(D, D)

    def forward(self, h):
        q, k, v = (split_heads(proj(h), self.H) for proj in (self.proj_q, self.proj_k, self.proj_v))
        return merge_heads(F.scaled_dot_product_attention(q, k, v))


class FeedForward(nn.Module):
    def __init__(self, D, D_ff):
        super().__init__()
        self.fc1 = nn.Linear(D, D_ff)
        self.fc2 = nn.Linear(D_ff, D)

    def forward(self, h):
        return self.fc2(F.gelu(self.fc1(h)))


class Transformer(nn.Module):
    """The encoder: embedding, then n_layers passes through one block whose weights all passes share."""

    def __init__(self, cfg):
        super().__init__()
        D = cfg["hidden"]
        self.n_layers = cfg["n_layers"]
        self.embed = Embedding(cfg)
        self.attn = Attention(D, cfg["n_heads"])
        self.proj = nn.Linear(D, D)
        self.norm1 = LayerNorm(D)
        self.pwff = FeedForward(D, cfg["hidden_ff"])
        self.norm2 = LayerNorm(D)

    def after_attention(self, a):
        """The rest of the block. The residual is around the projection of the attention's output, not the block."""
        h = self.norm1(a + self.proj(a))
        return self.norm2(h + self.pwff(h))

    def forward(self, x):
        """Windows (B, T, C) to representations (B, T, D)."""
        h = self.embed(x)
        for _ in range(self.n_layers):
            h = self.after_attention(self.attn(h))
        return h


class MaskedModel(nn.Module):
    """Encoder and reconstruction head (paper, masked sensor modelling)."""

    def __init__(self, cfg):
        super().__init__()
        D = cfg["hidden"]
        self.transformer = Transformer(cfg)
        self.linear = nn.Linear(D, D)
        self.norm = LayerNorm(D)
        self.decoder = nn.Linear(D, cfg["feature_num"])

    def reconstruct(self, h):
        """Channels from the representation of single steps: (B, M, D) -> (B, M, C)."""
        return self.decoder(self.norm(F.gelu(self.linear(h))))

    def forward(self, x, positions):
        """What windows x (B, T, C) that hide the steps `positions` (B, M) held there, and their representation.

        Returns (reconstruction (B, M, C), representation (B, T, D)).
        """
        h = self.transformer(x)
        return self.reconstruct(take_steps(h, positions)), h


@torch.inference_mode()
def encode(engine, model, windows, batch_size=None):
    """The representations of raw windows: (N, T, C) tensor in m/s^2 and rad/s -> yields (n, T, D) float32.

    Instance-normalised, in eval mode, no masking; the model's mode is restored. Batch after batch (of a size that suits
    the device, where they stay), so that neither a large set nor its representation needs to fit; every script encodes
    through here.
    """
    was_training, device = model.training, engine.device
    batch_size = batch_size or (64 if device.type == "cpu" else 2048)
    model.eval()
    forward = engine.encoder(model.transformer)

    def bring(start):
        part = torch.as_tensor(windows[start : start + batch_size])
        if part.device == device:
            return part.float()
        with engine.aside():  # to a GPU while it encodes the batch before
            x = part.to(device, torch.float32)
        if x.is_cuda:
            x.record_stream(torch.cuda.current_stream(device))
        return x

    try:
        x = bring(0) if len(windows) else None
        for start in range(0, len(windows), batch_size):
            h = forward(instance_norm(x))
            if start + batch_size < len(windows):
                x = bring(start + batch_size)
            yield h
    finally:
        model.train(was_training)


# ------------------------------------------------------------------------------------------- contrastive head

DROPOUT = 0.1  # after the output projection and both layers of the MLP


class HeadAttention(nn.Module):
    """Self-attention of the contrastive head: q, k, v in one matrix without bias, scores scaled by P^-0.5 (not K)."""

    def __init__(self, P, H):
        super().__init__()
        self.H = H
        self.to_qkv = nn.Linear(P, 3 * P, bias=False)
        self.to_out = nn.Sequential(nn.Linear(P, P))

    def forward(self, h):
        q, k, v = (split_heads(part, self.H) for part in self.to_qkv(h).chunk(3, dim=-1))
        # written out: BatchNorm over a small batch magnifies what the fused attention rounds differently
        weights = torch.softmax(q @ k.transpose(-1, -2) * h.shape[-1] ** -0.5, dim=-1)  # (B, H, 1 + T, 1 + T)
        return self.to_out(merge_heads(weights @ v))


class HeadMLP(nn.Module):
    def __init__(self, P, P_ff):
        super().__init__()
        # the gaps in the numbering are the released code's activations and dropouts
        self.net = nn.ModuleDict({"0": nn.Linear(P, P_ff), "3": nn.Linear(P_ff, P)})

    def forward(self, h, inner):
        return self.net["3"](inner(F.relu(self.net["0"](h))))


class PreNorm(nn.Module):
    def __init__(self, P, fn):
        super().__init__()
        self.norm = nn.LayerNorm(P)
        self.fn = fn


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn


class HeadTransformer(nn.Module):
    """One pre-norm layer; the two Residual(PreNorm(...)) wrappers only give the parameters their released names."""

    def __init__(self, P, P_ff, H):
        super().__init__()
        layer = [Residual(PreNorm(P, HeadAttention(P, H))), Residual(PreNorm(P, HeadMLP(P, P_ff)))]
        self.layers = nn.ModuleList([nn.ModuleList(layer)])


class SequenceTransformer(nn.Module):
    def __init__(self, D, P, P_ff, H):
        super().__init__()
        self.patch_to_embedding = nn.Linear(D, P)
        self.c_token = nn.Parameter(torch.randn(1, 1, P))
        self.transformer = HeadTransformer(P, P_ff, H)


class Contrastive(nn.Module):
    """Class token over the representation, one pre-norm transformer layer, projection (paper, contrastive step)."""

    P_FF, PROJECTION = 64, (36, 18)

    def __init__(self, D, P=100, H=4):
        super().__init__()
        hidden, out = self.PROJECTION
        self.projection_head = nn.Sequential(
            nn.Linear(P, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
        )
        self.seq_transformer = SequenceTransformer(D, P, self.P_FF, H)

    def parts(self):
        """(patch embedding, class token, norm 1, attention, norm 2, MLP) under short names."""
        seq = self.seq_transformer
        attention, mlp = (residual.fn for residual in seq.transformer.layers[0])
        return seq.patch_to_embedding, seq.c_token, attention.norm, attention.fn, mlp.norm, mlp.fn

    def class_output(self, h, keep=None):
        """The class token after the layer: representation (B, T, D) -> (B, P).

        `keep` holds the class token's dropout factors in training (draw_keep); the other tokens' outputs are not
        used, and with one layer neither is their dropout.
        """
        embed, token, norm1, attention, norm2, mlp = self.parts()
        tokens = torch.cat([token.expand(len(h), 1, -1), embed(h)], dim=1)  # (B, 1 + T, P)
        tokens = tokens + on_class_token(attention(norm1(tokens)), keep, "out")
        tokens = tokens + on_class_token(mlp(norm2(tokens), lambda a: on_class_token(a, keep, "inner")), keep, "mlp")
        return tokens[:, 0]

    def forward(self, h, keep=None):
        """Projection (B, 18) of one view's representation (B, T, D). BatchNorm's statistics are those of the view."""
        return self.projection_head(self.class_output(h, keep))


def draw_keep(count, P, P_ff, generator):
    """Dropout factors of the class token for `count` visits: 0 with probability 0.1, else 1 / 0.9."""
    device = generator.device
    sizes = {"out": P, "inner": P_ff, "mlp": P}
    drawn = torch.rand(count, sum(sizes.values()), generator=generator, device=device) >= DROPOUT
    factors = drawn.float() / (1 - DROPOUT)
    return dict(zip(sizes, factors.split(list(sizes.values()), dim=1), strict=True))


def on_class_token(tokens, keep, name):
    """Multiply the class token (the first one) by its dropout factors, if there are any."""
    if keep is None:
        return tokens
    return torch.cat([tokens[:, :1] * keep[name][:, None], tokens[:, 1:]], dim=1)


def nt_xent(z1, z2, temperature=0.2):
    """NT-Xent of two views' projections (B, F): cosine similarity, 2B - 2 negatives, mean over 2B.

    One softmax over a row of the 2B x 2B similarities, the diagonal left out: its entries are the positive and the
    negatives, so no negatives are gathered.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1, eps=1e-8)
    similarity = (z @ z.T) / temperature  # (2B, 2B)
    similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    return F.cross_entropy(similarity, partner)


def losses(engine, model, head, views, masks, keep, both, gather=lambda classes: classes):
    """The two losses of a batch: views (2, B, T, C) -> (masked, contrastive), contrastive 0 unless `both`.

    `keep` holds the class token's dropout factors (draw_keep), None in eval mode; `gather` turns the class tokens
    (2, B, P) of this process's windows into those of the whole batch.
    """
    x = views.flatten(0, 1)  # (2B, T, C): the mean over both views is the mean of the views' losses
    reconstruction, classes = engine.forward(model, head, engine.hide(x, masks), masks.positions, keep, both)
    masked = F.mse_loss(reconstruction, take_steps(x, masks.positions))
    return masked, engine.contrast(head, gather(classes)) if both else torch.zeros_like(masked)


# -------------------------------------------------------------------------------------------------- classifier


class Classifier(nn.Module):
    """Representation to activity: Linear, sinusoidal positions, a transformer encoder layer, mean over time, Linear."""

    def __init__(self, cfg, classes):
        super().__init__()
        P = cfg["hidden_size"]
        self.embedding = nn.Linear(cfg["input_size"], P)
        layer = nn.TransformerEncoderLayer(
            P, cfg["num_heads"], cfg["dim_feedforward"], cfg["dropout_ratio"], batch_first=True
        )
        self.transformer_encoder = nn.TransformerEncoder(layer, cfg["num_layers"], enable_nested_tensor=False)
        self.fc = nn.Linear(P, classes)

    def forward(self, h, labels=None, weight=None):
        """Logits (B, classes) of representations (B, T, D); with labels (B,) also the mean cross-entropy."""
        h = self.embedding(h)
        h = h + sinusoidal_positions(h.shape[1], h.shape[2], h.device)
        logits = self.fc(self.transformer_encoder(h).mean(1))
        return logits if labels is None else (logits, F.cross_entropy(logits, labels, weight))


def sinusoidal_positions(T, P, device):
    """The position encoding of the transformer paper: (T, P), sine in even and cosine in odd columns."""
    time = torch.arange(T, device=device, dtype=torch.float32)[:, None]
    angle = time * 10000 ** (-torch.arange(0, P, 2, device=device, dtype=torch.float32) / P)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).view(T, P)
