"""The converters of shoaib and hhar, on made-up files in the exact layout with every quirk of the real ones."""

import numpy as np
import pytest
from raw_files import HHAR_START, convert, hhar_files, hhar_rows, project, run, shoaib_file, written, zipped  # noqa: F401  (project: a fixture)

from bookkeeping.commands import UserError
from dataset import hhar, shoaib, tables

# ---------------------------------------------------------------------------------------------- shoaib
from utils import load_windows

# ---------------------------------------------------------------------------------------------- shoaib


@pytest.mark.parametrize("width", [71, 70])
def test_shoaib_layout(tmp_path, width):
    parts = [
        ("walking", 650),
        ("Upstairs", 150),
        ("upsatirs", 100),
        ("upstairs", 60),
        ("biking", 300),
        ("sitting", 299),
    ]
    path = zipped(tmp_path / "s.zip", {"DataSet/Participant_3.csv": shoaib_file(parts, width=width)})
    result = convert(shoaib, path, partial=True)
    assert (
        len(result.data) == 5 * 4
    )  # 2 walking, 1 upstairs (the misspelt rows belong to it), 1 biking at each position
    position, user = result.columns["position"][0], result.columns["user"][0]
    assert position.tolist() == np.repeat(np.arange(5), 4).tolist() and set(user.tolist()) == {2}
    assert result.activity[:4].tolist() == ["walking", "walking", "upstairs", "biking"]
    mean = result.data.reshape(5, 4, 120, 6).mean((1, 2))  # (position, channel)
    np.testing.assert_allclose(mean[:, 0], 0.1 * np.arange(5), atol=0.05)
    np.testing.assert_allclose(mean[:, 1:3], [[1.0, 9.7]] * 5, atol=0.05)
    np.testing.assert_allclose(mean[:, 3:], np.array([0.02, 0.04, 0.06]) * np.arange(1, 6)[:, None], atol=0.01)


def test_shoaib_windows_are_the_means_of_the_file(tmp_path):
    text = shoaib_file([("standing", 7), ("walking", 300)])
    result = convert(shoaib, written(tmp_path / "s", {"Participant_1.csv": text}), partial=True)
    cells = [line.split(",") for line in text.splitlines()[2 + 7 :]]
    for place in range(5):
        column = 14 * place + 8  # Gy
        raw = np.array([float(row[column]) for row in cells])
        expected = [raw[0:2].mean(), raw[2:5].mean(), raw[5:7].mean()]
        np.testing.assert_allclose(result.data[place, :3, 4], expected, rtol=1e-6)


def test_shoaib_command_four_classes_from_a_folder(tmp_path, capsys):
    parts = [(name, 310) for name in ("walking", "sitting", "standing", "jogging", "biking", "upsatirs", "downstairs")]
    files = {f"DataSet/Participant_{i}.csv": shoaib_file(parts, seed=i) for i in range(1, 11)}
    run("-d", "shoaib", "--raw", written(tmp_path / "extracted", files))
    seen = capsys.readouterr()
    assert "dropped: biking 50, jogging 50" in seen.out and "instead of the 7500" in seen.err
    data, labels, config = load_windows("shoaib", "20_120")
    assert data.shape == (250, 120, 6) and labels.shape == (250, 120, 3)
    assert np.bincount(labels[:, 0, 0]).tolist() == [50, 50, 50, 100]
    assert np.bincount(labels[:, 0, 1]).tolist() == [50] * 5 and np.bincount(labels[:, 0, 2]).tolist() == [25] * 10
    assert (config["position_label_index"], config["user_label_index"], config["size"]) == (1, 2, 250)
    with pytest.raises(UserError, match="Participant_4.csv"):
        (tmp_path / "extracted" / "DataSet" / "Participant_4.csv").unlink()
        run("-d", "shoaib", "--raw", tmp_path / "extracted")


# ---------------------------------------------------------------------------------------------- hhar


def hhar_windows(tmp_path, acc, gyro=None, name="h"):
    """Windows from such rows; without `gyro` the gyroscope has the same slots with values 1000 higher."""
    if gyro is None:
        gyro = [[*row[:1], *(value + 1000 for value in row[1:4]), *row[4:]] for row in acc]
    return convert(hhar, written(tmp_path / name, hhar_files(acc, gyro)), partial=True)


