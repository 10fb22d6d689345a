"""The classifier on a CPU: the logits of models.Classifier, where drawing dropout does not take half of a step.

Each dropout factor takes 16 random bits of a fast generator, and the feed-forward of 2048 features goes some thousand
steps at a time, so that few features are in work at once. With `dtype` bfloat16, on a CPU with AMX, the
layers' products and attention are made in it, LayerNorms and residuals in float32. tests/test_fast_classifier.py holds
it against the plain module, gradients and factors included.

Axes as in models.py; R rows are steps of a batch, one after another.
"""

import numpy as np
import torch
import torch.nn.functional as F

from models import merge_heads, sinusoidal_positions, split_heads

ROWS = 1024  # steps that go through the feed-forward together, in bfloat16 three times as many


def linear(h, W, b):
    """F.linear in the type of h."""
    return F.linear(h, W.to(h.dtype), b.to(h.dtype))


def above(x, numbers, threshold, out=None):
    """x where another number is above a threshold, else 0.

    This backward function is the one vectorised operation of that kind. bfloat16 goes through it as 16-bit integers,
    so drawn bits need no conversion.
    """
    if x.dtype == torch.bfloat16:
        out = None if out is None else out.view(torch.int16)
        return above(x.view(torch.int16), numbers, threshold, out).view(x.dtype)
    numbers = numbers.to(x.dtype)
    if out is None:
        return torch.ops.aten.threshold_backward(x, numbers, threshold)
    return torch.ops.aten.threshold_backward.grad_input(x, numbers, threshold, grad_input=out)


def positive(x, numbers, out=None):
    """x where another number is above 0, else 0: a bfloat16 is where its bits as an integer are (a NaN may go as 0)."""
    return above(x, numbers.view(torch.int16) if numbers.dtype == torch.bfloat16 else numbers, 0, out)


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
        return cls(p, generator.initial_seed()) if round(p * 2**16) else None

    def draw(self, *shape):
        """16 random bits a factor: int16, of which the lowest `dropped` numbers stand for 0."""
        count = int(np.prod(shape))
        return torch.from_numpy(self.rng.random_raw(-(-count // 4)).view(np.int16)[:count]).view(shape)

    def apply(self, x, bits, out=None):
        """x where it is kept, 0 where it is dropped, not yet scaled."""
        return above(x, bits, self.dropped - 2**15 - 1, out)

    def keep(self, x):
        """x where it is kept, with gradients, not yet scaled."""
        return Dropped.apply(x, self.draw(*x.shape), self)

    def __call__(self, x):
        return self.keep(x * self.scale)


class Dropped(torch.autograd.Function):
    """Dropout by drawn bits: two bytes an element are kept for the backward pass."""

    @staticmethod
    def forward(ctx, x, bits, dropout):
        ctx.bits, ctx.dropout = bits, dropout
        return dropout.apply(x, bits)

    @staticmethod
    def backward(ctx, g):
        return ctx.dropout.apply(g, ctx.bits), None, None


class FeedForward(torch.autograd.Function):
    """Linear, ReLU, dropout, Linear of rows x (R, P), some ROWS at a time; dropout None is none.

    Kept for the backward pass is only what the second Linear read: where it is above 0, ReLU and dropout both let the
    number through. The factor of what is kept is in W2. The first bias is the weight of a feature that is 1. Products
    are made in `dtype`, their sums over the pieces in that of x.
    """

    @staticmethod
    def forward(ctx, x, W1, b1, W2, b2, dropout, dtype, train):
        R, P = x.shape
        fill = -(P + 1) % 4  # rows that end on a register's boundary
        rows = torch.cat([x, x.new_ones(R, 1), x.new_zeros(R, fill)], dim=1).to(dtype)
        W1 = F.pad(torch.cat([W1, b1[:, None]], dim=1), (0, fill)).to(dtype)
        ctx.scale = dropout.scale if dropout else 1.0
        W2 = (W2 * ctx.scale).to(dtype)
        ctx.size = ROWS * (3 if dtype == torch.bfloat16 else 1)
        inner, out = [], torch.empty_like(x, dtype=dtype)
        for part, result in zip(rows.split(ctx.size), out.split(ctx.size), strict=True):
            a = part @ W1.T
            positive(a, a, out=a)
            if dropout:
                dropout.apply(a, dropout.draw(*a.shape), out=a)
            torch.mm(a, W2.T, out=result)
            inner += [a] if train else []
        ctx.save_for_backward(rows, W1, W2, *inner)
        return out.to(x.dtype) + b2

    @staticmethod
    def backward(ctx, g):
        rows, W1, W2, *inner = ctx.saved_tensors
        out, dx = g.to(W1.dtype), torch.empty_like(rows)
        dW1, dW2 = torch.zeros_like(W1, dtype=g.dtype), torch.zeros_like(W2, dtype=g.dtype)
        parts = (tensor.split(ctx.size) for tensor in (rows, out, dx))
        for a, part, part_out, part_dx in zip(inner, *parts, strict=True):
            dW2 += part_out.T @ a
            da = part_out @ W2
            positive(da, a, out=da)
            dW1 += da.T @ part
            torch.mm(da, W1, out=part_dx)
        P = g.shape[1]
        return dx[:, :P].to(g.dtype), dW1[:, :P], dW1[:, P], dW2 * ctx.scale, g.sum(0), None, None, None


def attention(module, h, dropout, dtype):
    """nn.MultiheadAttention of h (B, T, P) with itself, dropout on its weights."""
    q, k, v = linear(h.to(dtype), module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (split_heads(part, module.num_heads) for part in (q * module.head_dim**-0.5, k, v))
    if dropout:
        a = dropout.keep(torch.softmax(q @ k.transpose(2, 3), dim=-1)) @ (v * dropout.scale)  # (B, H, T, K)
    else:
        a = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return linear(merge_heads(a), module.out_proj.weight, module.out_proj.bias).to(h.dtype)


def logits(model, h, dropout=None, dtype=None):
    """models.Classifier's logits (B, classes) of representations h (B, T, D); `dropout` draws it in training.

    Without it, as in eval mode, whatever the module's mode is. The layers' products are made in `dtype` (that of h).
    """
    dtype = dtype or h.dtype
    h = linear(h.to(dtype), model.embedding.weight, model.embedding.bias).to(h.dtype)
    h = h + sinusoidal_positions(h.shape[1], h.shape[2], h.device).to(h.dtype)
    drop, train = dropout or (lambda x: x), torch.is_grad_enabled()
    for layer in model.transformer_encoder.layers:  # post-norm, as torch has them by default
        h = layer.norm1(h + drop(attention(layer.self_attn, h, dropout, dtype)))
        W1, W2 = layer.linear1, layer.linear2
        inner = FeedForward.apply(h.flatten(0, 1), W1.weight, W1.bias, W2.weight, W2.bias, dropout, dtype, train)
        h = layer.norm2(h + drop(inner.view_as(h)))
    return model.fc(h.mean(1))
