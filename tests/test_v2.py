"""Version v2: channels that no turning changes, the augmentation's physics, the four scripts, the configuration."""

import csv
import json
import math
import signal
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, make_windows

import reproduce
import utils
from bookkeeping import configs
from bookkeeping.commands import UserError
from v2 import config as config_v2
from v2 import invariants, physics
from v2 import stages as v2
from v2.invariants import CHANNELS, RATE, SETS, G, attitude, channels, compose, represent, rotation, turn

ENCODER = {
    "method": "v2",
    "channels": "all",
    "compression": True,
    "physics": "small",
    "widths": [4, 6],
    "kernel": 3,
    "members": 2,
    "masked_steps": 0,
    "joint_steps": 0,
    "batch_size": 8,
    "lr": 0.003,
}
CLASSIFIER = {"method": "v2", "steps": 12, "batch_size": 8, "lr": 0.01, "dropout": 0.1, "tempos": [0.8, 1.0]}
SMALL = {"crop": {"steps": 80, "why": "x"}, "amplitude": {"sd": 0.2, "why": "x"}}
PHYSICS = json.loads((ROOT / "config/physics.json").read_text())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def walks(count=12, T=120, seed=0):
    """Generated walkers, float32 (count, T, 6): steps of 1.5 to 2.4 Hz, swing, noise, turned; the last stands."""
    g = generator(seed)
    uniform = lambda low, high: low + (high - low) * torch.rand(count, 1, generator=g)  # noqa: E731
    t, f, phase = torch.arange(T)[None] / RATE, uniform(1.5, 2.4), uniform(0, 6)
    up = uniform(1, 4) * torch.sin(2 * math.pi * f * t)
    forward = uniform(0.5, 2) * torch.sin(2 * math.pi * f * t + phase)
    gyro = uniform(0.2, 2) * torch.cos(math.pi * f * t)
    x = torch.stack([forward, torch.zeros_like(up), up + G, torch.zeros_like(up), gyro, torch.zeros_like(up)], 2)
    x[-1, :, :2], x[-1, :, 2], x[-1, :, 3:] = 0, G, 0  # somebody who stands: no forward
    x += torch.randn(x.shape, generator=g) * torch.tensor([0.1] * 3 + [0.03] * 3)
    return turned(x, g)


def turned(x, g):
    """Each window's device turned by another random rotation."""
    q = torch.randn(len(x), 1, 4, generator=g, dtype=torch.float64)
    q = (q / q.norm(dim=-1, keepdim=True)).expand(-1, x.shape[1], -1)
    return torch.cat([turn(q, x[..., :3].double()), turn(q, x[..., 3:].double())], 2).to(x.dtype)


# ------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("compressed", [True, False])
def test_no_turning_of_the_device_and_no_sign_of_the_accelerometer_changes_a_channel(seed, compressed):
    x = walks(seed=seed)
    made = represent(x, CHANNELS, compressed)
    assert made.shape == (12, 21, 120) and made.isfinite().all() and made.abs().max() > 0.5
    flip = torch.tensor([-1.0] * 3 + [1.0] * 3)
    for other in (turned(x, generator(seed + 10)), x * flip, turned(x, generator(seed + 20)) * flip):
        assert (represent(other, CHANNELS, compressed) - made).abs().max() < 1e-5


def test_raw_channels_do_change_so_the_property_can_fail():
    x = walks()
    assert (represent(turned(x, generator(1)), SETS["raw"]) - represent(x, SETS["raw"])).abs().max() > 0.1


def test_channels_are_what_their_names_say():
    """A device that lies flat and moves up and forward by known amounts, turning about the axis to the left."""
    t = torch.arange(120) / RATE
    up, forward = 2 * torch.sin(2 * math.pi * 2 * t), 1.5 * torch.sin(2 * math.pi * 2 * t)
    rate = 0.5 * torch.cos(2 * math.pi * t)
    x = torch.zeros(1, 120, 6)
    x[0, :, 0], x[0, :, 2], x[0, :, 4] = forward, up + G, rate
    made = {name: part[0] for name, part in channels(x).items()}
    assert torch.allclose(made["v"], up / G, atol=1e-5) and torch.allclose(made["h"], forward.abs() / G, atol=1e-3)
    assert torch.allclose(made["f0"], forward / G, atol=0.02)  # forward is where vertical and horizontal are in phase
    assert torch.allclose(made["wh"], rate.abs(), atol=1e-3) and made["wv"].abs().max() < 1e-3
    assert torch.allclose(made["p0"], rate, atol=0.04)  # u x f is the axis to the left, here +y
    assert torch.allclose(made["n"], x[0, :, :3].norm(dim=1) / G - x[0, :, :3].norm(dim=1).mean() / G, atol=1e-5)