def test_hhar_slot_means(tmp_path):
    result = hhar_windows(tmp_path, hhar_rows(range(120)))
    assert result.data.shape == (1, 120, 6) and result.activity.tolist() == ["walking"]
    k = np.arange(120)
    expected = np.stack([k, 2 * k, np.full(120, 9.75), 1000 + k, 1000 + 2 * k, np.full(120, 1009.75)], axis=1)
    np.testing.assert_allclose(result.data[0], expected, rtol=1e-6)
    assert {name: (ids.tolist(), names) for name, (ids, names) in result.columns.items()} == {
        "model": ([0], ["nexus4", "s3", "s3mini"]),
        "user": ([0], list("abcdefghi")),
    }


def test_hhar_slots_are_whole_multiples_of_50_ms(tmp_path):
    """A recording that begins in the middle of a slot: slots are cut at Creation_Time // 50 ms, not at its start."""
    shifted = [[row[0] + 25_000_000, *row[1:]] for row in hhar_rows(range(120))]
    result = hhar_windows(tmp_path, shifted)
    # the first slot has the first two rows of "slot 0", the next the last two of 0 and the first two of 1, ...
    np.testing.assert_allclose(result.data[0, :3, 0], [0, 0.5, 1.5])


def test_hhar_order_and_duplicates_do_not_matter(tmp_path):
    rows = hhar_rows(range(250))
    plain = hhar_windows(tmp_path, rows)
    rng = np.random.default_rng(0)
    untidy = rows + [rows[i] for i in rng.integers(0, len(rows), 200)] + [rows[5]] * 3
    untidy = [untidy[i] for i in rng.permutation(len(untidy))]
    result = hhar_windows(tmp_path, untidy, name="untidy")
    np.testing.assert_array_equal(result.data, plain.data)
    assert len(result.data) == 2


def test_hhar_rows_of_one_time_with_other_values_all_count(tmp_path):
    rows = hhar_rows(range(120))
    twice = [row[0:1] + [row[1] + 3.0] + row[2:] for row in rows[:1]]  # same time, other x
    result = hhar_windows(tmp_path, rows + twice)
    assert result.data[0, 0, 0] == pytest.approx(3.0 / 5) and result.data[0, 1, 0] == pytest.approx(1)


def test_hhar_gap_of_one_slot_starts_a_new_window(tmp_path):
    rows = hhar_rows([k for k in range(300) if k != 60])
    result = hhar_windows(tmp_path, rows)
    assert result.data[:, 0, 0].tolist() == [61] and result.data[0, -1, 0] == 180  # slots 181-299 are one short


def test_hhar_slot_without_one_sensor_belongs_to_no_window(tmp_path):
    acc = hhar_rows(range(300))
    gyro = hhar_rows([k for k in range(300) if not 100 <= k < 110])
    result = hhar_windows(tmp_path, acc, gyro)
    assert result.data[:, 0, 0].tolist() == [110]


def test_hhar_label_change_starts_anew_and_null_is_left_out(tmp_path):
    rows = hhar_rows(range(130), label="sit") + hhar_rows(range(130, 260), label="stand")
    rows += hhar_rows(range(260, 390), label="null") + hhar_rows(range(390, 515), label="stairsdown")
    result = hhar_windows(tmp_path, rows)
    assert result.activity.tolist() == ["sitting", "standing", "downstairs"]
    assert result.data[:, 0, 0].tolist() == [0, 130, 390]


@pytest.mark.parametrize("other", ["sit", "null"])
def test_hhar_slot_with_two_labels_belongs_to_no_window(tmp_path, other):
    rows = hhar_rows(range(240))
    rows[4 * 119 + 2][-1] = other  # one row of slot 119 in the accelerometer, and so in the gyroscope
    assert hhar_windows(tmp_path, rows).data[:, 0, 0].tolist() == [120]
    gyro = hhar_rows(range(240))
    gyro[4 * 119 + 2][-1] = other  # in the gyroscope only
    assert hhar_windows(tmp_path, hhar_rows(range(240)), gyro, "second").data[:, 0, 0].tolist() == [120]


