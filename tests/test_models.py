"""models.py against the reference files, and against plain references written here independently of it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PAPER

from augment import draw_masks, instance_norm, take_steps
from models import (
    DEAD_CLASSIFIER,
    DEAD_MASKED,
    Classifier,
    Contrastive,
    MaskedModel,
    draw_keep,
    encode,
    losses,
    nt_xent,
    sinusoidal_positions,
)
from plain import Alone, Plain

TOLERANCE = 1e-5  # absolute, in float32 on the CPU
PAPER_CLASSIFIER = dict(
    input_size=72, hidden_size=100, num_layers=1, num_heads=4, dropout_ratio=0.1, dim_feedforward=2048
)
SMALL = PAPER | {"hidden": 12, "hidden_ff": 10, "n_heads": 3, "seq_len": 9}
PLAIN = Plain(Alone(torch.device("cpu")))

MASKED_NAMES = """
transformer.embed.lin.weight transformer.embed.lin.bias transformer.embed.pos_embed.weight
transformer.embed.norm.gamma transformer.embed.norm.beta
transformer.attn.proj_q.weight transformer.attn.proj_q.bias transformer.attn.proj_k.weight transformer.attn.proj_k.bias
transformer.attn.proj_v.weight transformer.attn.proj_v.bias transformer.proj.weight transformer.proj.bias
transformer.norm1.gamma transformer.norm1.beta transformer.pwff.fc1.weight transformer.pwff.fc1.bias
transformer.pwff.fc2.weight transformer.pwff.fc2.bias transformer.norm2.gamma transformer.norm2.beta
linear.weight linear.bias norm.gamma norm.beta decoder.weight decoder.bias
""".split()
CONTRASTIVE_NAMES = """
projection_head.0.weight projection_head.0.bias projection_head.1.weight projection_head.1.bias
projection_head.1.running_mean projection_head.1.running_var projection_head.1.num_batches_tracked
projection_head.3.weight projection_head.3.bias
seq_transformer.patch_to_embedding.weight seq_transformer.patch_to_embedding.bias seq_transformer.c_token
seq_transformer.transformer.layers.0.0.fn.norm.weight seq_transformer.transformer.layers.0.0.fn.norm.bias
seq_transformer.transformer.layers.0.0.fn.fn.to_qkv.weight seq_transformer.transformer.layers.0.0.fn.fn.to_out.0.weight
seq_transformer.transformer.layers.0.0.fn.fn.to_out.0.bias
seq_transformer.transformer.layers.0.1.fn.norm.weight seq_transformer.transformer.layers.0.1.fn.norm.bias
seq_transformer.transformer.layers.0.1.fn.fn.net.0.weight seq_transformer.transformer.layers.0.1.fn.fn.net.0.bias
seq_transformer.transformer.layers.0.1.fn.fn.net.3.weight seq_transformer.transformer.layers.0.1.fn.fn.net.3.bias
""".split()
CLASSIFIER_NAMES = ["embedding.weight", "embedding.bias", "fc.weight", "fc.bias"] + [
    f"transformer_encoder.layers.0.{name}"
    for name in """
self_attn.in_proj_weight self_attn.in_proj_bias self_attn.out_proj.weight self_attn.out_proj.bias
linear1.weight linear1.bias linear2.weight linear2.bias norm1.weight norm1.bias norm2.weight norm2.bias""".split()
]


def tensors(arrays, *names):
    return [torch.tensor(arrays[name]) for name in names]


def weights(arrays, dead=("-",)):
    """The parameters in a reference file, without the groups that the released code never uses."""
    found = {name[2:]: torch.tensor(arrays[name]) for name in arrays if name.startswith("p.")}
    return {name: tensor for name, tensor in found.items() if not name.startswith(dead)}


def furthest(a, b):
    return float((a - b).detach().abs().max())


def filled(module, seed=0):
    """The module with every parameter drawn at random: biases, gammas and betas too, which start at 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5
        parameter.data = noise.to(parameter.dtype) + (1 if parameter.dim() == 1 else 0)
    return module


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --------------------------------------------------------------------------------- plain references


def plain_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return weight * (x - mean) / torch.sqrt(variance + eps) + bias


