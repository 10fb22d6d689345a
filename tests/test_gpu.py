"""fast/gpu.py against plain.py, function by function and as a whole; needs a CUDA GPU with Triton."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from conftest import MASK, ODD
from conftest import PAPER as ENCODER

import fast
from augment import Masks, add_spans, draw_masks, hide, instance_norm
from fast.exact import Exact
from models import Contrastive, Embedding, MaskedModel, draw_keep, losses, nt_xent
from plain import Alone, Plain

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU here", allow_module_level=True)
triton = pytest.importorskip("triton", reason="no Triton here")
gpu = importlib.import_module("fast.gpu")

TEAM = Alone(torch.device("cuda"))
PLAIN, GPU, ROUNDED = Plain(TEAM), gpu.Gpu(TEAM), gpu.Gpu(TEAM, "bf16")
NO_GRADIENT = "attn.proj_k.bias"  # in exact arithmetic it has none (see tests/test_fast.py)


@pytest.fixture(autouse=True)
def full_precision():
    """Other tests' TF32 must not reach these."""
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


def filled(module, generator):
    """Random parameters everywhere, so that no bias, gamma or beta is at 0 or 1 where it might not matter."""
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5
        parameter.data = noise + (1 if parameter.dim() == 1 else 0)
    return module.cuda()


def run(engine, cfg, B, both, mask_cfg=MASK, training=True):
    """(losses, gradients by name, running statistics) of one batch, the same for every engine."""
    g = torch.Generator().manual_seed(7)
    model, head = filled(MaskedModel(cfg), g).train(training), filled(Contrastive(cfg["hidden"]), g).train(training)
    T, C = cfg["seq_len"], cfg["feature_num"]
    views = instance_norm(torch.randn(2, B, T, C, generator=g)).cuda()
    masks = Masks(*(part.cuda() for part in draw_masks(2 * B, T, C, mask_cfg, g)))
    keep = {n: f.cuda() for n, f in draw_keep(2 * B, 100, head.P_FF, g).items()} if training else None
    masked, contrastive = losses(engine, model, head, views, masks, keep, both)
    (6 * masked + contrastive if both else masked).backward()
    named = [*model.named_parameters("model"), *head.named_parameters("head")]
    gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    return torch.stack([masked, contrastive]).detach(), gradients, [buffer.clone() for buffer in head.buffers()]


def assert_same(ours, plain, tolerance, loss_tolerance):
    torch.testing.assert_close(ours[0], plain[0], rtol=loss_tolerance, atol=0)
    for mine, theirs in zip(ours[2], plain[2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=10 * loss_tolerance, atol=loss_tolerance)
    largest = max(float(gradient.norm()) for gradient in plain[1].values())
    for name, wanted in plain[1].items():
        if name.endswith(NO_GRADIENT):
            assert not ours[1][name].any() and wanted.norm() < 1e-5 * largest
            continue
        error, scale = float((ours[1][name] - wanted).norm()), max(float(wanted.norm()), 1e-2 * largest)
        assert error <= tolerance * scale, (name, error, scale)
    assert ours[1].keys() == plain[1].keys()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
@pytest.mark.parametrize("cfg, B", [(ENCODER, 96), (ENCODER, 17), (ODD, 33)], ids=["real", "odd batch", "odd sizes"])
def test_losses_and_gradients_are_the_plain_ones_in_float32(cfg, B, both, training):
    args = (cfg, B, both, MASK, training)
    assert_same(run(GPU, *args), run(PLAIN, *args), 1e-4, 1e-5)


@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_windows_filled_with_random_values(both):
    args = (ENCODER, 32, both, MASK | {"mask_prob": 0.3, "replace_prob": 0.7})
    assert_same(run(GPU, *args), run(PLAIN, *args), 1e-4, 1e-5)


@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
@pytest.mark.parametrize("cfg, B, times", [(ENCODER, 256, 1), (ODD, 33, 2)], ids=["real", "odd sizes"])
def test_tf32_and_bfloat16_are_close(cfg, B, times, both):
    """Of few windows the rounding errors average out less: `times` as much is allowed."""
    plain = run(PLAIN, cfg, B, both)
    torch.set_float32_matmul_precision("high")
    assert_same(run(GPU, cfg, B, both), plain, times * 1e-2, times * 1e-3)
    ours = run(ROUNDED, cfg, B, both)
    assert_same(ours, plain, times * 5e-2, times * 5e-3)
    assert all(gradient.dtype == torch.float32 for gradient in ours[1].values())


@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
def test_the_same_step_gives_the_same_bits(both):
    one, two = (run(ROUNDED, ENCODER, 64, both) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])


def both_ways(ours, plain, inputs):
    """Output and input gradients of two functions of the same inputs, under the same random gradient."""
    results = []
    for fn in (ours, plain):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = fn(*leaves)
        (out * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return zip(*results, strict=True)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).cuda()