def test_hhar_users_devices_and_models_are_kept_apart(tmp_path):
    parts = [
        hhar_rows(range(125), 10, user="b", model="s3", device="s3_2", level=2.0),
        hhar_rows(range(125), 4, user="a", model="s3mini", level=3.0, label="bike"),
        hhar_rows(range(125), 3, user="a", model="nexus4", device="nexus4_2", level=4.0, label="stairsup"),
        hhar_rows(range(125), 3, user="a", model="nexus4", device="nexus4_1", level=5.0, label="sit"),
        hhar_rows(range(125), 3, user="a", model="samsungold", level=6.0),  # no usable gyroscope
    ]
    mixed = [row for i in range(1250) for part in parts for row in part[i : i + 1]]  # rows of all devices interleaved
    result = hhar_windows(tmp_path, mixed)
    assert result.data[:, 0, 2].tolist() == [14.75, 13.75, 12.75, 11.75]  # by user, model, device
    assert result.activity.tolist() == ["sitting", "upstairs", "biking", "walking"]
    assert result.columns["model"][0].tolist() == [0, 0, 2, 1] and result.columns["user"][0].tolist() == [0, 0, 0, 1]


def test_hhar_reading_in_blocks_changes_nothing(tmp_path, monkeypatch):
    rows = hhar_rows(range(250), 5) + hhar_rows(range(130), user="c", model="s3", label="stand")
    whole = hhar_windows(tmp_path, rows)
    monkeypatch.setattr(tables, "BLOCK", 997)
    pieces = hhar_windows(tmp_path, rows, name="again")
    np.testing.assert_array_equal(pieces.data, whole.data)
    assert pieces.activity.tolist() == whole.activity.tolist() == ["walking"] * 2 + ["standing"]


