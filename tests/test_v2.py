"""Version v2: channels that no turning changes, the augmentation's physics, training and use, the configuration."""

import csv
import json
import math
import signal
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, make_windows

import plain
import reproduce
import utils
from bookkeeping import configs
from bookkeeping.commands import UserError
from v2 import config as config_v2
from v2 import networks, physics
from v2 import stages as v2
from v2.invariants import CHANNELS, RATE, G, attitude, channels, compose, fourier, represent, rotation, slope, turn

ENCODER = {"method": "v2", "widths": [4, 6], "kernel": 3, "members": 2, "dropout": 0.1}
CLASSIFIER = {"method": "v2", "steps": 12, "batch_size": 8, "lr": 0.01}
PHYSICS = json.loads((ROOT / "config/physics.json").read_text())
OFF = {"tempo": [1, 1]} | dict.fromkeys(("moved", "swing", "lever", "no_gyroscope"), 0)
CFG = ENCODER | CLASSIFIER | {"channels": CHANNELS, "spectrum": True, "own_labels": True, "physics": OFF}
SAVED = "saved/classifier_base_v2_transformer_a_20_120"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def walks(count=12, T=120, seed=0):
    """Generated walkers, float32 (count, T, 6): steps of 1.5 to 2.4 Hz, swing, noise, turned; the last stands."""
    g = generator(seed)

    def uniform(low, high):
        return low + (high - low) * torch.rand(count, 1, generator=g)

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
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.cat([turn(q, x[..., :3].double()), turn(q, x[..., 3:].double())], 2).to(x.dtype)


def blind(x):
    """The windows without their gyroscope, as a data set has them: NaN."""
    return torch.cat([x[..., :3], torch.full_like(x[..., 3:], math.nan)], 2)


# ------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("seed", range(3))
def test_no_turning_of_the_device_and_no_sign_of_the_accelerometer_changes_a_channel(seed):
    x = walks(seed=seed)
    made = represent(x)
    assert made.shape == (12, 18, 120) and made.isfinite().all() and made.abs().max() > 0.5
    flip = torch.tensor([-1.0] * 3 + [1.0] * 3)
    for other in (turned(x, generator(seed + 10)), x * flip, turned(x, generator(seed + 20)) * flip):
        assert (represent(other) - made).abs().max() < 1e-5
    assert (turned(x, generator(1)) - x).abs().max() > 1  # so the property could fail


def test_channels_are_what_their_names_say():
    """A device that lies flat and moves up and forward by known amounts, turning about the axis to the left."""
    t = torch.arange(120) / RATE
    up, forward = 2 * torch.sin(2 * math.pi * 2 * t), 1.5 * torch.sin(2 * math.pi * 2 * t)
    rate = 0.5 * torch.cos(2 * math.pi * t)
    x = torch.zeros(1, 120, 6)
    x[0, :, 0], x[0, :, 2], x[0, :, 4] = forward, up + G, rate
    made = {name: part[0] for name, part in channels(x).items()}
    assert torch.allclose(made["v"], up / G, atol=1e-5) and torch.allclose(made["h"], forward.abs() / G, atol=1e-3)
    assert torch.allclose(made["d"], torch.hypot(up, forward) / G, atol=1e-5)
    assert torch.allclose(made["f0"], forward / G, atol=0.02)  # forward is where vertical and horizontal are in phase
    assert torch.allclose(made["wh"], rate.abs(), atol=1e-3) and made["wv"].abs().max() < 1e-3
    assert torch.allclose(made["p0"], rate, atol=0.04)  # u x f is the axis to the left, here +y
    assert torch.allclose(represent(x, ["p0"])[0, 0].sign() * represent(x, ["p0"])[0, 0].abs().expm1() / 3, made["p0"])


def test_the_tracked_frame_takes_gravity_out_of_a_swinging_limb():
    """A device that only swings, by 0.5 rad: gravity comes and goes in the static frame, not in the tracked one."""
    t = torch.arange(120) / RATE
    angle = 0.5 * torch.sin(2 * math.pi * t)
    x = torch.zeros(1, 120, 6)
    x[0, :, 0], x[0, :, 2] = -G * torch.sin(angle), G * torch.cos(angle)
    x[0, :, 4] = 0.5 * 2 * math.pi * torch.cos(2 * math.pi * t)
    made = channels(x)
    assert made["h"].max() > 0.4 and made["th"].max() < 0.03


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


