"""Units and rates: acceleration in another unit is converted, one that is not what its entry says is noticed."""

import json

import numpy as np
import pytest
from conftest import ROOT, make_windows

import utils
from bookkeeping import artefacts, configs, ledger
from bookkeeping.commands import UserError

G = 9.80665
V2 = {"method": "v2", "widths": [4, 6], "kernel": 3, "members": 2, "dropout": 0.1}
V2_CLASSIFIER = {"method": "v2", "steps": 60, "batch_size": 32, "lr": 0.01}
TEST = ("cross_dataset_test", "-d", "a", "-mv", "v2", "-td")


def windows(count, seed, unit=1.0):
    """Those of make_windows, but every fourth lies still; acceleration divided by `unit` m/s^2."""
    x, labels = make_windows(count, seed)
    x[labels[:, 0, 0] == 3] = [0, 0, G, 0, 0, 0]
    x[..., :3] /= unit
    return x, labels


@pytest.fixture
def mixed(project):
    """Source a in m/s^2 and the same target in m/s^2, g and mg, as their entries say; `gees` does not say it."""
    for name, count, seed, unit, entry in (
        ("a", 64, 1, 1, {}),
        ("b", 24, 2, 1, {}),
        ("g", 24, 2, G, {"acc_unit": "g"}),
        ("mg", 24, 2, G / 1000, {"acc_unit": "mg"}),
        ("gees", 24, 2, G, {}),
        ("thousandths", 24, 2, G / 1000, {}),
        ("none", 24, 2, 7, {}),
    ):
        x, labels = windows(count, seed, unit)
        project.dataset(name, data=x, labels=labels, **entry)
    project.config("physics", json.loads((ROOT / "config/physics.json").read_text()))
    project.config("ablations", {})
    project.config("pretrain_model", base_v2=V2), project.config("classifier", transformer_v2=V2_CLASSIFIER)
    return project


def test_units_are_converted_wherever_windows_are_read(mixed):
    wanted = np.asarray(utils.load_windows("b", "20_120")[0])
    for name in ("g", "mg"):
        data, _, _ = utils.load_windows(name, "20_120")
        assert data.shape == wanted.shape and len(data) == len(wanted) and data.dtype == np.float32
        for rows in (slice(3, 9), np.array([5, 0, 5]), 4):
            np.testing.assert_allclose(data[rows], wanted[rows], rtol=1e-5)
        np.testing.assert_allclose(np.asarray(data, np.float64), wanted, rtol=1e-5)
        together = utils.load_windows(f"a+{name}", "20_120")[0]
        np.testing.assert_allclose(together[np.array([64, 70])], wanted[[0, 6]], rtol=1e-5)
    with pytest.raises(UserError, match="c_20_120: 'acc_unit' must be one of m/s2, g, mg"):
        mixed.dataset("c", acc_unit="furlong")
        utils.load_windows("c", "20_120")


def test_v2_scores_the_same_in_every_unit_that_is_said_and_refuses_one_that_is_not(mixed):
    mixed.run("classifier", "-d", "a", "-lr", 1, "-mv", "v2")
    wanted = mixed.run(*TEST, "b")
    for name in ("g", "mg"):
        assert mixed.run(*TEST, name)["confusion"] == wanted["confusion"]
    before = mixed.files()
    for name, said in (
        ("gees", 'at rest is 1, .*it seems to be in g: add "acc_unit": "g" to gees_20_120'),
        ("thousandths", r"at rest is 1e\+03, .*it seems to be in mg"),
        ("none", "at rest is 1.4, .*say its unit"),
    ):
        with pytest.raises(UserError, match=said):
            mixed.run(*TEST, name)
        with pytest.raises(UserError, match=said):
            mixed.run("classifier", "-d", name, "-lr", 1, "-mv", "v2", "-s", "x")
        with pytest.raises(UserError, match=said):
            mixed.run("experiments.baselines", "-d", "a", "-td", name, "-b", "forest", "-s", "y")
    assert {k: v for k, v in mixed.files().items() if "baseline" not in k} == before
    with pytest.raises(UserError, match="at rest is 1,.*gees"):
        mixed.run("classifier", "-d", "a,gees", "-lr", 1, "-mv", "v2", "-s", "x")


