"""The engines of fast/ against the plain one: the same losses and gradients, up to rounding, and which is chosen."""

import pytest
import torch

import fast
from augment import draw_masks, instance_norm
from bookkeeping.commands import UserError
from fast import exact
from models import Contrastive, MaskedModel, draw_keep, losses
from plain import Alone, Plain

ENCODER = {
    "feature_num": 6, "hidden": 72, "hidden_ff": 144, "n_layers": 1, "n_heads": 4, "seq_len": 120, "emb_norm": True
}  # fmt: skip
ODD = {"feature_num": 5, "hidden": 21, "hidden_ff": 13, "n_layers": 1, "n_heads": 3, "seq_len": 37, "emb_norm": True}
MASK = {"mask_ratio": 0.15, "max_gram": 10, "mask_prob": 0.8, "replace_prob": 0.0}
# In exact arithmetic the key's bias adds the same to all of a row's scores, so its gradient is 0; the fast path
# leaves it without one, and the plain path's is rounding noise.
CPU = Alone(torch.device("cpu"))
PLAIN, EXACT = Plain(CPU), exact.Exact(CPU)
NO_GRADIENT = "attn.proj_k.bias"


def filled(module, generator, dtype):
    """Random parameters everywhere, so that no bias, gamma or beta is at 0 or 1 where it might not matter."""
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5
        parameter.data = noise + (1 if parameter.dim() == 1 else 0)
    return module.to(dtype)


def run(engine, cfg, B, both, training, mask_cfg, dtype):
    """(masked, contrastive, gradients, running statistics) of one batch, the same for every engine."""
    g = torch.Generator().manual_seed(7)
    model = filled(MaskedModel(cfg), g, dtype).train(training)
    head = filled(Contrastive(cfg["hidden"]), g, dtype).train(training)
    T, C = cfg["seq_len"], cfg["feature_num"]
    views = instance_norm(torch.randn(2, B, T, C, generator=g)).to(dtype)
    masks = draw_masks(2 * B, T, C, mask_cfg, g)
    masks = masks._replace(values=masks.values.to(dtype))
    keep = {n: f.to(dtype) for n, f in draw_keep(2 * B, 100, head.P_FF, g).items()} if training else None
    masked, contrastive = losses(engine, model, head, views, masks, keep, both)
    (6 * masked + contrastive if both else masked).backward()
    modules = {"model": model, "head": head}
    gradients = {f"{m}.{n}": p.grad for m, module in modules.items() for n, p in module.named_parameters()}
    running = [buffer.clone() for buffer in head.buffers()]
    return masked.detach(), contrastive.detach(), gradients, running


def assert_same(cfg, B, both, training, mask_cfg=MASK, dtype=torch.float32):
    """The fast losses and all their gradients equal the plain ones."""
    args = (cfg, B, both, training, mask_cfg, dtype)
    masked, contrastive, gradients, running = run(EXACT, *args)
    plain_masked, plain_contrastive, plain_gradients, plain_running = run(PLAIN, *args)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(masked, plain_masked, rtol=tolerance, atol=0)
    torch.testing.assert_close(contrastive, plain_contrastive, rtol=tolerance, atol=0)
    assert float(contrastive) > 0 if both else float(contrastive) == 0
    largest = max(float(plain.abs().max()) for plain in plain_gradients.values() if plain is not None)
    for name, plain in plain_gradients.items():
        ours = gradients[name]
        if name.endswith(NO_GRADIENT):
            assert ours is None and plain.abs().max() < 1e-5
        elif plain is None:
            assert ours is None, name
        else:  # relative to the parameter's largest gradient; a bias before BatchNorm has none but rounding noise
            scale = max(float(plain.abs().max()), 1e-3 * largest)
            furthest = float((ours - plain).abs().max())
            assert furthest < tolerance * scale, (name, furthest, scale)
    for ours, plain in zip(running, plain_running, strict=True):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_losses_and_gradients_are_the_plain_ones(both, training, dtype):
    assert_same(ENCODER, 16, both, training, dtype=dtype)


@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_windows_filled_with_random_values(both):
    assert_same(ENCODER, 8, both, True, MASK | {"mask_prob": 0.3, "replace_prob": 0.7})


@pytest.mark.parametrize("B", [2, 3, 33, 65])
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_odd_sizes(both, B):
    assert_same(ODD, B, both, True, MASK | {"replace_prob": 0.5}, torch.float64)