def plain_attention(q, k, v, heads, scale):
    """Head after head: softmax(q k^T * scale) v over slices of the features, joined again."""
    width = q.shape[-1] // heads
    parts = []
    for i in range(heads):
        at = slice(i * width, (i + 1) * width)
        scores = torch.exp(q[..., at] @ k[..., at].transpose(-1, -2) * scale)
        parts.append(scores / scores.sum(-1, keepdim=True) @ v[..., at])
    return torch.cat(parts, -1)


def plain_encoder(x, w, heads, passes):
    """The representation as the specification words it, from a state dict `w`."""

    def linear(h, name):
        return h @ w[f"transformer.{name}.weight"].T + w[f"transformer.{name}.bias"]

    def norm(h, name):
        return plain_norm(h, w[f"transformer.{name}.gamma"], w[f"transformer.{name}.beta"], 1e-12)

    h = norm(linear(x, "embed.lin"), "embed.norm")
    h = norm(h + w["transformer.embed.pos_embed.weight"], "embed.norm")
    scale = (h.shape[-1] / heads) ** -0.5
    for _ in range(passes):
        h = plain_attention(*(linear(h, f"attn.proj_{part}") for part in "qkv"), heads, scale)
        h = norm(h + linear(h, "proj"), "norm1")
        inner = linear(h, "pwff.fc1")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        h = norm(h + linear(inner, "pwff.fc2"), "norm2")
    return h