def test_v1_warns_and_its_scores_are_those_of_any_unit(mixed, capsys):
    mixed.run("pretrain", "-d", "a"), mixed.run("embedding", "-d", "a"), mixed.run("classifier", "-d", "a")
    assert "at rest" not in capsys.readouterr().err
    scores = {name: mixed.run("cross_dataset_test", "-d", "a", "-td", name)["f1_macro"] for name in ("b", "gees")}
    err = capsys.readouterr().err
    assert err.count("warning: dataset/gees/data_20_120.npy: the acceleration at rest is 1, not about 9.8") == 1
    assert scores["b"] == pytest.approx(scores["gees"], abs=0.1)


@pytest.mark.parametrize("scale, refused", [(0.84, True), (0.86, False), (1.14, False), (1.16, True), (0, True)])
def test_gravity_within_15_percent(scale, refused):
    x, _ = windows(40, 3)
    if refused:
        with pytest.raises(UserError, match="not about 9.8"):
            utils.check_gravity("a", "20_120", x * np.float32(scale), refuse=True)
    else:
        utils.check_gravity("a", "20_120", x * np.float32(scale), refuse=True)


def test_where_nothing_rests_nothing_is_said(capsys):
    x, labels = windows(40, 3)
    utils.check_gravity("a", "20_120", x[labels[:, 0, 0] != 3] / 10, refuse=True)
    one = windows(400, 3)[0]
    one[3] /= G  # a single odd window among a hundred at rest is no unit
    utils.check_gravity("a", "20_120", one, refuse=True)


def test_the_unit_is_part_of_what_a_row_stands_for(mixed):
    def key():
        return ledger.config_hash({}, "a", "b", "20_120")

    before = key()
    mixed.datasets["b_20_120"]["acc_unit"] = "m/s2"
    (mixed.folder / "dataset/data_config.json").write_text(json.dumps(mixed.datasets))
    assert key() == before
    mixed.datasets["b_20_120"]["acc_unit"] = "g"
    (mixed.folder / "dataset/data_config.json").write_text(json.dumps(mixed.datasets))
    assert key() != before


def test_v2_takes_20_hz_alone(mixed):
    mixed.datasets["a_50_120"] = mixed.datasets["a_20_120"] | {"sr": 50}
    (mixed.folder / "dataset/data_config.json").write_text(json.dumps(mixed.datasets))
    for kind in ("data", "label"):
        (mixed.folder / f"dataset/a/{kind}_50_120.npy").write_bytes(
            (mixed.folder / f"dataset/a/{kind}_20_120.npy").read_bytes()
        )
    with pytest.raises(UserError, match="must have 20 Hz .*, not 50; resample them, or choose -mv v1"):
        mixed.run("classifier", "-d", "a", "-lr", 1, "-mv", "v2", "-dv", "50_120")
    mixed.run("pretrain", "-d", "a", "-dv", "50_120")
    mixed.datasets["a_20_120"]["sr"] = 50
    (mixed.folder / "dataset/data_config.json").write_text(json.dumps(mixed.datasets))
    with pytest.raises(UserError, match="a_20_120: 'sr' is 50, but the name says 20 Hz"):
        mixed.run("pretrain", "-d", "a")


def test_the_projects_own_entries_are_in_the_units_the_method_takes(monkeypatch):
    monkeypatch.chdir(ROOT)
    for key, entry in configs.dataset_entries().items():
        assert configs.acc_unit(entry, key) == 1 and entry["sr"] == 20
    assert artefacts.read_json("dataset/data_config.json", "")["sim_20_120"]["shares_users_with"] == ["uci"]