def test_a_gyroscopes_bias_does_not_reach_the_tracked_channels():
    x, names = walks(), [name for name in CHANNELS if name.startswith("t")]
    biased = x + torch.tensor([0, 0, 0, 0.02, -0.03, 0.01])
    assert (represent(biased, names) - represent(x, names)).abs().max() < 1e-4
    assert (represent(biased) - represent(x)).abs().max() > 1e-3


def test_without_a_gyroscope_the_rates_are_zero_and_the_rest_is_there():
    x = v2.as_tensor(blind(walks()))
    made = dict(zip(CHANNELS, represent(x).transpose(0, 1), strict=True))
    for name, part in made.items():
        rate = name.lstrip("t")[0] in "wp"
        assert (part == 0).all() if rate else part.abs().max() > 0.1, name


def test_the_spectrum_is_the_fourier_transforms():
    x = torch.randn(5, 96, generator=generator())
    cosine, sine = fourier(96, torch.arange(32) / 128)
    window = torch.hann_window(96)
    wanted = torch.fft.rfft(x * window, n=128)[:, :32].abs() / window.sum()
    assert torch.allclose(torch.hypot(x @ cosine, x @ sine), wanted, atol=1e-6)


# --------------------------------------------------------------------------------------------------- physics


def retimed(x, tempo, steps=90):
    return physics.retime(x, steps, x.new_full((len(x), 1), tempo), x.new_full((len(x), 1), 3))


def altered(x, **on):
    torch.manual_seed(3)
    return physics.augment(x, OFF | on)


def test_with_everything_off_a_window_stays_as_it_is():
    x = walks()
    assert torch.allclose(altered(x), x, atol=1e-4)


@pytest.mark.parametrize(
    "on",
    [
        {"tempo": [0.8, 1.25]},
        {"moved": 1, "swing": 0.4},
        {"moved": 1, "lever": 0.2},
        {"no_gyroscope": 0.5},
    ],
    ids="+".join,
)
def test_each_quantity_alters_a_moving_window_and_is_drawn_from_the_generator(on):
    x = walks()
    y = altered(x, **on)
    assert y.isfinite().all() and torch.equal(y, altered(x, **on)) and not torch.equal(y, physics.augment(x, OFF | on))
    assert y.shape[1] == (96 if "tempo" in on else 120)
    assert (y - x[:, : y.shape[1]])[:-1].abs().amax((1, 2)).mean() > 0.05
    gravity = y[..., :3].mean(1).norm(dim=1) / x[..., :3].mean(1).norm(dim=1)
    assert ((gravity > 0.8) & (gravity < 1.35)).all()  # the pull of a lever is a real one


def test_every_quantity_is_configured_with_its_reason_and_acts():
    values = config_v2.read_physics({})
    assert set(values) == set(OFF) and all(values[key] != off for key, off in OFF.items())


def test_a_lever_adds_the_acceleration_of_a_rigid_body():
    """Turning steadily at w about z, a device r metres out feels w^2 r towards the axis."""
    x = torch.zeros(1, 40, 6)
    x[..., 5] = 3.0
    y = physics.shift(x, torch.tensor([[[0.2, 0, 0]]]))
    assert torch.allclose(y[0, 5, :3], torch.tensor([-(3.0**2) * 0.2, 0, 0]), atol=1e-5)


def test_another_segment_swings_about_the_axis_to_the_left_and_gravity_turns_with_it():
    x = walks()

    def relocated(swing):
        return physics.relocate(x, torch.full((12, 1, 1), swing), torch.zeros(12, 1, 1))

    assert torch.allclose(relocated(0.0), x, atol=1e-4)
    swung = relocated(0.4)
    assert torch.allclose(swung[..., :3].norm(dim=2), x[..., :3].norm(dim=2), atol=1e-3)
    assert (swung[:-1, :, 3:] - x[:-1, :, 3:]).norm(dim=2).amax(1).min() > 0.5
    assert (swung[-1] - x[-1]).abs().max() < 2  # who stands does not swing his arms


