"""fast/exact.py against plain.py: the same losses, gradients and representations; and which engine a script gets."""

import inspect

import pytest
import torch
from conftest import MASK, ODD
from conftest import PAPER as ENCODER

import fast
import plain
from augment import draw_masks, instance_norm
from bookkeeping.commands import UserError
from fast.exact import Exact, Recorded, all_steps, chosen_steps, embed
from fast.parallel import Processes
from models import Contrastive, MaskedModel, draw_keep, losses
from plain import Alone, Plain

CPU = torch.device("cpu")
PLAIN, EXACT, ROUNDED = Plain(Alone(CPU)), Exact(Alone(CPU)), Exact(Alone(CPU), "bf16")
# In exact arithmetic the key's bias adds the same to all of a row's scores, so its gradient is 0; the fast path
# leaves it without one, and the plain path's is rounding noise.
NO_GRADIENT = "attn.proj_k.bias"


def filled(module, generator, dtype):
    """Random parameters everywhere, so that no bias, gamma or beta is at 0 or 1 where it might not matter."""
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5
        parameter.data = noise + (1 if parameter.dim() == 1 else 0)
    return module.to(dtype)


def run(engine, cfg, B, both, training, mask_cfg=MASK, dtype=torch.float32):
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


def assert_same(*args, dtype=torch.float32):
    """The fast losses and all their gradients equal the plain ones; `args` are those of run."""
    both = args[2]
    masked, contrastive, gradients, running = run(EXACT, *args, dtype=dtype)
    plain_masked, plain_contrastive, plain_gradients, plain_running = run(PLAIN, *args, dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(masked, plain_masked, rtol=tolerance, atol=0)
    torch.testing.assert_close(contrastive, plain_contrastive, rtol=tolerance, atol=0)
    assert float(contrastive) > 0 if both else float(contrastive) == 0
    largest = max(float(wanted.abs().max()) for wanted in plain_gradients.values() if wanted is not None)
    for name, wanted in plain_gradients.items():
        ours = gradients[name]
        if name.endswith(NO_GRADIENT):
            assert ours is None and wanted.abs().max() < 1e-5
        elif wanted is None:
            assert ours is None, name
        else:  # relative to the parameter's largest gradient; a bias before BatchNorm has none but rounding noise
            scale = max(float(wanted.abs().max()), 1e-3 * largest)
            furthest = float((ours - wanted).abs().max())
            assert furthest < tolerance * scale, (name, furthest, scale)
    for ours, wanted in zip(running, plain_running, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance)


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
    assert_same(ODD, B, both, True, MASK | {"replace_prob": 0.5}, dtype=torch.float64)


def test_the_representation_of_all_steps_is_the_encoders():
    g = torch.Generator().manual_seed(0)
    model = filled(MaskedModel(ODD), g, torch.float64)
    x = torch.randn(4, 37, 5, generator=g, dtype=torch.float64)
    h = model.transformer(x)
    torch.testing.assert_close(all_steps(model.transformer, x), h, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(EXACT.encoder(model.transformer)(x), h, rtol=1e-10, atol=1e-10)
    positions = torch.tensor([[0, 3, 36]] * 4)
    torch.testing.assert_close(chosen_steps(model.transformer, x, positions), h[:, [0, 3, 36]])


def test_a_channel_that_is_zero_everywhere_makes_no_nan():
    """A masked step has zeros in all channels: the embedding's variance is then the bias's alone."""
    g = torch.Generator().manual_seed(0)
    embedding = filled(MaskedModel(ENCODER), g, torch.float64).transformer.embed
    x = torch.zeros(2, 120, 6, dtype=torch.float64)
    torch.testing.assert_close(embed(embedding, x), embedding(x), rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------ bfloat16


@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_bfloat16_is_close_and_leaves_float32_gradients(both):
    masked, contrastive, gradients, _ = run(ROUNDED, ENCODER, 16, both, True)
    plain_masked, plain_contrastive, plain, _ = run(PLAIN, ENCODER, 16, both, True)
    assert masked.dtype == contrastive.dtype == torch.float32
    torch.testing.assert_close(masked, plain_masked, rtol=0.05, atol=0)
    torch.testing.assert_close(contrastive, plain_contrastive, rtol=0.1, atol=0)
    missing = [name for name, gradient in gradients.items() if gradient is None and plain[name] is not None]
    assert missing in ([], [f"model.transformer.{NO_GRADIENT}"])
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values() if gradient is not None)
    norms = [name for name in gradients if name.endswith((".gamma", ".beta"))]
    assert len(norms) == 8
    for name in norms:  # sums over thousands of rows, which are not taken in bfloat16
        assert (gradients[name] - plain[name]).norm() < 0.1 * plain[name].norm(), name


@pytest.mark.skipif(not fast.has_amx(), reason="needs a CPU with AMX")
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_bfloat16_on_a_cpu_with_tiles_is_close_and_leaves_float32_gradients(both):
    """The losses to 1 %, each parameter's gradient to 5 % of its size."""
    masked, contrastive, gradients, _ = run(ROUNDED, ENCODER, 32, both, True)
    plain_masked, plain_contrastive, plain, _ = run(PLAIN, ENCODER, 32, both, True)
    assert masked.dtype == contrastive.dtype == torch.float32
    torch.testing.assert_close(masked, plain_masked, rtol=0.01, atol=0)
    torch.testing.assert_close(contrastive, plain_contrastive, rtol=0.01, atol=0)
    largest = max(float(p.norm()) for p in plain.values() if p is not None)
    for name, gradient in gradients.items():
        if gradient is not None:
            assert gradient.dtype == torch.float32
            wanted = torch.zeros_like(gradient) if plain[name] is None else plain[name]
            error = float((gradient - wanted).norm())
            assert error < 0.05 * max(float(wanted.norm()), 1e-2 * largest), (name, error)


# ------------------------------------------------------------------------------------------ which engine


def test_other_encoders_take_the_plain_path_and_say_so():
    taken = fast.engine("cpu", encoder=ENCODER)
    assert (type(taken), taken.precision, taken.note) == (Exact, "fp32", "")
    for change in ({"n_layers": 2}, {"emb_norm": False}):
        taken = fast.engine("cpu", encoder=ENCODER | change)
        assert (type(taken), taken.precision) == (Recorded, "fp32") and "plain path" in taken.note
        encoder = MaskedModel(ENCODER | change).transformer
        assert EXACT.encoder(encoder) is encoder
    taken = fast.engine("cpu", encoder=ENCODER, plain=True)
    assert (type(taken), taken.note) == (Plain, ""), "it was asked for"


@pytest.mark.parametrize("cfg, asked", [(ENCODER, True), (ENCODER | {"n_layers": 2}, False)])
def test_the_plain_path_refuses_bfloat16(monkeypatch, cfg, asked):
    monkeypatch.setattr(fast, "has_amx", lambda: True)
    with pytest.raises(UserError, match="--precision bf16 is for the fast path.*leave it out"):
        fast.engine("cpu", encoder=cfg, precision="bf16", plain=asked)


def test_bfloat16_is_refused_where_the_cpu_has_no_tiles(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert fast.engine("cpu", encoder=ENCODER).dtype is None, "it is no default"
    taken = fast.engine("cpu", encoder=ENCODER, precision="bf16")
    assert (taken.precision, taken.dtype) == ("bf16", torch.bfloat16)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # an older PyTorch
    with pytest.raises(UserError, match="--precision bf16 on a CPU needs one with AMX"):
        fast.engine("cpu", encoder=ENCODER, precision="bf16")


def test_a_triton_that_cannot_build_leaves_the_slower_path():
    """Here there is none, or no GPU: either way fast/gpu.py does not work."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, where it may")
    taken = fast.on_a_gpu(Alone(CPU), "fp32", ENCODER, True)
    assert type(taken) is Exact and taken.note.startswith("slower path: Triton is not installed or cannot build")


@pytest.fixture
def on_a_gpu(monkeypatch):
    """fast.engine as if there were a GPU: a function (its compute capability, the engine's arguments) -> the engine."""
    usual = torch.get_float32_matmul_precision()

    def make(capability, **more):
        monkeypatch.setattr(fast, "Processes", lambda gpu: Alone(torch.device("cuda")))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(fast, "on_a_gpu", lambda team, precision, *_: Exact(team, precision))
        return fast.engine(**more)

    yield make
    torch.set_float32_matmul_precision(usual)


def test_the_default_precision_on_a_gpu(on_a_gpu):
    modern, old, two_passes = (8, 0), (7, 5), ENCODER | {"n_layers": 2}
    assert on_a_gpu(modern, encoder=ENCODER, on_gpu="bf16").precision == "bf16"
    assert on_a_gpu(modern, encoder=ENCODER).precision == "fp32"
    assert on_a_gpu(modern, on_gpu="tf32").precision == "tf32"
    assert on_a_gpu(modern, encoder=two_passes, on_gpu="bf16").precision == "fp32"
    assert on_a_gpu(modern, encoder=ENCODER, on_gpu="bf16", plain=True).precision == "fp32"
    assert on_a_gpu(old, encoder=ENCODER, on_gpu="bf16").precision == "fp32"
    with pytest.raises(UserError, match="--precision bf16 needs a GPU of compute capability 8.0"):
        on_a_gpu(old, encoder=ENCODER, precision="bf16")


def test_each_engine_on_a_gpu_sets_its_own_precision(on_a_gpu):
    """reproduce.py runs stage after stage in one process: pretraining's TF32 must not reach the next one."""
    for flags, wanted in (({"on_gpu": "bf16"}, "high"), ({}, "highest"), ({"on_gpu": "tf32"}, "high"), ({}, "highest")):
        on_a_gpu((9, 0), encoder=ENCODER, **flags)
        assert torch.get_float32_matmul_precision() == wanted


def test_plain_engines_can_stand_in_for_fast_ones():
    """The same door, and behind it the same methods with the same parameters: fast/ may be deleted."""
    assert inspect.signature(plain.engine) == inspect.signature(fast.engine)
    for simple, other in ((Plain, Exact), (Alone, Processes)):
        for name, method in inspect.getmembers(simple, inspect.isfunction):
            if not name.startswith("_"):
                found = list(inspect.signature(getattr(other, name)).parameters)
                assert len(found) == len(inspect.signature(method).parameters), (other, name)
    with pytest.raises(UserError, match="--precision bf16: the plain path computes in float32"):
        plain.engine("cpu", precision="bf16")