def plain_reconstruction(h, w):
    inner = h @ w["linear.weight"].T + w["linear.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return plain_norm(inner, w["norm.gamma"], w["norm.beta"], 1e-12) @ w["decoder.weight"].T + w["decoder.bias"]


def plain_class_output(h, w, keep=None):
    """The class token's output of the pre-norm layer; `keep` are its dropout factors."""
    layer = "seq_transformer.transformer.layers.0."
    tokens = h @ w["seq_transformer.patch_to_embedding.weight"].T + w["seq_transformer.patch_to_embedding.bias"]
    tokens = torch.cat([w["seq_transformer.c_token"].expand(len(h), 1, -1), tokens], dim=1)
    P = tokens.shape[-1]
    keep = keep or {"out": torch.ones(P), "inner": torch.ones(64), "mlp": torch.ones(P)}

    def norm(x, name):
        return plain_norm(x, w[f"{layer}{name}.weight"], w[f"{layer}{name}.bias"], 1e-5)

    q, k, v = (norm(tokens, "0.fn.norm") @ w[f"{layer}0.fn.fn.to_qkv.weight"].T).chunk(3, -1)
    a = plain_attention(q, k, v, 4, P**-0.5)[:, 0]
    a = a @ w[f"{layer}0.fn.fn.to_out.0.weight"].T + w[f"{layer}0.fn.fn.to_out.0.bias"]
    token = tokens[:, 0] + a * keep["out"]
    inner = norm(token, "1.fn.norm") @ w[f"{layer}1.fn.fn.net.0.weight"].T + w[f"{layer}1.fn.fn.net.0.bias"]
    inner = inner.clamp(min=0) * keep["inner"]
    return token + (inner @ w[f"{layer}1.fn.fn.net.3.weight"].T + w[f"{layer}1.fn.fn.net.3.bias"]) * keep["mlp"]


def plain_projection(token, w, training):
    hidden = token @ w["projection_head.0.weight"].T + w["projection_head.0.bias"]
    mean, variance = w["projection_head.1.running_mean"], w["projection_head.1.running_var"]
    if training:
        mean, variance = hidden.mean(0), hidden.var(0, unbiased=False)
    hidden = (hidden - mean) / torch.sqrt(variance + 1e-5) * w["projection_head.1.weight"] + w["projection_head.1.bias"]
    return hidden.clamp(min=0) @ w["projection_head.3.weight"].T + w["projection_head.3.bias"]


def plain_nt_xent(z1, z2, temperature=0.2):
    """Positives and negatives gathered one row at a time, cosine similarities pair by pair."""
    z = torch.cat([z1, z2])
    B, terms = len(z1), []
    for i in range(2 * B):
        partner = (i + B) % (2 * B)
        others = [j for j in range(2 * B) if j not in (i, partner)]
        assert len(others) == 2 * B - 2
        similarity = torch.stack([z[i] @ z[j] / (z[i].norm() * z[j].norm()) for j in [partner, *others]]) / temperature
        terms.append(torch.logsumexp(similarity, 0) - similarity[0])
    return torch.stack(terms).mean()


def plain_classifier(h, w, heads):
    h = h @ w["embedding.weight"].T + w["embedding.bias"]
    T, P = h.shape[1:]
    for t in range(T):
        for i in range(P // 2):
            angle = t / 10000 ** (2 * i / P)
            h[:, t, 2 * i] += math.sin(angle)
            h[:, t, 2 * i + 1] += math.cos(angle)
    layer = "transformer_encoder.layers.0."
    q, k, v = (h @ w[f"{layer}self_attn.in_proj_weight"].T + w[f"{layer}self_attn.in_proj_bias"]).chunk(3, -1)
    a = plain_attention(q, k, v, heads, (P / heads) ** -0.5)
    a = a @ w[f"{layer}self_attn.out_proj.weight"].T + w[f"{layer}self_attn.out_proj.bias"]
    h = plain_norm(h + a, w[f"{layer}norm1.weight"], w[f"{layer}norm1.bias"], 1e-5)
    inner = (h @ w[f"{layer}linear1.weight"].T + w[f"{layer}linear1.bias"]).clamp(min=0)
    inner = inner @ w[f"{layer}linear2.weight"].T + w[f"{layer}linear2.bias"]
    h = plain_norm(h + inner, w[f"{layer}norm2.weight"], w[f"{layer}norm2.bias"], 1e-5)
    return h.mean(1) @ w["fc.weight"].T + w["fc.bias"]


# --------------------------------------------------------------------------------- masked model


def test_masked_model_reproduces_the_reference_file(golden):
    z = golden("masked_model.npz")
    model = MaskedModel(PAPER).eval()
    model.load_state_dict(weights(z, DEAD_MASKED))
    x, positions, representation, reconstruction = tensors(
        z, "x", "masked_positions", "representation", "reconstruction"
    )
    h = model.transformer(x)
    assert furthest(h, representation) < TOLERANCE
    assert furthest(model.reconstruct(take_steps(h, positions)), reconstruction) < TOLERANCE


def test_limu_bert_checkpoint_gives_its_published_embedding_with_four_passes(golden):
    z = golden("limu_bert/uci_embedding.npz")
    state = golden("limu_bert/uci.pt")
    model = MaskedModel(PAPER | {"n_layers": int(z["n_layers"])}).eval()
    model.load_state_dict({name: part for name, part in state.items() if not name.startswith(DEAD_MASKED)})
    assert model.transformer.n_layers == 4
    assert furthest(model.transformer(torch.tensor(z["x"])), torch.tensor(z["embedding"])) < TOLERANCE


@pytest.mark.parametrize("passes", [1, 3])
def test_masked_model_computes_what_the_specification_says(passes):
    cfg = SMALL | {"n_layers": passes}
    model = filled(MaskedModel(cfg).double())
    x, positions = normal(5, 9, 6), torch.tensor([[0, 4, 8]] * 5)
    reconstruction, h = model(x, positions)
    w = model.state_dict()
    expected = plain_encoder(x, w, cfg["n_heads"], passes)
    assert h.shape == (5, 9, 12) and furthest(h, expected) < 1e-9
    assert reconstruction.shape == (5, 3, 6)
    assert furthest(reconstruction, plain_reconstruction(expected[:, [0, 4, 8]], w)) < 1e-9


def test_without_emb_norm_the_norm_comes_once():
    model = filled(MaskedModel(SMALL | {"emb_norm": False}).double())
    x = normal(2, 9, 6)
    part = model.transformer.embed
    once = plain_norm(part.lin(x) + part.pos_embed.weight, part.norm.gamma, part.norm.beta, 1e-12)
    assert furthest(part(x), once) < 1e-12


def test_weights_are_shared_between_passes():
    one, four = MaskedModel(PAPER), MaskedModel(PAPER | {"n_layers": 4})
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in four.state_dict().items()}


def test_layer_norm_has_its_epsilon_inside_the_root_and_tiny():
    model = MaskedModel(SMALL).double()
    tiny = 1e-5 * normal(1, 12)  # eps 1e-5 would shrink this 300-fold, 1e-12 by 1 %
    out = model.norm(tiny)
    assert 0.98 < float(out.detach().var(unbiased=False)) < 1 - 1e-4


def test_position_embedding_starts_standard_normal_and_norms_as_identity():
    torch.manual_seed(0)
    embedding = MaskedModel(PAPER).transformer.embed
    position = embedding.pos_embed.weight.detach()
    assert position.shape == (120, 72)
    assert abs(float(position.mean())) < 0.05 and abs(float(position.std()) - 1) < 0.05
    assert torch.equal(embedding.norm.gamma, torch.ones(72)) and torch.equal(embedding.norm.beta, torch.zeros(72))


def test_linears_start_as_pytorch_starts_them():
    torch.manual_seed(0)
    for module in (MaskedModel(PAPER), Contrastive(72)):
        for part in module.modules():
            if isinstance(part, torch.nn.Linear):
                bound = part.in_features**-0.5
                assert 0.95 * bound < float(part.weight.detach().abs().max()) <= bound


# --------------------------------------------------------------------------------- contrastive head, NT-Xent


def test_contrastive_head_reproduces_the_reference_file(golden):
    z = golden("contrastive.npz")
    head = Contrastive(72).eval()
    head.load_state_dict(weights(z))
    h, h2, projection, trained, trained2 = tensors(
        z, "representation", "representation_2", "projection", "train_projection", "train_projection_2"
    )
    assert furthest(head(h), projection) < TOLERANCE
    # BatchNorm's batch statistics, one view at a time. In float64: with four windows they magnify rounding, and that of
    # float32 differs between processors by more than the tolerance
    head.double().train()
    assert furthest(head(h.double()), trained.double()) < TOLERANCE
    assert furthest(head(h2.double()), trained2.double()) < TOLERANCE
    after = {name.removeprefix("after."): torch.tensor(z[name]) for name in z if name.startswith("after.")}
    assert len(after) == 3
    for name, expected in after.items():
        assert furthest(head.state_dict()[name].double(), expected.double()) < TOLERANCE, name


@pytest.mark.parametrize("training", [False, True])
def test_contrastive_head_computes_what_the_specification_says(training):
    head = filled(Contrastive(12).double()).train(training)
    head.projection_head[1].running_mean += 0.3
    head.projection_head[1].running_var *= 2
    w = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    h = normal(5, 9, 12)
    keep = draw_keep(5, 100, 64, torch.Generator().manual_seed(0)) if training else None
    token = plain_class_output(h, w, keep)
    assert furthest(head.class_output(h, keep), token) < 1e-9
    assert furthest(head(h, keep), plain_projection(token, w, training)) < 1e-8
    if training:
        hidden = token @ w["projection_head.0.weight"].T + w["projection_head.0.bias"]
        running = head.projection_head[1]
        assert furthest(running.running_mean, 0.9 * w["projection_head.1.running_mean"] + 0.1 * hidden.mean(0)) < 1e-9


def test_dropout_keeps_nine_of_ten_and_rescales():
    keep = draw_keep(4000, 100, 64, torch.Generator().manual_seed(0))
    assert {name: part.shape[1] for name, part in keep.items()} == {"out": 100, "inner": 64, "mlp": 100}
    for part in keep.values():
        assert set(part.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.9))}
        assert abs(float((part > 0).double().mean()) - 0.9) < 0.003
    assert not torch.equal(keep["out"], keep["mlp"])