def norm(z, gamma, beta):
    return F.layer_norm(z, z.shape[-1:], gamma, beta, 1e-12)


def residual_norm(x, W, b, gamma, beta):
    return norm(x + F.linear(x, W, b), gamma, beta)


def gelu_norm(x, W, b, gamma, beta):
    return norm(F.gelu(F.linear(x, W, b)), gamma, beta)


def feed_forward_norm(x, V, c, W, b, gamma, beta):
    return norm(x + F.linear(F.gelu(F.linear(x, V, c)), W, b), gamma, beta)


@pytest.mark.parametrize("n, D", [(1, 72), (1000, 72), (517, 21), (64, 128)])
def test_layer_norms_and_feed_forward(n, D):
    x, W, b, g, beta, V, c = (randn(*s) for s in ((n, D), (D, D), (D,), (D,), (D,), (2 * D, D), (2 * D,)))
    for ours, plain, inputs in (
        (gpu.ResidualNorm.apply, residual_norm, (x, W, b, g, beta)),
        (gpu.GeluNorm.apply, gelu_norm, (x, W, b, g, beta)),
        (gpu.FeedForwardNorm.apply, feed_forward_norm, (x, V, c, randn(D, 2 * D), b, g, beta)),
    ):
        for mine, theirs in both_ways(ours, plain, inputs):
            assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def test_embedding():
    embedding = filled(Embedding(ODD), torch.Generator().manual_seed(0))
    x = randn(5, 37, 5)
    x[2] = 0  # a masked step: zeros in all channels
    lin, own = embedding.lin, embedding.norm
    parameters = [lin.weight, lin.bias, own.gamma, own.beta, embedding.pos_embed.weight]

    def plain(W, b, gamma, beta, position):
        return norm(norm(F.linear(x, W, b), gamma, beta) + position, gamma, beta).flatten(0, 1)

    for mine, theirs in both_ways(lambda *p: gpu.Embed.apply(x, *p, torch.float32), plain, parameters):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()
    torch.testing.assert_close(plain(*parameters), embedding(x).flatten(0, 1))


@pytest.mark.parametrize("n, features", [(8, 18), (1024, 18), (130, 7)])
def test_nt_xent(n, features):
    z = randn(n, features)
    z[3] = 0  # a row whose length is held at 1e-8: its similarities are 0, its gradient is multiplied by 1e8
    cases = list(both_ways(lambda z: gpu.NTXent.apply(z, 0.2)[None], lambda z: nt_xent(*z.chunk(2))[None], [z]))
    mine, theirs = (gradient[3].clone() for gradient in cases[1])
    assert theirs.any() and (mine - theirs).norm() <= 1e-4 * theirs.norm()
    for gradient in cases[1]:
        gradient[3] = 0
    for mine, theirs in cases:
        assert (mine - theirs).norm() <= 1e-4 * max(float(theirs.norm()), 1e-3)