def test_slope_is_the_derivative():
    t = torch.arange(40, dtype=torch.float64)[None, :, None] / RATE
    torch.testing.assert_close(slope(t.square())[:, 1:-1], 2 * t[:, 1:-1])


@pytest.mark.parametrize("tempo", [0.8, 1.25])
def test_a_window_retimed_is_read_at_its_tempo(tempo):
    step = torch.arange(120, dtype=torch.float64)[None, :, None].expand(1, 120, 6)
    seen = retimed(step, tempo)[0, :, 0]
    assert float(seen[0]) == 3 and float(seen.diff().mean()) == pytest.approx(tempo)


def test_the_rate_of_a_swing_is_its_angles_derivative():
    t = torch.arange(120)[None, :, None] / RATE
    step = 2 * math.pi * 2 * t  # two steps a second
    x = torch.cat([2 * step.cos(), 0 * t, G + 3 * step.sin(), *[0 * t] * 3], 2)
    swung = physics.relocate(x, torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.4))[0]
    assert (swung[:, [3, 5]].abs() < 1e-9).all()  # about the axis to the left
    angle = torch.atan2(swung[:, 0], swung[:, 2]) - torch.atan2(x[0, :, 0], x[0, :, 2])  # of the device, about y
    rate, inside = -slope(angle[None, :, None])[0, :, 0], slice(2, -2)
    assert rate[inside].abs().max() > 0.5
    torch.testing.assert_close(swung[inside, 4], rate[inside], rtol=0.02, atol=0.02)


def test_faster_is_faster():
    wave = torch.sin(2 * math.pi * 1.7 * torch.arange(120) / RATE)[None]
    flat = torch.stack([torch.zeros_like(wave), torch.zeros_like(wave), wave], 2)
    flat = torch.cat([flat, torch.ones_like(flat)], 2)
    for tempo in (0.8, 1.25):
        seen = retimed(flat, tempo)
        assert abs(physics.step_frequency(seen[..., 2]).item() - tempo * 1.7) < 0.15
        assert torch.allclose(seen[..., 3:], torch.tensor(tempo))


# ------------------------------------------------------------------------------------------------ network, drawing


def test_sources_and_their_classes_are_drawn_equally_often():
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 0] + [1, 1, 3, -1])
    first, second = np.array([0, 1, 2, 4, 5]), np.array([8, 9, 10])  # classes 0 (3 windows), 1, 2; then 1 (2) and 3
    odds = np.diff(v2.cumulative_odds(labels, [first, second]), prepend=0)
    assert odds.sum() == pytest.approx(1) and odds[[3, 6, 7, 11]].sum() == pytest.approx(0)
    assert [odds[:8][labels[:8] == k].sum() for k in range(3)] == pytest.approx([1 / 6] * 3)
    assert [odds[8:][labels[8:] == k].sum() for k in (1, 3)] == pytest.approx([1 / 4] * 2)


def test_only_windows_with_a_chance_are_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(v2, "augment", lambda x, cfg: (drawn.append(x[:, 0, 0].clone()), x)[1])
    x = walks(16)
    x[:, 0, 0] = torch.arange(16)
    lessons = v2.Lessons(x, np.arange(16) % 4, [[np.array([2, 3, 5, 11])], [np.arange(12)]])
    network, sums = networks.Network(CFG, 4), [torch.zeros(()), torch.zeros(())]
    optimizer = torch.optim.Adam(network.parameters())
    step = v2.make_step(plain.engine("cpu"), network, optimizer, lessons, CFG, sums)
    for _ in range(6):
        step("step")
    assert set(torch.cat(drawn).int().tolist()) == {2, 3, 5, 11} and sums[0] == 6
    lessons.label_others(network, CFG)
    drawn.clear()
    for _ in range(6):
        step("step")
    assert set(torch.cat(drawn).int().tolist()) == set(range(12))
    assert optimizer.param_groups[0]["lr"].item() < 0.01 * 6 / v2.WARM_UP + 1e-6