def test_class_token_starts_standard_normal():
    torch.manual_seed(0)
    tokens = torch.cat([Contrastive(8).seq_transformer.c_token.detach() for _ in range(20)])
    assert tokens.shape == (20, 1, 100)
    assert abs(float(tokens.mean())) < 0.1 and abs(float(tokens.std()) - 1) < 0.05


def test_nt_xent_reproduces_the_reference_file_with_gradients(golden):
    z = golden("ntxent.npz")
    z1, z2 = (tensor.requires_grad_() for tensor in tensors(z, "zis", "zjs"))
    loss = nt_xent(z1, z2, float(z["temperature"]))
    loss.backward()
    assert float(z["temperature"]) == 0.2 and torch.equal(loss, nt_xent(z1, z2))  # the default
    assert abs(float(loss.detach()) - float(z["loss"])) < TOLERANCE
    assert furthest(z1.grad, torch.tensor(z["grad_zis"])) < TOLERANCE
    assert furthest(z2.grad, torch.tensor(z["grad_zjs"])) < TOLERANCE


@pytest.mark.parametrize("B", [2, 3, 8])
def test_nt_xent_equals_the_plain_one_that_gathers_negatives(B):
    views = [normal(B, 18, seed=seed) for seed in (1, 2)]
    ours = [view.clone().requires_grad_() for view in views]
    plain = [view.clone().requires_grad_() for view in views]
    loss, expected = nt_xent(*ours), plain_nt_xent(*plain)
    loss.backward(), expected.backward()
    assert furthest(loss, expected) < 1e-12
    for a, b in zip(ours, plain, strict=True):
        assert furthest(a.grad, b.grad) < 1e-12