def test_the_tracked_frame_takes_gravity_out_of_a_swinging_limb():
    """A device that only swings, by 0.5 rad: gravity comes and goes in the static frame, not in the tracked one."""
    t = torch.arange(120) / RATE
    angle = 0.5 * torch.sin(2 * math.pi * t)
    x = torch.zeros(1, 120, 6)
    x[0, :, 0], x[0, :, 2] = -G * torch.sin(angle), G * torch.cos(angle)
    x[0, :, 4] = 0.5 * 2 * math.pi * torch.cos(2 * math.pi * t)
    made = channels(x)
    assert made["h"].max() > 0.4 and made["th"].max() < 0.03
    assert made["tilt"].max() > 0.4


def test_attitude_is_the_product_of_the_small_rotations():
    w = torch.randn(3, 37, 3, generator=generator())
    q = attitude(w)
    one = torch.tensor([[1.0, 0, 0, 0]]).expand(3, -1)
    for k in range(37):
        if k:
            one = compose(one, rotation(0.5 * (w[:, k] + w[:, k - 1]) / RATE))
        assert torch.allclose(q[:, k], one, atol=1e-5)
    v = torch.randn(3, 37, 3, generator=generator(1))
    assert torch.allclose(turn(q, turn(q, v), back=True), v, atol=1e-5)


def test_tilt_is_how_far_gravity_is_from_its_mean_direction_in_the_device():
    w = torch.randn(4, 5, 3, generator=generator()).repeat_interleave(24, 1)  # turns about one axis after another
    w = w - w.mean(1, keepdim=True)
    a = turn(attitude(w), torch.tensor([0.0, 0, G]).expand(4, 120, 3), back=True)
    mean = a.mean(1, keepdim=True)
    away = (a / G - mean / mean.norm(dim=-1, keepdim=True)).norm(dim=-1)
    assert torch.allclose(channels(torch.cat([a, w], 2))["tilt"], away, atol=1e-3) and away.max() > 0.5


def test_a_gyroscopes_bias_does_not_reach_the_tracked_channels():
    x = walks()
    biased = x.clone()
    biased[..., 3:] += torch.tensor([0.02, -0.03, 0.01])
    names = tuple(n for n in CHANNELS if n.startswith("t"))
    assert (represent(biased, names) - represent(x, names)).abs().max() < 1e-4


# --------------------------------------------------------------------------------------------------- physics

OFF = {key: off for key, (_, off) in physics.KEYS.items()}


def altered(x, **on):
    return physics.augment(x, OFF | on, generator(3))


def test_with_everything_off_a_window_stays_as_it_is():
    x = walks()
    assert torch.allclose(altered(x), x, atol=1e-4)


@pytest.mark.parametrize(
    "on",
    [
        {"tempo": [0.8, 1.2]},
        {"crop": 80},
        {"amplitude": 0.5},
        {"gyro_amplitude": 0.5},
        {"jitter": 0.2},
        {"position": 1, "rotation_gain": 0.5},
        {"position": 1, "swing": [0.2, 0.4]},
        {"position": 1, "damping": [1, 1]},
        {"position": 1, "swing": [0.3, 0.3], "pendulum": [0.5, 0.5]},
        {"lever_share": 1, "lever": 0.2},
        {"sensor_gain": 0.1},
        {"bias": 0.05},
        {"noise": [0.05, 0.05]},
        {"filter_share": 1, "filter": [1, 1]},
        {"drop_share": 1, "drop_out": [8, 8]},
        {"turned": 1},
    ],
    ids=lambda on: "+".join(on),
)
def test_each_quantity_alters_a_moving_window_and_is_drawn_from_the_generator(on):
    x = walks()
    y = altered(x, **on)
    assert y.isfinite().all() and torch.equal(y, altered(x, **on))
    assert y.shape[1] == on.get("crop", 120)
    assert (y - x[:, : y.shape[1]])[:-1].abs().amax((1, 2)).median() > 0.02
    gravity = y[..., :3].mean(1).norm(dim=1) / x[..., :3].mean(1).norm(dim=1)
    assert ((gravity > 0.8) & (gravity < 1.35)).all()  # the pull of a swing is a real one


