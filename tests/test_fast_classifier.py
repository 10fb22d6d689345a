"""fast/classifier.py against the plain module: the same logits and gradients, and dropout with the right factors."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fast
from fast import classifier
from fast.classifier import Dropout, logits
from fast.exact import Exact
from models import Classifier
from plain import Alone, Plain

CONFIG = dict(input_size=7, hidden_size=12, num_heads=3, dim_feedforward=20, dropout_ratio=0.3, num_layers=2)


class Factors(nn.Module):
    """Multiplies by given dropout factors, one set a call."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout

    def forward(self, x):
        bits = self.dropout.draw(*x.shape)
        return x * (bits >= self.dropout.dropped - 2**15) * self.dropout.scale


def plain_logits(model, h, dropout, monkeypatch):
    """The plain module in training mode, its dropouts replaced by the factors that `dropout` draws."""
    model = copy.deepcopy(model).train()
    factors = Factors(dropout)
    for layer in model.transformer_encoder.layers:
        layer.dropout = layer.dropout1 = layer.dropout2 = factors

    def attention(q, k, v, mask, p, causal):
        assert mask is None and p == model.transformer_encoder.layers[0].self_attn.dropout and not causal
        return factors(torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, dim=-1)) @ v

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    out = model(h)
    monkeypatch.undo()
    return out, model


def make(dtype, B=5, T=11):
    torch.manual_seed(0)
    model = Classifier(CONFIG, 4).to(dtype)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no bias at 0, no weight of a norm at 1
    return model, torch.randn(B, T, 7, dtype=dtype), torch.randint(4, (B,))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("rows", [1000, 11, 55, 7], ids="{} rows".format)
def test_the_same_factors_give_the_same_loss_and_gradients(monkeypatch, dtype, tolerance, rows):
    """The plain module draws a layer's feed-forward at once, ours in pieces: multiples of 4 bits' words line up."""
    monkeypatch.setattr(classifier, "ROWS", rows)
    model, h, y = make(dtype)
    ours = F.cross_entropy(logits(model, h, Dropout(0.3, 5)), y)
    ours.backward()
    plain, reference = plain_logits(model, h, Dropout(0.3, 5), monkeypatch)
    plain = F.cross_entropy(plain, y)
    plain.backward()
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=0)
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        # relative to the largest gradient; that of the keys' bias is rounding noise around 0
        furthest = float((parameter.grad - other.grad).abs().max())
        assert furthest < tolerance * max(float(other.grad.abs().max()), 1e-2), name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_without_dropout_it_is_the_module_in_eval_mode(dtype, tolerance):
    model, h, _ = make(dtype)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, h), model.eval()(h), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("p", [0.1, 0.5, 2**-16])
def test_factors_are_dropped_with_the_stated_probability_and_independently(p):
    count = 1 << 20
    kept = Dropout(p, 3)(torch.ones(count))
    exact = round(p * 2**16) / 2**16
    assert set(kept.unique().tolist()) <= {0.0, float(np.float32(1 / (1 - exact)))}
    gone = kept == 0
    spread = (exact * (1 - exact) / count) ** 0.5
    assert abs(float(gone.double().mean()) - exact) < 5 * spread
    for lag in (1, 2, 3, 4, 2048):  # lags 1 to 3 share a word of the generator
        both = float((gone[lag:] & gone[:-lag]).double().mean())
        assert abs(both - exact**2) < 5 * (exact**2 / count) ** 0.5 + 2 * exact * 5 * spread


def test_all_numbers_of_16_bits_are_drawn():
    drawn = Dropout(0.1, 0).draw(1 << 21)
    assert drawn.dtype == torch.int16 and len(drawn.unique()) == 2**16


def test_factors_are_a_function_of_the_seed_and_the_order():
    model, h, _ = make(torch.float32)
    first, second = (logits(model, h, Dropout(0.3, 5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, logits(model, h, Dropout(0.3, 6)))
    again = Dropout(0.3, 5)
    assert not torch.equal(logits(model, h, again), logits(model, h, again))


def test_a_dropout_of_zero_draws_nothing():
    for nearly in (0.0, 1e-6):  # below half of 2^-16
        model = Classifier(CONFIG | {"dropout_ratio": nearly}, 4)
        assert Dropout.of(model, torch.Generator()) is None
    assert Dropout.of(Classifier(CONFIG, 4), torch.Generator().manual_seed(1)).dropped == round(0.3 * 2**16)


def test_the_engines_of_a_cpu_train_and_predict_with_it():
    """In training the fast one draws dropout here; where none is drawn, and in the plain one, the module computes."""
    team, generator = Alone(torch.device("cpu")), torch.Generator().manual_seed(5)
    exact, plain, (model, h, _) = Exact(team), Plain(team), make(torch.float32)
    dropout = exact.dropout(model, generator)
    assert torch.equal(exact.logits(model, h, dropout), logits(model, h, Dropout.of(model, generator)))
    assert plain.dropout(model, generator) is None
    model.eval()
    with torch.no_grad():
        assert torch.equal(exact.logits(model, h), model(h)) and torch.equal(plain.logits(model, h), model(h))
        found = Exact(team, "bf16").logits(model, h) if fast.has_amx() else model(h)
    torch.testing.assert_close(found, model(h), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_above_a_threshold_are_kept_exactly(dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1001, generator=g).to(dtype)
    bits = torch.randint(-(2**15), 2**15, (1001,), generator=g).to(torch.int16)
    assert torch.equal(classifier.above(x, bits, -26215), torch.where(bits > -26215, x, 0))
    other = torch.cat([torch.randn(998, generator=g), torch.tensor([0.0, -0.0, 1e-38])]).to(dtype)
    expected = torch.where(other > 0, x, 0)
    assert torch.equal(classifier.positive(x, other), expected)
    assert classifier.positive(x, other, out=x).data_ptr() == x.data_ptr() and torch.equal(x, expected)


@pytest.mark.skipif(not fast.has_amx(), reason="needs a CPU with AMX")
def test_bfloat16_is_close_and_leaves_float32_gradients():
    """With the same factors: the loss to 1 %, each parameter's gradient to 5 % of its size."""
    model, h, y = make(torch.float32, B=32)
    found = []
    for dtype in (None, torch.bfloat16):
        model.zero_grad()
        out = logits(model, h, Dropout(0.3, 5), dtype)
        assert out.dtype == torch.float32
        loss = F.cross_entropy(out, y)
        loss.backward()
        found.append((loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    (loss, gradients), (rounded, close) = found
    torch.testing.assert_close(rounded, loss, rtol=0.01, atol=0)
    largest = max(float(gradient.norm()) for gradient in gradients)
    for one, other, (name, _) in zip(gradients, close, model.named_parameters(), strict=True):
        assert float((one - other).norm()) < 0.05 * max(float(one.norm()), 1e-2 * largest), name
    with torch.no_grad():
        torch.testing.assert_close(logits(model, h, None, torch.bfloat16), logits(model, h), rtol=0.02, atol=0.02)