def test_the_labels_of_other_windows_are_the_networks_own():
    torch.manual_seed(0)
    x, labels, network = walks(), np.arange(12) % 4, networks.Network(CFG, 4)
    labelled, train = [np.array([1, 2]), np.array([9])], [np.arange(6), np.array([8, 9, 10])]
    lessons = v2.Lessons(x, labels, [labelled, train])
    state = lessons.state_dict()
    assert [k for k in range(12) if state["labels"][k] >= 0] == [1, 2, 9]  # no other label is there to be seen
    lessons.label_others(network, CFG)
    assert network.training and set(state) == {"labels", "odds"}
    wanted = v2.predict(network, x, CFG).argmax(1)
    wanted[[1, 2, 9]] = torch.from_numpy(labels)[[1, 2, 9]]
    wanted[[6, 7, 11]] = -1
    assert torch.equal(lessons.labels, wanted) and state["odds"] is not lessons.odds
    chances = lessons.odds.diff(prepend=torch.zeros(1))
    assert float(chances[:6].sum()) == pytest.approx(0.5) and float(chances[[6, 7, 11]].sum()) == 0


@pytest.mark.parametrize("steps, wanted", [(12, 8), (16, 8), (17, 12), (4, 4), (1, 4)])
def test_half_of_the_steps_are_learnt_from_the_given_labels_alone(monkeypatch, steps, wanted):
    monkeypatch.setattr(v2, "ROUND", 4)
    assert v2.halfway({"steps": steps, "own_labels": True}) == wanted
    assert v2.halfway({"steps": steps, "own_labels": False}) == steps


def test_members_are_independent_networks():
    network = networks.Network(CFG, 4)
    x = torch.randn(3, 2, 18, 80, generator=generator(), requires_grad=True)
    network.eval()(x)[:, 0].sum().backward()
    assert x.grad[:, 0].abs().max() > 0 and x.grad[:, 1].abs().max() == 0
    assert network.encode(x.flatten(1, 2)[:, :, None]).shape == (3, 2 * 6, 1, 40)


def test_a_prediction_is_the_members_mean_probability():
    torch.manual_seed(0)
    network, x = networks.Network(CFG, 4).eval(), walks()
    with torch.no_grad():
        wanted = network(represent(x, CHANNELS)).softmax(2).mean(1).log()
    torch.testing.assert_close(v2.predict(network, x, CFG), wanted, rtol=1e-4, atol=1e-4)


def test_predictions_do_not_depend_on_how_the_target_holds_its_device_and_need_no_gyroscope():
    torch.manual_seed(0)
    network, x = networks.Network(CFG, 4), walks()
    found = v2.predict(network, x, CFG)
    assert torch.allclose(found.exp().sum(1), torch.ones(12), atol=1e-5)
    assert torch.allclose(v2.predict(network, turned(x, generator(4)), CFG), found, atol=1e-4)
    without = v2.predict(network, blind(x), CFG)
    assert without.isfinite().all() and not torch.allclose(without, found, atol=1e-3)
    assert torch.equal(without, v2.predict(network, torch.cat([x[..., :3], 0 * x[..., 3:]], 2), CFG))


# ------------------------------------------------------------------------------------------------ the scripts


@pytest.fixture
def v2_project(project, monkeypatch):
    """The small project with version v2 beside v1; 64 windows of source a."""
    monkeypatch.setattr(v2, "ROUND", 4)
    project.dataset("a", 64, seed=1)
    project.config("physics", PHYSICS)
    project.config("ablations", {"v2_one": {"encoder": {"members": 1}, "physics": {"lever": 0}}})
    project.config("pretrain_model", base_v2=ENCODER)
    project.config("classifier", transformer_v2=CLASSIFIER)
    return project