def test_every_quantity_of_the_model_is_configured_with_its_reason_and_acts():
    assert set(PHYSICS["v2"]) == set(physics.KEYS) - {"turned"}
    values = config_v2.read_physics("v2")
    assert all(values[key] != off for key, off in OFF.items() if key != "turned")


def test_a_lever_adds_the_acceleration_of_a_rigid_body():
    """Turning steadily at w about z, a device r metres out feels w^2 r towards the axis."""
    x = torch.zeros(1, 40, 6)
    x[..., 5] = 3.0
    y = physics.shift(x, torch.tensor([[[0.2, 0, 0]]]))
    assert torch.allclose(y[0, 5, :3] * G, torch.tensor([-(3.0**2) * 0.2, 0, 0]), atol=1e-5)


def test_another_segment_swings_about_the_axis_to_the_left_and_gravity_turns_with_it():
    x = walks()
    x = torch.cat([x[..., :3] / G, x[..., 3:]], 2)
    amount = lambda value: torch.full((12, 1, 1), value)  # noqa: E731
    still = physics.relocate(x, amount(1.0), amount(0.0), amount(0.0), amount(0.0), amount(0.01))
    assert torch.allclose(still[..., 3:], x[..., 3:], atol=1e-5)
    assert torch.allclose(still[..., :3].norm(dim=2), x[..., :3].norm(dim=2), atol=1e-3)
    swung = physics.relocate(x, amount(1.0), amount(0.4), amount(0.0), amount(0.0), amount(0.01))
    assert (swung[:-1, :, 3:] - x[:-1, :, 3:]).norm(dim=2).amax(1).min() > 0.5
    assert (swung[-1] - x[-1]).abs().max() < 0.2  # who stands does not swing his arms


def test_faster_is_faster():
    x = walks(T=120)
    fast = physics.retime(x, 80, torch.full((12, 1), 1.4), torch.zeros(12, 1))
    at = lambda y: physics.step_frequency(y[..., 2] - y[..., 2].mean(1, keepdim=True))  # noqa: E731
    wave = torch.sin(2 * math.pi * 1.7 * torch.arange(120) / RATE)[None]
    flat = torch.stack([torch.zeros_like(wave), torch.zeros_like(wave), wave], 2)
    flat = torch.cat([flat, torch.ones_like(flat)], 2)
    quick = physics.retime(flat, 80, torch.full((1, 1), 1.4), torch.zeros(1, 1))
    assert abs(at(quick).item() - 1.4 * 1.7) < 0.15 and torch.allclose(quick[..., 3:], torch.tensor(1.4))
    assert fast.shape == (12, 80, 6)


# ------------------------------------------------------------------------------------------------ the four scripts


@pytest.fixture
def v2_project(project, monkeypatch):
    """The small project with version v2 beside v1; 64 windows of source a."""
    monkeypatch.setattr(v2, "ROUND", 4), monkeypatch.setattr(v2, "DRAW", 2)
    project.dataset("a", 64, seed=1)
    project.config("physics", {"v2": PHYSICS["v2"], "small": SMALL})
    project.config("pretrain_model", base_v2=ENCODER, base_v2_one={"like": "base_v2", "members": 1})
    project.config("classifier", transformer_v2=CLASSIFIER, transformer_v2_one={"like": "transformer_v2"})
    return project