@pytest.mark.parametrize("n", [1, 63, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weight_gradient(n, dtype):
    """Of bfloat16 numbers too, the products are summed in float32; the first operand may be a part of wider rows."""
    dy, x = randn(n, 30).to(dtype)[:, 7:], randn(n, 12).to(dtype)
    wanted = dy.double().T @ x.double()
    ours = gpu.weight_gradient(dy, x)
    assert ours.dtype == torch.float32 and (ours - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("cfg, B", [(ENCODER, 3), (ODD, 1)], ids=["real", "odd sizes"])
def test_encode(cfg, B):
    transformer = filled(MaskedModel(cfg), torch.Generator().manual_seed(0)).transformer
    x = randn(B, cfg["seq_len"], cfg["feature_num"])
    wanted, encode = transformer(x), GPU.encoder(transformer)
    torch.testing.assert_close(encode(x), wanted, rtol=1e-4, atol=1e-5)
    lying_otherwise = x.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(encode(lying_otherwise), wanted, rtol=1e-4, atol=1e-5)
    for wrong in (x[:, 1:], x[:, :, 1:]):
        with pytest.raises(ValueError, match="windows of"):
            encode(wrong)


def test_an_encoder_of_two_passes_encodes_plainly():
    transformer = MaskedModel(ENCODER | {"n_layers": 2}).transformer
    assert GPU.encoder(transformer) is transformer


def test_it_is_the_engine_of_this_gpu():
    """In any precision, for training and for encoding; probing for it leaves no gradient and no larger tile behind."""
    for precision in ("fp32", "tf32", "bf16"):
        taken = fast.engine(0, encoder=ENCODER, training=True, precision=precision)
        assert (type(taken), taken.precision, taken.note) == (gpu.Gpu, precision, "")
    assert type(fast.engine(0, encoder=ENCODER)) is gpu.Gpu
    assert gpu.Attend.tile in gpu.TILES


@pytest.mark.parametrize("both", [False, True], ids=["first half", "second half"])
@pytest.mark.parametrize("tile", gpu.TILES, ids=str)
def test_smaller_tiles_compute_the_same(monkeypatch, tile, both):
    """Those of a GPU with less shared memory than this one may have."""
    monkeypatch.setattr(gpu.Attend, "tile", tile)
    assert_same(run(GPU, ENCODER, 17, both), run(PLAIN, ENCODER, 17, both), 1e-4, 1e-5)


def forget():
    """The kernels that are loaded: only when one is loaded is it held against the GPU's limits."""
    for kernel in vars(gpu.kernels).values():
        if isinstance(kernel, triton.JITFunction):
            kernel.device_caches.clear()


@pytest.mark.parametrize(
    "limit, precision, tile",
    [
        (101_376, "fp32", (32, 1)),  # a GeForce RTX 30, 40 or 50
        (101_376, "tf32", (64, 3)),
        (101_376, "bf16", (64, 3)),
        (49_152, "fp32", (16, 1)),
        (49_152, "bf16", (32, 1)),
        (8192, "bf16", None),
    ],
)
def test_a_gpu_with_less_shared_memory(monkeypatch, limit, precision, tile):
    """The largest tiles that fit, in each precision, and the numbers of the plain path to that precision."""
    plain = [run(PLAIN, ENCODER, 256, both) for both in (False, True)]
    monkeypatch.setattr("triton.compiler.compiler.max_shared_mem", lambda device: limit)
    monkeypatch.setattr(gpu.Attend, "tile", None)
    forget()
    try:
        taken = fast.engine(0, encoder=ENCODER, training=True, precision=precision)
        if tile is None:
            assert type(taken) is Exact and "need more shared memory than this GPU has" in taken.note
            return
        assert (type(taken), taken.note, gpu.Attend.tile) == (gpu.Gpu, "", tile)
        tolerances = {"fp32": (1e-4, 1e-5), "tf32": (1e-2, 1e-3), "bf16": (5e-2, 5e-3)}[precision]
        for both in (False, True):
            assert_same(run(taken, ENCODER, 256, both), plain[both], *tolerances)
    finally:
        forget()


@pytest.mark.parametrize("n", [1, 63, 64, 1000])
def test_add_up(n):
    parts = randn(n, 3, 25)
    torch.testing.assert_close(gpu.add_up(parts), parts.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n, T, M", [(1, 120, 18), (1000, 120, 18), (37, 50, 50)])
def test_spans(n, T, M):
    g = torch.Generator().manual_seed(n)
    chosen = (torch.rand(n, T, generator=g) < 0.05).cuda()
    lengths = torch.randint(1, 11, (6, n), generator=g).cuda()
    starts = torch.randint(T, (6, n), generator=g).cuda()
    assert torch.equal(gpu.add_spans(chosen, lengths, starts, M), add_spans(chosen, lengths, starts, M))


@pytest.mark.parametrize("T, C", [(120, 6), (37, 5), (64, 6), (7, 1)])
@pytest.mark.parametrize("replace_prob", [0.0, 0.7])
def test_hide(T, C, replace_prob):
    x = randn(40, T, C)
    drawn = draw_masks(40, T, C, MASK | {"replace_prob": replace_prob}, torch.Generator().manual_seed(T))
    masks = Masks(*(part.cuda() for part in drawn))
    assert torch.equal(gpu.hide(x, masks), hide(x, masks))
    lying_otherwise = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(gpu.hide(lying_otherwise, masks), hide(x, masks))


def test_attention_with_large_scores_of_one_sign():
    """All some hundred below 0: what fills a window up to a power of two, with scores of 0, must not outweigh them."""
    g = torch.Generator().manual_seed(0)
    encoder = filled(MaskedModel(ODD), g).transformer
    with torch.no_grad():
        attn = encoder.attn
        attn.proj_q.weight.zero_(), attn.proj_k.weight.zero_()
        attn.proj_q.bias.fill_(-30.0)
        attn.proj_k.weight[:, 0] = 1.0
        encoder.embed.norm.gamma[0], encoder.embed.norm.beta[0] = 0.0, 5.0  # feature 0 of all steps
    x = randn(4, ODD["seq_len"], ODD["feature_num"])
    results = []
    for fn in (lambda: gpu.representation(encoder, x, None, torch.float32), lambda: encoder(x).flatten(0, 1)):
        encoder.zero_grad()
        out = fn()
        out.square().sum().backward()
        gradients = [p.grad for name, p in encoder.named_parameters() if not name.endswith(NO_GRADIENT)]
        results.append([out.detach(), *gradients])
    largest = max(float(theirs.norm()) for theirs in results[1])
    for mine, theirs in zip(*results, strict=True):
        assert mine.isfinite().all() and (mine - theirs).norm() <= 1e-4 * largest