def test_two_scripts_from_windows_to_scores_and_back_from_the_ledger(v2_project, capsys):
    v2_project.config("classifier", transformer_v2=CLASSIFIER | {"steps": 60, "batch_size": 32})
    v2_project.config("pretrain_model", base_v2=ENCODER | {"widths": [8, 12]})
    v2_project.run("classifier", "-d", "a", "-lr", 0.5, "-mv", "v2")
    result = v2_project.run("cross_dataset_test", "-d", "a", "-td", "b", "-mv", "v2")
    assert "a -> b: 12 windows" in capsys.readouterr().out
    assert result["accuracy"] > 0.4  # four classes, each of another tempo
    with open("saved/results.csv", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert (row["model_version"], row["augment_method"], row["label_rate"]) == ("v2", "physics", "0.5")
    npz = np.load(f"{SAVED}/model_transformer_b.npz")
    assert (npz["logits"].argmax(1) == npz["label"]).mean() == pytest.approx(float(row["accuracy"]), abs=1e-5)
    record = json.loads((v2_project.folder / SAVED / "model_transformer.json").read_text())
    assert record["source_test"]["windows"] == int(row["source_windows"]) > 0
    assert record["config"]["model"]["physics"]["lever"] == PHYSICS["lever"]["value"]
    v2_project.config("classifier", transformer_v2=CLASSIFIER)
    with pytest.raises(UserError, match="was made with other settings: model.steps"):
        v2_project.run("cross_dataset_test", "-d", "a", "-td", "b", "-mv", "v2")


def test_every_round_draws_on_its_own_and_the_temperature_is_the_validation_parts(v2_project, monkeypatch):
    seeds, fitted, seed_with, fit = [], [], torch.manual_seed, v2.metrics.fit_temperature
    monkeypatch.setattr(v2.torch, "manual_seed", lambda seed: seeds.append(seed) or seed_with(seed))
    monkeypatch.setattr(v2.metrics, "fit_temperature", lambda *given: fitted.append(given) or fit(*given))
    v2_project.run("classifier", "-d", "a", "-lr", 0.5, "-mv", "v2")
    assert len(seeds) == len(set(seeds)) == 1 + 12 // 4  # the network's, and the rounds'
    ((logits, _),) = fitted
    _, val, _ = utils.split_windows(64, 1, 5, "window")
    windows = v2.as_tensor(np.load("dataset/a/data_20_120.npy")[val])
    cfg = configs.read_classifier_config("v2")
    logits_of = v2.load_classifier(f"{SAVED}/model_transformer.pt", cfg, ["w", "u", "d", "s"], "")
    torch.testing.assert_close(logits, logits_of(windows, torch.device("cpu")))


def test_the_learning_rate_warms_up_and_falls_to_nothing(v2_project, monkeypatch):
    monkeypatch.setattr(v2, "WARM_UP", 3)
    rates, step = [], utils.Adam.step

    def noted(self, *more):
        rates.append(float(self.param_groups[0]["lr"]))
        return step(self, *more)

    monkeypatch.setattr(utils.Adam, "step", noted)
    v2_project.run("classifier", "-d", "a", "-lr", 0.5, "-mv", "v2")
    wanted = [0.01 * min(1, (k + 1) / 3) * (0.5 + 0.5 * math.cos(math.pi * k / 12)) for k in range(12)]
    assert rates == pytest.approx(wanted, rel=1e-4)


def test_several_sources(v2_project):
    v2_project.dataset("c", 16, seed=3)
    found = v2_project.run("classifier", "-d", "a,b", "-lr", 0.5, "-mv", "v2")
    assert "a+b" in str(found["path"])
    assert v2_project.run("cross_dataset_test", "-d", "a,b", "-td", "c", "-mv", "v2")["windows"] == 16


def test_a_set_without_gyroscope_is_source_beside_others_and_target_for_v2_alone(v2_project):
    data, labels = make_windows(16, seed=3)
    data[:9, :, 3:] = np.nan
    v2_project.dataset("c", data=data, labels=labels, gyroscope=False)
    v2_project.run("classifier", "-d", "a,c", "-lr", 0.5, "-mv", "v2")
    v2_project.run("classifier", "-d", "a", "-lr", 0.5, "-mv", "v2")
    v2_project.run("cross_dataset_test", "-d", "a", "-td", "c", "-mv", "v2")
    assert np.isfinite(np.load(f"{SAVED}/model_transformer_c.npz")["logits"]).all()
    for dataset in ("c", "a,c"):
        with pytest.raises(UserError, match="'gyroscope' is false .* choose that one"):
            v2_project.run("pretrain", "-d", dataset)
    for part, entry in (((0, 0, 0), {"gyroscope": False}), ((0, 0, 5), {"gyroscope": False}), ((0, 0, 5), {})):
        wrong, _ = make_windows(16, seed=3)
        wrong[part] = np.nan
        v2_project.dataset("d", data=wrong, labels=labels, **entry)
        with pytest.raises(UserError, match="d/data_20_120.npy holds NaN"):
            v2_project.run("cross_dataset_test", "-d", "a", "-td", "d", "-mv", "v2")


@pytest.mark.parametrize("script", ["pretrain", "embedding"])
def test_what_v2_does_not_have_is_refused_with_the_command_to_go_on_with(v2_project, script):
    with pytest.raises(UserError, match="-mv v2 learns from labels alone; go on with: python classifier.py"):
        v2_project.run(script, "-d", "a", "-mv", "v2")


def test_the_same_seed_gives_the_same_file_and_another_one_another(v2_project):
    def run(*flags):
        v2_project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 0.5, *flags)
        return v2_project.files()[f"{SAVED}/model_transformer.pt"]

    first = run()
    assert run("--restart") == first != run("--seed", 6, "--restart")