def test_all_four_scripts_from_windows_to_scores_and_back_from_the_ledger(v2_project, capsys):
    v2_project.config("classifier", transformer_v2=CLASSIFIER | {"steps": 60, "batch_size": 32})
    v2_project.config("pretrain_model", base_v2=ENCODER | {"widths": [8, 12]})
    result = v2_project.stages("-mv", "v2")
    out = capsys.readouterr().out
    assert "masked_steps and joint_steps are 0" in out and "a -> b: 12 windows" in out
    assert result["accuracy"] > 0.4  # four classes, each of another tempo
    folder = v2_project.folder
    embedding = np.load(folder / "embed/v2/embed_a_20_120.npy")
    assert embedding.shape == (64, 60, 24) and np.load(folder / "embed/v2/label_a_20_120.npy").shape == (64, 60, 2)
    with open(folder / "saved/results.csv", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert (row["model_version"], row["augment_method"], row["label_rate"]) == ("v2", "physics", "0.5")
    npz = np.load(folder / "saved/classifier_base_v2_transformer_a_20_120/model_transformer_b.npz")
    assert (npz["logits"].argmax(1) == npz["label"]).mean() == pytest.approx(float(row["accuracy"]), abs=1e-5)
    assert np.exp(npz["logits"]).sum(1) == pytest.approx(1, abs=1e-4)
    record = json.loads((folder / "saved/classifier_base_v2_transformer_a_20_120/model_transformer.json").read_text())
    assert record["source_test"]["windows"] == int(row["source_windows"]) > 0
    assert record["config"]["embedding"]["model"]["physics"]["amplitude"] == 0.2


def test_the_same_seed_gives_the_same_files_and_another_one_others(v2_project):
    def run(*flags):
        v2_project.run("pretrain", "-d", "a", "-mv", "v2", *flags)
        v2_project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 0.5, *flags)
        return v2_project.files()["saved/classifier_base_v2_transformer_a_20_120/model_transformer.pt"]

    first = run()
    assert run("--restart") == first != run("--seed", 6, "--restart")


def test_pretraining_lowers_its_losses_and_the_classifier_starts_from_it(v2_project, monkeypatch):
    longer = {"masked_steps": 6, "joint_steps": 24, "batch_size": 32, "lr": 0.01}
    v2_project.config("pretrain_model", base_v2=ENCODER | longer)
    history = v2_project.run("pretrain", "-d", "a", "-mv", "v2")["history"]
    assert [row["step"] for row in history] == [4, 6, *range(10, 31, 4)]  # a round has one kind of loss
    contrastive, masked = ([row[f"train_{kind}"] for row in history] for kind in ("contrastive", "masked"))
    assert contrastive[:2] == [0, 0] and np.mean(contrastive[-3:]) < np.mean(contrastive[2:5])
    assert masked[-1] < masked[0]
    first, whole = [], v2.train_round
    keep = lambda network, *rest: (first.append(network.encoder.convs[0].weight.clone()), whole(network, *rest))[1]  # noqa: E731
    monkeypatch.setattr(v2, "train_round", keep)
    v2_project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 0.5)
    saved = torch.load("saved/pretrain_base_v2_a_20_120/model_masked_6_1.pt", weights_only=True)
    assert torch.equal(first[0], saved["encoder.convs.0.weight"]) and not torch.equal(first[0], first[1])
    v2_project.run("pretrain", "-d", "a", "-mv", "v2", "--seed", 9)
    with pytest.raises(UserError, match="was made from an older"):
        v2_project.run("cross_dataset_test", "-d", "a", "-td", "b", "-mv", "v2")


@pytest.mark.parametrize("script", ["pretrain", "classifier"])
def test_a_training_that_is_interrupted_ends_with_the_same_bits(v2_project, monkeypatch, script):
    v2_project.config("pretrain_model", base_v2=ENCODER | {"masked_steps": 6, "joint_steps": 6})
    flags = ["-d", "a", "-mv", "v2", "-lr", 0.5]
    v2_project.run("pretrain", *flags)
    v2_project.run("classifier", *flags)
    undisturbed, calls = v2_project.files(), []
    name = "pretrain_round" if script == "pretrain" else "train_round"
    whole = getattr(v2, name)

    def stops(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(v2, name, stops)
    with pytest.raises(KeyboardInterrupt):
        v2_project.run(script, *flags)
    monkeypatch.setattr(v2, name, whole)
    monkeypatch.setattr(v2, "batches", counted := Counted(v2.batches))
    v2_project.run(script, *flags)
    assert counted.steps < 12  # it did go on, not begin anew
    assert v2_project.files() == undisturbed


class Counted:
    """v2.batches that remembers how many steps it was asked for."""

    def __init__(self, made):
        self.made, self.steps = made, 0

    def __call__(self, windows, odds, cfg, steps, *rest):
        self.steps += steps
        return self.made(windows, odds, cfg, steps, *rest)


def test_a_classifier_killed_by_a_signal_keeps_its_state(v2_project):
    v2_project.config("classifier", transformer_v2=CLASSIFIER | {"steps": 100000})
    v2_project.run("pretrain", "-d", "a", "-mv", "v2")
    process = v2_project.start("classifier.py", "-d", "a", "-mv", "v2", "-lr", 0.5, "-g", "cpu")
    deadline = time.time() + 60
    while "validation" not in process.stderr.read(80) and time.time() < deadline:
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    folder = v2_project.folder / "saved/classifier_base_v2_transformer_a_20_120"
    assert [path.name for path in folder.iterdir()] == ["model_transformer_state.pt"]


def test_the_validation_part_chooses_what_is_kept(v2_project, monkeypatch):
    v2_project.run("pretrain", "-d", "a", "-mv", "v2")
    losses = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(v2, "validate", lambda *args: next(losses))
    assert v2_project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 0.5)["best_step"] == 8