def test_nt_xent_survives_a_projection_of_zeros_and_a_batch_of_one():
    assert torch.isfinite(nt_xent(torch.zeros(3, 18), normal(3, 18, dtype=torch.float32)))
    assert float(nt_xent(torch.ones(1, 18), torch.ones(1, 18))) == 0  # no negatives: nothing to tell apart


def test_losses_are_the_mean_over_views_and_the_head_sees_each_view_alone():
    model, head = filled(MaskedModel(SMALL).double()), filled(Contrastive(12).double())
    views = normal(2, 4, 9, 6)
    mask_cfg = {"mask_ratio": 0.3, "max_gram": 3, "mask_prob": 1.0, "replace_prob": 0.0}
    masks = draw_masks(8, 9, 6, mask_cfg, torch.Generator().manual_seed(0))
    keep = draw_keep(8, 100, 64, torch.Generator().manual_seed(1))
    head.train()
    start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    masked, contrastive = losses(PLAIN, model, head, views, masks, keep, True)
    w, expected, projections = model.state_dict(), [], []
    for i, view in enumerate(views):
        part, own = masks.pick(slice(4 * i, 4 * i + 4)), {k: f[4 * i : 4 * i + 4] for k, f in keep.items()}
        x = view.clone()
        for row, steps in enumerate(part.positions):
            x[row, steps] = 0
        h = plain_encoder(x, w, 3, 1)
        target = torch.stack([window[steps] for window, steps in zip(view, part.positions, strict=True)])
        chosen = torch.stack([window[steps] for window, steps in zip(h, part.positions, strict=True)])
        expected.append(((plain_reconstruction(chosen, w) - target) ** 2).mean())
        projections.append(plain_projection(plain_class_output(h, start, own), start, True))
    assert furthest(masked, (expected[0] + expected[1]) / 2) < 1e-9
    assert furthest(contrastive, plain_nt_xent(*projections)) < 1e-8
    assert int(head.projection_head[1].num_batches_tracked) == 2
    first_half = losses(PLAIN, model, head, views, masks, keep, False)
    assert torch.equal(first_half[0], masked) and float(first_half[1]) == 0


# --------------------------------------------------------------------------------- classifier


def test_classifier_reproduces_the_reference_file(golden):
    z = golden("classifier.npz")
    model = Classifier(PAPER_CLASSIFIER, 4).eval()
    model.load_state_dict(weights(z, DEAD_CLASSIFIER))
    assert furthest(model(torch.tensor(z["representation"])), torch.tensor(z["logits"])) < TOLERANCE


def test_classifier_computes_what_the_specification_says():
    cfg = PAPER_CLASSIFIER | {"input_size": 6, "hidden_size": 8, "num_heads": 2, "dim_feedforward": 10}
    model = filled(Classifier(cfg, 3).double()).eval()
    h, labels = normal(5, 9, 6), torch.tensor([0, 1, 2, 1, 0])
    logits = model(h)
    assert logits.shape == (5, 3)
    # the position encoding is made in float32
    assert furthest(logits, plain_classifier(h, model.state_dict(), 2)) < 1e-5
    again, loss = model(h, labels)
    assert torch.equal(again, logits)
    picked = logits.log_softmax(1)[torch.arange(5), labels]
    assert furthest(loss, -picked.mean()) < 1e-12


def test_dropout_ratio_goes_to_the_classifiers_encoder_layer():
    layer = Classifier(PAPER_CLASSIFIER | {"dropout_ratio": 0.25}, 4).transformer_encoder.layers[0]
    assert {layer.dropout.p, layer.dropout1.p, layer.dropout2.p, layer.self_attn.dropout} == {0.25}