@pytest.mark.parametrize("when", [6, 9, 11])  # before, while and after the other windows are labelled
def test_a_training_that_is_interrupted_ends_with_the_same_bits(v2_project, monkeypatch, when):
    flags = ["-d", "a", "-mv", "v2", "-lr", 0.5]
    v2_project.run("classifier", *flags)
    undisturbed, made = v2_project.files(), v2.represent
    calls = []

    def stops(*args):
        calls.append(1)
        if len(calls) == when:
            raise KeyboardInterrupt
        return made(*args)

    monkeypatch.setattr(v2, "represent", stops)
    with pytest.raises(KeyboardInterrupt):
        v2_project.run("classifier", *flags)
    v2_project.run("classifier", *flags)
    assert len(calls) < when + 12 + 3  # it went on, not began anew; the other windows, validation and test part
    assert v2_project.files() == undisturbed


def test_a_classifier_killed_by_a_signal_keeps_its_state(v2_project):
    v2_project.config("classifier", transformer_v2=CLASSIFIER | {"steps": 100000})
    process = v2_project.start("classifier.py", "-d", "a", "-mv", "v2", "-lr", 0.5, "-g", "cpu")
    deadline = time.time() + 60
    while "loss" not in process.stderr.read(80) and time.time() < deadline:
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [path.name for path in (v2_project.folder / SAVED).iterdir()] == ["model_transformer_state.pt"]


def test_labels_of_other_windows_are_not_trained_on(v2_project, monkeypatch, capsys):
    """Whatever the unlabelled and the test windows' labels are, the weights are the same."""
    train, _, test = utils.split_windows(64, 1, 5, "window")
    labelled = utils.pick_labelled(train, 0.5, 64, 1, 5, "window")
    data, labels = make_windows(64, seed=1)

    def weights():
        v2_project.dataset("a", data=data, labels=labels)
        v2_project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 0.5, "--restart")
        return v2_project.files()[f"{SAVED}/model_transformer.pt"]

    first = weights()
    assert "from step 8 on also the other 26 training windows, as the network labels them" in capsys.readouterr().out
    hidden = np.concatenate([np.setdiff1d(train, labelled), test])
    labels[hidden, :, 0] = (labels[hidden, :, 0] + 1) % 4
    assert weights() == first
    labels[labelled[0], :, 0] = (labels[labelled[0], :, 0] + 1) % 4
    assert weights() != first