def test_labels_of_validation_and_test_windows_are_not_trained_on(v2_project, monkeypatch):
    v2_project.run("pretrain", "-d", "a", "-mv", "v2")
    seen, whole = set(), v2.train_round
    monkeypatch.setattr(v2, "train_round", lambda *a: (seen.update(a[5].nonzero()[:, 1].tolist()), whole(*a))[1])
    v2_project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 0.5)
    train = utils.split_windows(64, 1, 5, "window")[0]
    assert seen == set(utils.pick_labelled(train, 0.5, 64, 1, 5, "window").tolist()) and len(seen) == 25


def test_every_class_is_drawn_equally_often_unless_told_otherwise():
    labels, rows = np.array([0, 0, 0, 0, 1, 2, 2, 0]), np.array([0, 1, 2, 4, 5])
    odds = v2.class_odds(labels, rows, 8, True)
    assert [odds[labels == c].sum().item() for c in range(3)] == pytest.approx([1, 1, 1]) and odds[[3, 6, 7]].sum() == 0
    assert v2.class_odds(labels, rows, 8, False).tolist() == [1, 1, 1, 0, 1, 1, 0, 0]


def test_the_running_mean_follows_the_weights(v2_project):
    cfg, model_cfg = configs.read_classifier_config("v2"), configs.read_encoder_config("v2")
    network, mean = v2.Network(model_cfg, cfg, 4), v2.Network(model_cfg, cfg, 4)
    mean.load_state_dict(network.state_dict())
    weight = lambda module: module.head.conv.weight.detach().clone()  # noqa: E731
    before, odds = weight(mean), torch.ones(2, 12)
    v2.train_round(
        network,
        mean,
        v2.make_optimizer([network], 0.01, 0),
        walks(),
        torch.arange(12) % 4,
        odds,
        cfg,
        model_cfg,
        generator(),
        0,
        1,
    )
    assert torch.allclose(weight(mean), 0.1 * before + 0.9 * weight(network)) and not torch.equal(before, weight(mean))
    assert torch.equal(mean.encoder.norms[0].running_var, network.encoder.norms[0].running_var)


def test_members_are_independent_networks(v2_project):
    cfg, model_cfg = configs.read_classifier_config("v2"), configs.read_encoder_config("v2")
    network = v2.Network(model_cfg, cfg, 4)
    x = torch.randn(3, 2, 21, 80, generator=generator(), requires_grad=True)
    network.eval()(x)[:, 0].sum().backward()
    assert x.grad[:, 0].abs().max() > 0 and x.grad[:, 1].abs().max() == 0