def test_the_representation_of_all_steps_is_the_encoders():
    g = torch.Generator().manual_seed(0)
    model = filled(MaskedModel(ODD), g, torch.float64)
    x = torch.randn(4, 37, 5, generator=g, dtype=torch.float64)
    h = model.transformer(x)
    torch.testing.assert_close(exact.all_steps(model.transformer, x), h, rtol=1e-10, atol=1e-10)
    positions = torch.tensor([[0, 3, 36]] * 4)
    torch.testing.assert_close(exact.chosen_steps(model.transformer, x, positions), h[:, [0, 3, 36]])


def test_a_channel_that_is_zero_everywhere_makes_no_nan():
    """A masked step has zeros in all channels: the embedding's variance is then the bias's alone."""
    g = torch.Generator().manual_seed(0)
    embedding = filled(MaskedModel(ENCODER), g, torch.float64).transformer.embed
    x = torch.zeros(2, 120, 6, dtype=torch.float64)
    torch.testing.assert_close(exact.embed(embedding, x), embedding(x), rtol=1e-10, atol=1e-10)


OTHERS = [ENCODER | {"n_layers": 2}, ENCODER | {"emb_norm": False}]


def test_which_engine_is_chosen():
    engine = fast.engine("cpu", encoder=ENCODER, training=True, on_gpu="bf16")
    assert (engine.name, engine.precision, engine.note) == ("exact", "fp32", "")
    engine = fast.engine("cpu", encoder=ENCODER, plain=True)
    assert (engine.name, engine.precision, engine.note) == ("plain", "fp32", "")
    for cfg in OTHERS:
        engine = fast.engine("cpu", encoder=cfg)
        assert engine.name == "plain" and "plain path: the shortcuts need" in engine.note
        encoder = MaskedModel(cfg).transformer
        assert EXACT.encoder(encoder) is encoder


@pytest.mark.parametrize("cfg, plain", [(ENCODER, True), (OTHERS[0], False)])
def test_the_plain_path_refuses_bfloat16(monkeypatch, cfg, plain):
    monkeypatch.setattr(fast, "has_amx", lambda: True)
    with pytest.raises(UserError, match="--precision bf16 is for the fast path.*leave it out"):
        fast.engine("cpu", encoder=cfg, precision="bf16", plain=plain)


def test_a_triton_that_cannot_build_leaves_the_slower_path():
    """Here there is none, or no GPU: either way fast/gpu.py does not work."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, where it may")
    engine = fast.on_a_gpu(CPU, "fp32", ENCODER, True)
    assert engine.name == "exact" and "slower path: Triton" in engine.note


@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_bfloat16_is_close_and_leaves_float32_gradients(both):
    half = exact.Exact(CPU, "bf16")
    masked, contrastive, gradients, _ = run(half, ENCODER, 16, both, True, MASK, torch.float32)
    plain_masked, plain_contrastive, plain, _ = run(PLAIN, ENCODER, 16, both, True, MASK, torch.float32)
    assert masked.dtype == contrastive.dtype == torch.float32
    torch.testing.assert_close(masked, plain_masked, rtol=0.05, atol=0)
    torch.testing.assert_close(contrastive, plain_contrastive, rtol=0.1, atol=0)
    missing = [name for name, gradient in gradients.items() if gradient is None and plain[name] is not None]
    assert missing in ([], [f"model.transformer.{NO_GRADIENT}"])
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values() if gradient is not None)


@pytest.mark.skipif(not fast.has_amx(), reason="needs a CPU with AMX")
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_bfloat16_on_a_cpu_with_tiles_is_close_and_leaves_float32_gradients(both):
    """The losses to 1 %, each parameter's gradient to 5 % of its size."""
    half = fast.engine("cpu", encoder=ENCODER, precision="bf16")
    masked, contrastive, gradients, _ = run(half, ENCODER, 32, both, True, MASK, torch.float32)
    plain_masked, plain_contrastive, plain, _ = run(PLAIN, ENCODER, 32, both, True, MASK, torch.float32)
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
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert fast.engine("cpu", encoder=ENCODER, precision="bf16").dtype is torch.bfloat16
    assert fast.engine("cpu", encoder=ENCODER).dtype is None
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # an older PyTorch
    with pytest.raises(UserError, match="AMX"):
        fast.engine("cpu", encoder=ENCODER, precision="bf16")
