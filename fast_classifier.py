"""The classifier on a CPU: the logits of models.Classifier, where drawing dropout does not take half of a step.

Each dropout factor takes 16 random bits of a fast generator, compared in floating point (a comparison to booleans is
not vectorised there), and the feed-forward of 2048 features goes a thousand steps at a time, so that no batch's
worth of them is kept. tests/test_fast_classifier.py holds it against the plain module, gradients and factors included.

Axes as in models.py; R rows are steps of a batch, one after another.
"""

import numpy as np
import torch
import torch.nn.functional as F

from models import merge_heads, sinusoidal_positions, split_heads

ROWS = 1024  # steps that go through the feed-forward together


class Dropout:
    """Draws dropout of probability p rounded to a multiple of 2^-16 (0.1 to 0.100006); what is kept is scaled for that.

    All that it draws is a function of `seed` and the order of the calls.
    """

    def __init__(self, p, seed):
        self.rng = np.random.SFC64(seed)
        self.dropped = round(p * 2**16)  # of the 2^16 numbers that 16 bits make
        self.scale = 2**16 / (2**16 - self.dropped)

    @classmethod
    def of(cls, model, generator):
        """That of a models.Classifier, which has one probability throughout, for the epoch of `generator`; or None."""
        p = model.transformer_encoder.layers[0].dropout.p
        return cls(p, generator.initial_seed()) if p else None

    def draw(self, *shape):
        """16 random bits a factor: int16, of which the lowest `dropped` numbers stand for 0."""
        count = int(np.prod(shape))
        return torch.from_numpy(self.rng.random_raw(-(-count // 4)).view(np.int16)[:count]).view(shape)

    def apply(self, x, bits):
        """x where it is kept, 0 where it is dropped, not yet scaled."""
        # this backward function is the one vectorised "x where another number is above a threshold, else 0"
        kept_above = self.dropped - 2**15 - 1
        return torch.ops.aten.threshold_backward(x, bits.to(x.dtype), kept_above)

    def __call__(self, x):
        return Dropped.apply(x, self.draw(*x.shape), self)


class Dropped(torch.autograd.Function):
    """Dropout by drawn bits: two bytes an element are kept for the backward pass."""

    @staticmethod
    def forward(ctx, x, bits, dropout):
        ctx.bits, ctx.dropout = bits, dropout
        return dropout.apply(x, bits).mul_(dropout.scale)

    @staticmethod
    def backward(ctx, g):
        return ctx.dropout.apply(g, ctx.bits).mul_(ctx.dropout.scale), None, None


class FeedForward(torch.autograd.Function):
    """Linear, ReLU, dropout, Linear of rows x (R, P), ROWS at a time; dropout None is none.

    Kept for the backward pass is only what the second Linear read: where it is above 0, ReLU and dropout both let the
    number through. The factor of what is kept goes to the P features after it.
    """

    @staticmethod
    def forward(ctx, x, W1, b1, W2, b2, dropout):
        scale = dropout.scale if dropout else 1.0
        inner, out = [], []
        for part in x.split(ROWS):
            a = torch.addmm(b1, part, W1.T).relu_()
            if dropout:
                a = dropout.apply(a, dropout.draw(*a.shape))
            out.append(torch.addmm(b2, a, W2.T, alpha=scale))
            inner += [a] if ctx.needs_input_grad[1] else []
        ctx.save_for_backward(x, W1, W2, *inner)
        ctx.scale = scale
        return torch.cat(out)

    @staticmethod
    def backward(ctx, g):
        x, W1, W2, *inner = ctx.saved_tensors
        dx = torch.empty_like(x)
        dW1, db1, dW2 = torch.zeros_like(W1), torch.zeros_like(W1[:, 0]), torch.zeros_like(W2)
        scaled = g * ctx.scale
        for a, part, out, rows in zip(inner, x.split(ROWS), scaled.split(ROWS), dx.split(ROWS), strict=True):
            dW2.addmm_(out.T, a)
            da = torch.ops.aten.threshold_backward(out @ W2, a, 0)
            dW1.addmm_(da.T, part)
            db1 += da.sum(0)
            torch.mm(da, W1, out=rows)
        return dx, dW1, db1, dW2, g.sum(0), None


def attention(module, h, dropout):
    """nn.MultiheadAttention of h (B, T, P) with itself, dropout on its weights."""
    q, k, v = F.linear(h, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (split_heads(part, module.num_heads) for part in (q * module.head_dim**-0.5, k, v))
    if dropout:
        a = dropout(torch.softmax(q @ k.transpose(2, 3), dim=-1)) @ v  # (B, H, T, K)
    else:
        a = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return module.out_proj(merge_heads(a))


def logits(model, h, dropout=None):
    """models.Classifier's logits (B, classes) of representations h (B, T, D); `dropout` draws it in training.

    Without it, as in eval mode, whatever the module's mode is.
    """
    h = model.embedding(h)
    h = h + sinusoidal_positions(h.shape[1], h.shape[2], h.device).to(h.dtype)
    drop = dropout or (lambda x: x)
    for layer in model.transformer_encoder.layers:  # post-norm, as torch has them by default
        h = layer.norm1(h + drop(attention(layer.self_attn, h, dropout)))
        W1, W2 = layer.linear1, layer.linear2
        inner = FeedForward.apply(h.flatten(0, 1), W1.weight, W1.bias, W2.weight, W2.bias, dropout)
        h = layer.norm2(h + drop(inner.view_as(h)))
    return model.fc(h.mean(1))