def test_predictions_do_not_depend_on_how_the_target_holds_its_device(v2_project):
    cfg, model_cfg = configs.read_classifier_config("v2"), configs.read_encoder_config("v2")
    torch.manual_seed(0)
    network, x = v2.Network(model_cfg, cfg, 4), walks()
    assert torch.allclose(
        v2.predict(network, turned(x, generator(4)), cfg, model_cfg), v2.predict(network, x, cfg, model_cfg), atol=1e-4
    )


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    "name, entry, changes, wanted",
    [
        ("pretrain_model", "base_v2", {"member": 3}, "unknown key 'member'; did you mean 'members'"),
        ("pretrain_model", "base_v2", {"channels": "most"}, "'channels' is \"most\""),
        ("pretrain_model", "base_v2", {"kernel": 4}, "'kernel' 4 must be odd"),
        ("pretrain_model", "base_v2", {"physics": "v9"}, "has no entry 'v9'"),
        ("pretrain_model", "base_v2", {"widths": []}, "'widths' is []"),
        ("classifier", "transformer_v2", {"tempo": [1]}, "unknown key 'tempo'; did you mean 'tempos'"),
        ("classifier", "transformer_v2", {"steps": 0}, "'steps' is 0"),
        ("pretrain_model", "base_v2", {"like": "base_v7"}, "'like' must name an entry"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(v2_project, name, entry, changes, wanted):
    value = ENCODER if name == "pretrain_model" else CLASSIFIER
    v2_project.run("pretrain", "-d", "a", "-mv", "v2")
    v2_project.config(name, **{entry: value | changes})
    with pytest.raises(UserError) as raised:
        v2_project.run("classifier", "-d", "a", "-mv", "v2")
    assert wanted in str(raised.value) and f"config/{name}.json" in str(raised.value).replace("physics", name)


@pytest.mark.parametrize(
    "entry, wanted",
    [
        ({"tempi": {"range": [1, 2], "why": "x"}}, "unknown key 'tempi'"),
        ({"tempo": {"range": [1, 2]}}, "the reason"),
        ({"tempo": {"range": [1, 2], "why": " "}}, "the reason"),
        ({"tempo": {"range": [2, 1], "why": "x"}}, "no valid 'range'"),
        ({"tempo": {"range": [0, 1], "why": "x"}}, "no valid 'range'"),
        ({"bias": {"sd": float("nan"), "why": "x"}}, "no valid 'sd'"),
        ({"drop_share": {"share": 2, "why": "x"}}, "no valid 'share'"),
        ({"crop": {"steps": True, "why": "x"}}, "no valid 'steps'"),
        ({"tempo": [1, 2]}, "the reason"),
    ],
)
def test_a_malformed_physics_is_one_line(project, entry, wanted):
    project.config("physics", {"v2": entry})
    with pytest.raises(UserError, match=f"config/physics.json, v2.*{wanted}"):
        config_v2.read_physics("v2")


def test_a_command_with_an_unknown_key_ends_with_status_2(v2_project):
    v2_project.config("pretrain_model", base_v2=ENCODER | {"member": 3})
    status, out, err = v2_project.command("pretrain.py", "-d", "a", "-mv", "v2", "-g", "cpu")
    assert status == 2 and err.count("\n") == 1 and err.startswith("error: config/pretrain_model.json, base_v2")


def test_copies_are_refused(v2_project):
    with pytest.raises(UserError, match="-am jitter: -mv v2 makes no copies"):
        v2_project.run("pretrain", "-d", "a", "-mv", "v2", "-am", "jitter")


def test_every_key_of_version_v2_is_read_by_something():
    text = "".join(
        (ROOT / name).read_text() for name in ("v2.py", "models_v2.py", "config_v2.py", "physics.py", "configs.py")
    )
    for key in [*config_v2.ENCODER_KEYS, *config_v2.CLASSIFIER_KEYS, *physics.KEYS]:
        if key != "method":
            assert (
                f'["{key}"]' in text
                or f'between("{key}")' in text
                or f'happens("{key}")' in text
                or key in ("feature_num", "seq_len")
            ), key


def test_the_projects_own_configuration_stays_within_its_limits(monkeypatch):
    """All entries are readable, every variant has its three, and v2 has at most three times v1's parameters."""
    monkeypatch.chdir(ROOT)
    for name, entry in json.loads((ROOT / "config/variants.json").read_text()).items():
        version = entry.get("model_version", "v1")
        configs.read_encoder_config(version), configs.read_classifier_config(version)
        assert version == "v1" or version == name
    for name in PHYSICS:
        config_v2.read_physics(name)
    from models import Classifier, Contrastive, MaskedModel

    sizes = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())  # noqa: E731
    cfg, model_cfg = configs.read_classifier_config("v2"), configs.read_encoder_config("v2")
    first = configs.read_encoder_config("v1")
    v1 = sizes(MaskedModel(first), Contrastive(first["hidden"]), Classifier(configs.read_classifier_config("v1"), 4))
    assert sizes(v2.Masked(model_cfg), v2.Projection(model_cfg), v2.Network(model_cfg, cfg, 4)) < 3 * v1
    assert model_cfg["channels"] == list(invariants.CHANNELS)


# ----------------------------------------------------------------------------------------- tables, breakdown


def test_reproduce_runs_its_variants_and_foretells_their_rows(v2_project, capsys, monkeypatch):
    variants = {
        "full": {"title": "CrossHAR"},
        "v2": {"title": "version 2", "model_version": "v2"},
        "v2_one": {"title": "one member", "model_version": "v2_one"},
    }
    v2_project.config("variants", variants)
    flags = ["--variants", "all_v2", "--sources", "a", "--targets", "b", "--seeds", "2", "--label_rates", "0.1", "0.5"]
    run = lambda *more: reproduce.main(reproduce.get_args([*flags, *more, "--jobs", "0", "-g", "cpu", "--no_figures"]))  # noqa: E731
    text = run()
    assert "version 2" in text and "one member" in text and "CrossHAR" not in text
    capsys.readouterr()
    run()
    assert "8 rows of 4 jobs; 0 rows of 0 jobs to make" in capsys.readouterr().out
    assert "version 2" in reproduce.main(reproduce.get_args(["--table"]))
    assert not (v2_project.folder / "embed").exists()  # its classifier needs none


def test_breakdown_scores_each_value_of_a_column(v2_project, capsys):
    from experiments import breakdown

    v2_project.dataset("b", data=make_windows(12, 2)[0], labels=make_windows(12, 2)[1])
    ids, users = np.arange(12) % 4, np.arange(12) % 3
    logits = np.eye(4)[np.where(users == 1, (ids + 1) % 4, ids)]
    np.savez("p.npz", window=np.arange(12), label=ids, logits=logits)
    result = breakdown.main(breakdown.get_args(["p.npz", "-td", "b", "--by", "user"]))
    assert [result[user]["accuracy"] for user in ("ann", "bob", "eve")] == [1, 0, 1]
    assert "100% of walking taken for upstairs" in capsys.readouterr().out
    np.savez("q.npz", window=np.arange(12), label=(ids + 1) % 4, logits=logits)
    for file, by, wanted in (
        ("q.npz", "user", "other windows"),
        ("p.npz", "place", "has the columns activity, user"),
        ("none.npz", "user", "not a readable file"),
    ):
        with pytest.raises(UserError, match=wanted):
            breakdown.main(breakdown.get_args([file, "-td", "b", "--by", by]))


def test_choose_holds_users_out_and_uses_nothing_but_the_source(v2_project, monkeypatch, capsys):
    from v2 import choose

    others, held_out = choose.split_users(np.arange(64) % 3, 5)
    assert sorted([*others, *held_out]) == list(range(64))
    assert len(set(held_out % 3)) == 1 and not set(held_out % 3) & set(others % 3)
    drawn, whole = set(), v2.train_round
    monkeypatch.setattr(v2, "train_round", lambda *a: (drawn.update(a[5].nonzero()[:, 1].tolist()), whole(*a))[1])
    result = choose.main(
        choose.get_args(
            ["-d", "a", "--versions", "v2", "v2_one", "--seeds", "1", "--first_seed", "5", "-lr", "0.5", "-g", "cpu"]
        )
    )
    assert drawn <= set(others) and len(drawn) == int(0.5 * 0.6 * 64)
    assert set(result) == {"v2", "v2_one"} and "0.35 m above" in capsys.readouterr().out
    with open("results/choose_a.csv", newline="") as handle:
        assert len(list(csv.DictReader(handle))) == 2 * 13
    with pytest.raises(UserError, match="--versions v1"):
        choose.main(choose.get_args(["-d", "a", "--versions", "v1", "-g", "cpu"]))


def test_simulated_shifts_change_every_moving_window_but_never_the_recorded_one():
    from v2 import choose

    x = walks()
    made = choose.shifts(x)
    assert len(made) == 13 and torch.allclose(made.pop("as recorded"), x, atol=1e-5)
    for name, y in made.items():
        assert y.isfinite().all() and (y - x)[:-1].abs().amax((1, 2)).min() > 0.05, name
        assert torch.equal(y, choose.shifts(x)[name])
