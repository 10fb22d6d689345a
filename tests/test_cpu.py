"""cpu.py against the plain losses and representation of models.py: the same up to rounding, gradients included."""

import pytest
import torch
from test_fast import ENCODER, MASK, ODD, assert_same, filled

import cpu
from models import Contrastive, MaskedModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_losses_and_gradients_are_the_plain_ones(both, training, dtype):
    assert_same(ENCODER, 16, both, training, dtype=dtype, step_losses=cpu.losses)


@pytest.mark.parametrize("B", [2, 3, 33, 65])
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_odd_sizes_and_batches_over_a_chunk(monkeypatch, both, B):
    """33 and 65 windows are 66 and 130 visits: chunks end within and between the views, on any number of threads."""
    monkeypatch.setattr(cpu, "CHUNK", 16)
    assert_same(ODD, B, both, True, MASK | {"mask_prob": 0.3, "replace_prob": 0.5}, torch.float64, cpu.losses)


def test_chunks_cover_every_window_once():
    for n in (1, 63, 64, 65, 1000):
        assert [i for part in cpu.chunks(n) for i in range(n)[part]] == list(range(n))


@pytest.mark.parametrize("cfg", [ENCODER, ODD], ids=["real size", "odd sizes"])
def test_the_representation_of_all_and_of_the_chosen_steps_is_the_encoders(cfg):
    g = torch.Generator().manual_seed(0)
    encoder = filled(MaskedModel(cfg), g, torch.float64).transformer
    x = torch.randn(4, cfg["seq_len"], cfg["feature_num"], generator=g, dtype=torch.float64)
    x[:, 3:7] = 0  # a masked step: the embedding's variance is then the bias's alone
    h = encoder(x)
    torch.testing.assert_close(cpu.all_steps(encoder, cpu.encoder_weights(encoder, True), x), h, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cpu.encoder(encoder)(x), h, rtol=1e-9, atol=1e-9)
    positions = torch.tensor([[0, 3, 36]] * 4)
    chosen = cpu.chosen_steps(encoder, cpu.encoder_weights(encoder, False), x, positions)
    torch.testing.assert_close(chosen, h[:, [0, 3, 36]], rtol=1e-9, atol=1e-9)


def test_other_encoders_encode_plainly():
    for change in ({"n_layers": 2}, {"emb_norm": False}):
        encoder = MaskedModel(ENCODER | change).transformer
        assert cpu.encoder(encoder) is encoder


def test_large_scores_neither_overflow_nor_lose_the_gradients():
    """Scores of several hundred: softmax is then all but one-hot, here as in the plain path."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 5, 7, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))
    plain = v @ torch.softmax(1e3 * q.transpose(1, 2) @ k, dim=-1).transpose(1, 2)
    ours = cpu.Attention.apply(1e3 * q, k, v)
    torch.testing.assert_close(ours, plain)
    assert torch.isfinite(ours).all()
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True) for out in (ours, plain)]
    torch.testing.assert_close(*grads)


def test_written_gradients_are_those_of_the_functions():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)  # noqa: E731
    assert torch.autograd.gradcheck(cpu.Attention.apply, (draw(3, 2, 5), draw(3, 2, 5), draw(3, 2, 5)))
    assert torch.autograd.gradcheck(cpu.SharedAttention.apply, (draw(3, 4, 2), draw(3, 5, 2)))
    G = draw(3, 3)
    assert torch.autograd.gradcheck(lambda h, G: cpu.QuadraticForm.apply(h, G + G.T), (draw(5, 3), G))


def test_what_the_class_token_reads_out_is_its_output():
    g = torch.Generator().manual_seed(0)
    head = filled(Contrastive(21), g, torch.float64)
    h = torch.randn(5, 37, 21, generator=g, dtype=torch.float64)
    weights = cpu.token_weights(head)
    ours = cpu.class_output(head, weights, *cpu.read_out(weights, h))
    torch.testing.assert_close(ours, head.class_output(h), rtol=1e-9, atol=1e-9)