def test_own_labels_can_be_left_out_and_are_not_needed_where_all_are_given(v2_project, capsys):
    v2_project.config("classifier", transformer_v2=CLASSIFIER | {"own_labels": False})
    v2_project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 0.5)
    v2_project.config("classifier", transformer_v2=CLASSIFIER)
    v2_project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 1, "--restart")
    assert "as the network labels them" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    "name, entry, changes, wanted",
    [
        ("pretrain_model", "base_v2", {"member": 3}, "base_v2: unknown key 'member'; did you mean 'members'"),
        ("pretrain_model", "base_v2", {"channels": ["v", "x"]}, "base_v2: 'channels' is"),
        ("pretrain_model", "base_v2", {"kernel": 4}, "base_v2: 'kernel' 4 must be odd"),
        ("pretrain_model", "base_v2", {"widths": []}, "base_v2: 'widths' is []"),
        ("classifier", "transformer_v2", {"step": 1}, "transformer_v2: unknown key 'step'; did you mean 'steps'"),
        ("classifier", "transformer_v2", {"steps": 0}, "transformer_v2: 'steps' is 0"),
        ("physics", "tempi", {"value": [1, 2], "why": "x"}, "unknown key 'tempi'; did you mean 'tempo'"),
        ("physics", "tempo", {"value": [1, 2], "why": " "}, "'tempo' must be"),
        ("physics", "tempo", {"value": [1.2, 1], "why": "x"}, "must be the slowest and the fastest"),
        ("physics", "swing", {"value": math.nan, "why": "x"}, "'swing' is NaN"),
        ("ablations", "v2", {"encoders": {}}, "v2: must be an object of objects"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(v2_project, name, entry, changes, wanted):
    value = {"base_v2": ENCODER, "transformer_v2": CLASSIFIER}.get(entry, {})
    v2_project.config(name, **{entry: value | changes})
    with pytest.raises(UserError) as raised:
        v2_project.run("classifier", "-d", "a", "-mv", "v2")
    assert wanted in str(raised.value) and f"config/{name}.json" in str(raised.value)


def test_a_command_with_an_unknown_key_ends_with_status_2(v2_project):
    v2_project.config("pretrain_model", base_v2=ENCODER | {"member": 3})
    status, out, err = v2_project.command("classifier.py", "-d", "a", "-mv", "v2", "-g", "cpu")
    assert status == 2 and err.count("\n") == 1 and err.startswith("error: config/pretrain_model.json, base_v2")


@pytest.mark.parametrize(
    "flags, wanted",
    [
        (("-am", "jitter"), "makes no copies"),
        (("-f", "other"), "leave -f out"),
        (("--precision", "bf16"), "computes in float32"),
    ],
)
def test_flags_that_mean_nothing_are_refused(v2_project, flags, wanted):
    with pytest.raises(UserError, match=f"{flags[0]} {flags[1]}: -mv v2 .*{wanted}"):
        v2_project.run("classifier", "-d", "a", "-mv", "v2", *flags)


def test_the_projects_own_configuration_stays_within_its_limits(monkeypatch):
    """All entries are readable, every ablation differs from v2, and v2 has at most three times v1's parameters."""
    from models import Classifier, Contrastive, MaskedModel

    monkeypatch.chdir(ROOT)
    cfg = configs.read_classifier_config("v2")
    for name in json.loads((ROOT / "config/ablations.json").read_text()):
        assert configs.method_of(name) == "v2" and configs.read_classifier_config(name) != cfg
    for name, entry in json.loads((ROOT / "config/variants.json").read_text()).items():
        version = entry.get("model_version", "v1")
        configs.read_encoder_config(version), configs.read_classifier_config(version)
        assert version == "v1" or version == name

    def size(*parts):
        return sum(p.numel() for part in parts for p in part.parameters())

    first = configs.read_encoder_config("v1")
    v1 = size(MaskedModel(first), Contrastive(first["hidden"]), Classifier(configs.read_classifier_config("v1"), 4))
    assert size(networks.Network(cfg, 4)) < 3 * v1


# ----------------------------------------------------------------------------------------- tables, breakdown


def test_reproduce_runs_its_variants_and_foretells_their_rows(v2_project, capsys):
    variants = {
        "full": {"title": "CrossHAR"},
        "v2": {"title": "version 2", "model_version": "v2"},
        "v2_one": {"title": "one member", "model_version": "v2_one"},
    }
    v2_project.config("variants", variants)
    flags = ["--variants", "all_v2", "--sources", "a", "--targets", "b", "--seeds", "2", "--label_rates", "0.1", "0.5"]

    def run(*more):
        return reproduce.main(reproduce.get_args([*flags, *more, "--jobs", "0", "-g", "cpu", "--no_figures"]))

    text = run()
    assert "version 2" in text and "one member" in text and "CrossHAR" not in text
    capsys.readouterr()
    run()
    assert "8 rows of 4 jobs; 0 rows of 0 jobs to make" in capsys.readouterr().out
    assert "version 2" in reproduce.main(reproduce.get_args(["--table"]))
    run("--commands")
    commands = capsys.readouterr().out
    assert "pretrain.py" not in commands and commands.count("classifier.py") == 8


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