def test_position_encoding_alternates_sine_and_cosine():
    table = sinusoidal_positions(120, 100, "cpu")
    assert table.shape == (120, 100)
    assert torch.equal(table[0, 0::2], torch.zeros(50)) and torch.equal(table[0, 1::2], torch.ones(50))
    assert abs(float(table[7, 0]) - math.sin(7)) < 1e-6 and abs(float(table[7, 1]) - math.cos(7)) < 1e-6


# --------------------------------------------------------------------------------- names, encoding


@pytest.mark.parametrize(
    "module, names, file, dead",
    [
        (MaskedModel(PAPER), MASKED_NAMES, "masked_model.npz", DEAD_MASKED),
        (Contrastive(72), CONTRASTIVE_NAMES, "contrastive.npz", ("-",)),
        (Classifier(PAPER_CLASSIFIER, 4), CLASSIFIER_NAMES, "classifier.npz", DEAD_CLASSIFIER),
    ],
    ids=["masked", "contrastive", "classifier"],
)
class TestNames:
    def test_state_dict_has_the_released_names_and_no_dead_weights(self, module, names, file, dead):
        assert sorted(module.state_dict()) == sorted(names)
        assert not any(name.startswith(dead) for name in module.state_dict())

    def test_names_and_shapes_are_those_of_the_reference_file(self, module, names, file, dead, golden):
        reference = {name: tuple(tensor.shape) for name, tensor in weights(golden(file), dead).items()}
        assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == reference


def encoded(model, windows, **more):
    return torch.cat(list(encode(PLAIN, model, windows, **more)))


def test_encode_is_the_transformer_in_eval_mode_on_normalised_windows():
    model = filled(MaskedModel(SMALL))
    windows = 5 + 3 * normal(7, 9, 6, dtype=torch.float32)
    h = encoded(model, windows)
    assert h.shape == (7, 9, 12) and h.dtype == torch.float32 and h.device.type == "cpu"
    assert furthest(h, model.transformer(instance_norm(windows))) < 1e-5


def test_encode_does_not_depend_on_the_batch_size():
    model = filled(MaskedModel(SMALL))
    windows = normal(7, 9, 6, dtype=torch.float32)
    assert [len(part) for part in encode(PLAIN, model, windows, batch_size=3)] == [3, 3, 1]
    for size in (1, 2, 7, 100):
        assert furthest(encoded(model, windows, batch_size=size), encoded(model, windows)) < 1e-5


def test_encode_takes_float64_and_ignores_scale_and_offset_of_a_channel():
    model = filled(MaskedModel(SMALL))
    windows = normal(4, 9, 6)
    moved = windows * 7 + torch.arange(6.0)
    assert furthest(encoded(model, windows), encoded(model, moved.float())) < 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_encode_restores_the_mode_it_found_even_when_left_early(training, monkeypatch):
    model = MaskedModel(SMALL).train(training)
    modes = []
    monkeypatch.setattr("models.instance_norm", lambda x: modes.append(model.training) or instance_norm(x))
    encoded(model, torch.zeros(5, 9, 6))
    assert model.training is training and modes == [False]
    part = encode(PLAIN, model, torch.zeros(5, 9, 6), batch_size=2)
    next(part), part.close()
    assert model.training is training
    with pytest.raises(RuntimeError):
        encoded(model, torch.zeros(5, 9, 7))  # seven channels
    assert model.training is training


def test_encode_changes_no_weights():
    model = filled(MaskedModel(SMALL))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoded(model, normal(4, 9, 6))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_no_windows_encode_to_nothing():
    assert list(encode(PLAIN, MaskedModel(SMALL), np.zeros((0, 9, 6), np.float32))) == []


def test_classifiers_loss_can_weigh_classes():
    model = Classifier(PAPER_CLASSIFIER | {"hidden_size": 8, "dim_feedforward": 8}, 2).eval()
    h, labels, weight = normal(4, 5, 72, dtype=torch.float32), torch.tensor([0, 1, 1, 1]), torch.tensor([3.0, 1.0])
    logits, loss = model(h, labels, weight)
    assert furthest(loss, F.cross_entropy(logits, labels, weight)) < 1e-6