def reference_windows(acc, gyro):
    """The hhar rule in plain Python: {(user, model, device): [first slot of each window, its label]}."""
    slots = {}
    for sensor, rows in enumerate((acc, gyro)):
        for row in {tuple(row) for row in rows}:
            if row[5] != "samsungold":
                slot = slots.setdefault((row[4], row[5], row[6]), {}).setdefault(row[0] // 50_000_000, ([], [], set()))
                slot[sensor].append(row[1:4])
                slot[2].add(row[7])
    found = []
    for device in sorted(slots):
        inside, previous = [], None
        for number in sorted(slots[device]):
            a, g, labels = slots[device][number]
            usable = bool(a) and bool(g) and len(labels) == 1 and labels != {"null"}
            if not usable or previous is None or number != previous[0] + 1 or labels != previous[1]:
                inside = []
            previous = (number, labels) if usable else None
            if usable:
                inside.append([*np.mean(a, axis=0), *np.mean(g, axis=0)])
            if len(inside) == 120:
                found.append((device, next(iter(labels)), np.array(inside)))
                inside = []
    return found


@pytest.mark.parametrize("seed", range(4))
def test_hhar_agrees_with_the_rule_in_plain_python(tmp_path, seed):
    """Random recordings with everything at once: rates, gaps, late and repeated rows, labels changing within slots."""
    rng = np.random.default_rng(seed)
    both = [], []
    for user, model, rate in (("a", "s3", 150), ("a", "nexus4", 60), ("d", "s3mini", 100), ("b", "samsungold", 50)):
        for rows in both:
            at = (np.arange(60 * rate) + rng.uniform(0, 1, 60 * rate)) / rate
            at = at[(at % 17 > 0.08) & (at % 29 > 0.01)]
            for t in at:
                label = ("walk", "sit", "null", "bike")[int(t // 14.3) % 4]
                time = HHAR_START + int(t * 1e9)
                rows.append([time, *rng.normal(size=3).round(3).tolist(), user, model, f"{model}_1", label])
    for rows in both:
        rows += [rows[i] for i in rng.integers(0, len(rows), 300)]
    acc, gyro = ([rows[i] for i in rng.permutation(len(rows))] for rows in both)
    result, expected = hhar_windows(tmp_path, acc, gyro), reference_windows(acc, gyro)
    assert len(expected) >= 6 and len(result.data) == len(expected)
    np.testing.assert_allclose(result.data, np.stack([data for _, _, data in expected]), rtol=1e-5, atol=1e-6)
    assert result.activity.tolist() == [hhar.ACTIVITIES[label] for _, label, _ in expected]
    assert [hhar.MODELS[i] for i in result.columns["model"][0]] == [device[1] for device, _, _ in expected]


# ---------------------------------------------------------------------------------------------- hhar's clocks


def later(rows, ms, clock=0):
    """Such rows, recorded `ms` later on a clock that began anew; or one that is `clock` ms behind."""
    return [[row[0] - 1_000_000 * clock, *row[1:], ms + clock] for row in rows]


def levels(result):
    """The z of the accelerometer and of the gyroscope of each window, without what the first window of all has."""
    return (result.data[:, 0, 2] - 9.75).tolist(), (result.data[:, 0, 5] - 1009.75).tolist()


def both(parts):
    """(acc, gyro) rows; the gyroscope's values are 1000 higher."""
    acc = [row for part in parts for row in part]
    return acc, [[row[0], *(value + 1000 for value in row[1:4]), *row[4:]] for row in acc]


@pytest.mark.parametrize("pause", [7_000, 60_000, 600_000, 86_400_000 * 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_hhar_sessions_on_one_clock_are_told_apart(tmp_path, capsys, pause, mixed):
    """Recorded three times, the clock begins anew each time: no window holds the mean of two."""
    parts = [later(hhar_rows(range(125), level=float(k)), k * pause) for k in range(3)]
    acc, gyro = both(parts)
    if mixed:
        acc, gyro = ([rows[i] for i in np.random.default_rng(0).permutation(len(rows))] for rows in (acc, gyro))
    result = hhar_windows(tmp_path, acc, gyro)
    np.testing.assert_allclose(levels(result), [[0, 1, 2]] * 2, atol=1e-3)
    np.testing.assert_allclose(result.data[:, :, 0] - np.arange(3)[:, None], [np.arange(120)] * 3)
    assert "warning: hhar, a nexus4 nexus4_1: 3 sessions on its clock" in capsys.readouterr().err


@pytest.mark.parametrize("back", [6_500, 30_130, 3_600_000])
def test_hhar_a_clock_that_is_set_back(tmp_path, back):
    slots = 130 * 50 * 10**6
    parts = [hhar_rows(range(130)), later(hhar_rows(range(130), level=3.0, start=HHAR_START + slots), 0, back)]
    result = hhar_windows(tmp_path, *both(parts))
    np.testing.assert_allclose(levels(result), [[0, 3]] * 2, atol=1e-3)


@pytest.mark.parametrize("sensor", [0, 1])
@pytest.mark.parametrize("boot", [HHAR_START // 10**6 - 5_000_000, HHAR_START // 10**6 - 17, 86_400_000 * 2])
def test_hhar_a_sensor_whose_clock_counts_from_another_moment(tmp_path, capsys, sensor, boot):
    """Its rows are set by Arrival_Time; twice, the second time after the phone was started anew."""
    parts = [hhar_rows(range(125)), hhar_rows(range(20_000, 20_125), level=2.0)]
    rows = list(both(parts))
    half = len(rows[sensor]) // 2
    rows[sensor] = later(rows[sensor][:half], 0, boot) + later(rows[sensor][half:], 0, boot + 900_000)
    result = hhar_windows(tmp_path, *rows)
    np.testing.assert_allclose(levels(result), [[0, 2]] * 2, atol=1e-3)
    np.testing.assert_allclose(result.data[0, :, 0], np.arange(120), atol=0.5)  # slots are those of one of the clocks
    assert "the clock of one sensor is set by Arrival_Time to the other's" in capsys.readouterr().err


def test_hhar_clocks_that_differ_by_minutes_are_not_guessed(tmp_path, capsys):
    acc, gyro = both([hhar_rows(range(400))])
    acc += hhar_rows(range(130), user="b")
    gyro = later(gyro, 0, 8_000) + both([hhar_rows(range(130), user="b")])[1]
    assert len(hhar_windows(tmp_path, acc, gyro).data) == 1
    err = capsys.readouterr().err
    assert "a nexus4 nexus4_1: no window is made of it: its accelerometer and gyroscope were never recorded" in err


def test_hhar_devices_whose_names_were_swapped_in_one_file_give_no_windows_of_two_phones(tmp_path, capsys):
    first, second = hhar_rows(range(130)), hhar_rows(range(130), device="nexus4_2", start=HHAR_START + 10**12)
    acc, gyro = both([first, second])
    swapped = [[*row[:6], {"nexus4_1": "nexus4_2", "nexus4_2": "nexus4_1"}[row[6]], *row[7:]] for row in gyro]
    found = hhar_windows(tmp_path, acc + hhar_rows(range(130), user="b"), swapped + hhar_rows(range(130), user="b"))
    assert found.columns["user"][0].tolist() == [1]
    assert capsys.readouterr().err.count("were never recorded at once") == 2


def test_hhar_every_device_without_a_window_is_named(tmp_path, capsys):
    acc = hhar_rows(range(130)) + hhar_rows(range(130), model="s3") + hhar_rows(range(119), model="s3mini")
    gyro = hhar_rows(range(130)) + hhar_rows(range(119), model="s3mini") + hhar_rows(range(130), user="c", model="s3")
    assert len(hhar_windows(tmp_path, acc, gyro).data) == 1
    assert [line for line in capsys.readouterr().err.splitlines() if "no window" in line] == [
        "warning: hhar, a s3 s3_1: no window is made of it: it has no rows of its gyroscope",
        "warning: hhar, a s3mini s3mini_1: no window is made of it: no 6 s of both sensors without a gap under one "
        "label",
        "warning: hhar, c s3 s3_1: no window is made of it: it has no rows of its accelerometer",
    ]


def test_hhar_rows_that_are_a_little_late_are_of_their_session(tmp_path, capsys):
    """Up to 5 s later than others, one by one or from some moment on: nothing changes."""
    rng = np.random.default_rng(0)
    rows = hhar_rows(range(400))
    plain = hhar_windows(tmp_path, rows)
    late = [[*row, int(rng.integers(0, 4900)) if i % 7 == 0 else 3000 * (i > 700)] for i, row in enumerate(rows)]
    found = hhar_windows(tmp_path, late, [[*row[:1], *(v + 1000 for v in row[1:4]), *row[4:]] for row in rows], "late")
    np.testing.assert_array_equal(found.data, plain.data)
    assert capsys.readouterr().err == ""


def test_hhar_arrival_that_means_nothing_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    rows = [[*row, int(ms)] for row, ms in zip(hhar_rows(range(400)), rng.integers(0, 10**12, 1600), strict=True)]
    with pytest.raises(UserError, match="a nexus4 nexus4_1: Arrival_Time has nothing to do with Creation_Time"):
        hhar_windows(tmp_path, rows)
    with pytest.raises(UserError, match="lacks the column Arrival_Time"):
        files = {k: v.replace("Arrival_Time", "Other") for k, v in hhar_files(rows, rows).items()}
        convert(hhar, written(tmp_path / "other", files), partial=True)


def test_hhar_command_on_a_zip_in_a_zip(tmp_path, capsys):
    labels = ("walk", "stairsup", "stairsdown", "sit", "stand", "bike")
    rows = []
    for u, user in enumerate("abcdefghi"):
        for i, label in enumerate(labels):
            start = HHAR_START + 10**12 * u + i * 10**11
            rows += hhar_rows(range(120 + 7 * u), 3, label, user, ("nexus4", "s3", "s3mini")[u % 3], start=start)
    rng = np.random.default_rng(0)
    acc = [[t, *rng.normal([0, 0, 9.8], 0.5).round(4), *rest] for t, _, _, _, *rest in rows]
    gyro = [[t, *rng.normal(0, 0.5, 3).round(4), *rest] for t, _, _, _, *rest in rows]
    inner = zipped(tmp_path / "Activity recognition exp.zip", hhar_files(acc, gyro))
    outer = zipped(tmp_path / "outer.zip", {"Activity recognition exp.zip": inner.read_bytes(), "readme.txt": "x"})
    inner.unlink()
    run("-d", "hhar", "--raw", outer)
    assert "dropped: biking 9" in capsys.readouterr().out
    data, labels, config = load_windows("hhar", "20_120")
    assert data.shape == (45, 120, 6) and np.bincount(labels[:, 0, 0]).tolist() == [9, 9, 9, 18]
    assert np.bincount(labels[:, 0, 1]).tolist() == [15] * 3 and np.bincount(labels[:, 0, 2]).tolist() == [5] * 9
    assert (config["model_label_index"], config["user_label_index"]) == (1, 2) and config["user_label"][8] == "i"
