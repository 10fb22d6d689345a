"""cpu.py against the plain losses and representation of models.py: the same up to rounding, gradients included."""

import pytest
import torch
from test_fast import ENCODER, MASK, ODD, assert_same, filled, run

import cpu
import fast
from models import Contrastive, MaskedModel, losses
from utils import UserError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_losses_and_gradients_are_the_plain_ones(both, training, dtype):
    assert_same(ENCODER, 16, both, training, dtype=dtype, step_losses=cpu.losses)


@pytest.mark.parametrize("B, dtype", [(2, torch.float64), (3, torch.float64), (33, torch.float64), (65, torch.float64),
                                      (33, torch.float32), (65, torch.float32)], ids=str)  # fmt: skip
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_odd_sizes_and_batches_over_a_chunk(monkeypatch, both, B, dtype):
    """33 and 65 windows are 66 and 130 visits: chunks end within and between the views, on any number of threads."""
    monkeypatch.setattr(cpu, "CHUNK", 16)
    assert_same(ODD, B, both, True, MASK | {"mask_prob": 0.3, "replace_prob": 0.5}, dtype, cpu.losses)


def test_chunks_cover_every_window_once():
    for n in (1, 63, 64, 65, 1000):
        assert [i for part in cpu.chunks(n) for i in range(n)[part]] == list(range(n))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize("cfg", [ENCODER, ODD], ids=["real size", "odd sizes"])
def test_the_representation_of_all_and_of_the_chosen_steps_is_the_encoders(cfg, dtype, tolerance):
    g, close = torch.Generator().manual_seed(0), {"rtol": tolerance, "atol": tolerance}
    encoder = filled(MaskedModel(cfg), g, dtype).transformer
    x = torch.randn(4, cfg["seq_len"], cfg["feature_num"], generator=g, dtype=dtype)
    x[:, 3:7] = 0  # a masked step: the embedding's variance is then the bias's alone
    h = encoder(x)
    torch.testing.assert_close(cpu.all_steps(encoder, cpu.encoder_weights(encoder, True), x), h, **close)
    torch.testing.assert_close(cpu.encoder(encoder)(x), h, **close)
    positions = torch.tensor([[0, 3, 36]] * 4)
    chosen = cpu.chosen_steps(encoder, cpu.encoder_weights(encoder, False), x, positions)
    torch.testing.assert_close(chosen, h[:, [0, 3, 36]], **close)


def test_other_encoders_encode_plainly():
    for change in ({"n_layers": 2}, {"emb_norm": False}):
        encoder = MaskedModel(ENCODER | change).transformer
        assert fast.encoder_for(encoder, torch.device("cpu")) is encoder


def test_large_scores_neither_overflow_nor_lose_the_gradients():
    """Scores of several hundred: softmax is then all but one-hot, here as in the plain path."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 5, 7, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weights = torch.softmax(1e3 * q.transpose(1, 2) @ k, dim=-1)
    assert_same_attention(cpu.Attention.apply(1e3 * q, k, with_ones(v)), v @ weights.transpose(1, 2), (q, k, v))
    h = k.transpose(1, 2)
    weights = torch.softmax(1e3 * q.transpose(1, 2) @ h.transpose(1, 2), dim=-1)
    assert_same_attention(cpu.SharedAttention.apply(1e3 * q.transpose(1, 2), h), weights @ h, (q, k))


def assert_same_attention(ours, plain, inputs):
    """The same finite output and gradients of all inputs."""
    torch.testing.assert_close(ours, plain)
    assert torch.isfinite(ours).all()
    grads = [torch.autograd.grad(out.square().sum(), inputs, retain_graph=True) for out in (ours, plain)]
    torch.testing.assert_close(*grads)


def with_ones(v):
    """v (N, K, T) with the row of ones that cpu.Attention adds the weights up with."""
    return torch.cat([v, torch.ones_like(v[:, :1])], dim=1)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3])
def test_scores_of_any_size_give_softmax_in_float32(scale):
    """Small ones go without softmax's shift of a row; all equal and very small ones, too, are told apart."""
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(4, 6, 9, generator=g) for _ in range(3))
    for sign in (1, -1):  # all scores of one sign: their exponentials all overflow, or all vanish
        a, b = scale * q.abs(), sign * k.abs()
        plain = v.double() @ torch.softmax(a.double().transpose(1, 2) @ b.double(), dim=-1).transpose(1, 2)
        torch.testing.assert_close(cpu.Attention.apply(a, b, with_ones(v)).double(), plain, rtol=1e-3, atol=1e-4)


def test_written_gradients_are_those_of_the_functions():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)  # noqa: E731
    attention = lambda q, k, v: cpu.Attention.apply(q, k, with_ones(v))  # noqa: E731
    assert torch.autograd.gradcheck(attention, (draw(3, 2, 5), draw(3, 2, 5), draw(3, 2, 5)))
    assert torch.autograd.gradcheck(cpu.SharedAttention.apply, (draw(3, 4, 2), draw(3, 5, 2)))
    forms = lambda h, G, lines: cpu.Forms.apply(h, torch.cat([G + G.T, lines]))  # noqa: E731
    assert torch.autograd.gradcheck(forms, (draw(5, 3), draw(3, 3), draw(2, 3)))


def test_what_the_class_token_reads_out_is_its_output():
    g = torch.Generator().manual_seed(0)
    head = filled(Contrastive(21), g, torch.float64)
    h = torch.randn(5, 37, 21, generator=g, dtype=torch.float64)
    weights = cpu.token_weights(head)
    ours = cpu.class_output(head, weights, *cpu.read_out(weights, h))
    torch.testing.assert_close(ours, head.class_output(h), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not cpu.has_amx(), reason="needs a CPU with AMX")
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_bfloat16_is_close_and_leaves_float32_gradients(both):
    """The losses to 1 %, each parameter's gradient to 5 % of its size."""
    step = fast.losses_for(ENCODER, torch.device("cpu"), "bf16")
    masked, contrastive, gradients, _ = run(step, ENCODER, 32, both, True, MASK, torch.float32)
    plain_masked, plain_contrastive, plain, _ = run(losses, ENCODER, 32, both, True, MASK, torch.float32)
    assert masked.dtype == contrastive.dtype == torch.float32
    torch.testing.assert_close(masked, plain_masked, rtol=0.01, atol=0)
    torch.testing.assert_close(contrastive, plain_contrastive, rtol=0.01, atol=0)
    largest = max(float(p.norm()) for p in plain.values() if p is not None)
    for name, gradient in gradients.items():
        if gradient is not None:
            assert gradient.dtype == torch.float32
            error = float((gradient - plain[name]).norm())
            assert error < 0.05 * max(float(plain[name].norm()), 1e-2 * largest), (name, error)


def test_bfloat16_is_refused_where_the_cpu_has_no_tiles(monkeypatch):
    assert cpu.dtype_of("fp32") is cpu.dtype_of(None) is None
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert cpu.dtype_of("bf16") is torch.bfloat16
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # an older PyTorch
    with pytest.raises(UserError, match="AMX"):
        fast.losses_for(ENCODER, torch.device("cpu"), "bf16")
