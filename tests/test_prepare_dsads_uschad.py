"""The converters of dsads and uschad: made-up files in the exact layout, real samples against their known windows."""

import io

import numpy as np
import pytest
import scipy.io
from raw_files import convert, lines, project, shared, zipped  # noqa: F401  (project: a fixture)

from bookkeeping.commands import UserError
from dataset import dsads, uschad
from dataset.windows import CLASSES, GRAVITY, four_classes

# ----------------------------------------------------------------------------------------------- dsads


def segments(parts, seed=0):
    """Files of one person's segments, (number, offset) for each recording in `parts`, and its samples."""
    rng, files, whole, number = np.random.default_rng(seed), {}, [], 0
    for count, offset in parts:
        t = np.arange(125 * count)[:, None] / 25
        phase = rng.uniform(0, 6, 45)
        rows = np.round(offset + np.sin(0.8 * t + phase) + 0.01 * rng.standard_normal((len(t), 45)), 6)
        whole.append(rows)
        for part in np.split(rows, count):
            number += 1
            files[f"data/a09/p2/s{number:02d}.txt"] = lines(part, ",")
    return files, whole


def test_dsads_joins_segments_that_follow_on_from_each_other(tmp_path):
    """Five segments, a jump, three: 25 s and 15 s, of which each position has 4 and 2 windows."""
    files, whole = segments([(5, 0), (3, 40)])
    found = convert(dsads, zipped(tmp_path / "d.zip", files), partial=True)
    assert found.data.shape == (5 * 6, 120, 6) and set(found.activity) == {"walking"}
    assert found.columns["position"][0].tolist() == np.repeat(np.arange(5), 6).tolist()
    assert set(found.columns["user"][0]) == {1}
    at = np.arange(120) * 1.25  # 20 Hz in samples at 25 Hz
    for place in (0, 3):
        for window, rows in ((0, whole[0]), (4, whole[1])):
            for channel in range(6):
                wanted = np.interp(at, np.arange(len(rows)), rows[:, 9 * place + channel])
                np.testing.assert_allclose(found.data[6 * place + window, :, channel], wanted, atol=1e-5)


def test_dsads_rows_of_zeros_are_no_samples(tmp_path):
    """As at the end of each of two people's segments on the stairs: 4 s are left, too short for a window."""
    files, _ = segments([(4, 0)])
    zeros = lines(np.zeros((25, 45)), ",")
    cut = {name: "".join(text.splitlines(keepends=True)[:100]) + zeros for name, text in files.items()}
    assert len(convert(dsads, zipped(tmp_path / "d.zip", cut), partial=True).data) == 0
    assert len(convert(dsads, zipped(tmp_path / "e.zip", files), partial=True).data) == 5 * 3


def test_dsads_mistakes_are_one_line(tmp_path):
    files, _ = segments([(2, 0)])
    with pytest.raises(UserError, match=r"lacks a01/p1/s01.txt and 2397 more of 2400 files: .*--partial"):
        convert(dsads, zipped(tmp_path / "d.zip", files))
    name = next(iter(files))
    for text, wanted in ((files[name][:-9], "columns|no table"), ("1,2\n", "2 columns, not 45")):
        with pytest.raises(UserError, match=wanted):
            convert(dsads, zipped(tmp_path / "e.zip", files | {name: text}), partial=True)
    short = "".join(files[name].splitlines(keepends=True)[:100])
    with pytest.raises(UserError, match="has 100 rows, not 125"):
        convert(dsads, zipped(tmp_path / "f.zip", files | {name: short}), partial=True)


# ---------------------------------------------------------------------------------------------- uschad


def trial(rows):
    content = io.BytesIO()
    scipy.io.savemat(content, {"title": "USC Human Motion Database", "sensor_readings": rows})
    return content.getvalue()


def test_uschad_is_the_mean_of_five_samples_in_other_units(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1234, 6))
    names = ("Subject3/a1t2.mat", "Subject3/a9t1.mat", "Subject12/a4t1.mat", "Subject3/a11t1.mat", "Subject3/a2t1.mat")
    files = {f"USC-HAD/{name}": trial(rows) for name in names}
    found = convert(uschad, zipped(tmp_path / "u.zip", files), partial=True)
    assert found.activity.tolist() == ["walking"] * 2 + ["standing"] * 2 + ["upstairs"] * 2  # a2 and a11 are none
    assert found.columns["user"][0].tolist() == [2] * 4 + [11] * 2
    scale = np.array([GRAVITY] * 3 + [np.pi / 180] * 3)
    wanted = rows[:1200].reshape(2, 120, 5, 6).mean(2) * scale
    np.testing.assert_allclose(found.data[:2], wanted, atol=1e-5)


def test_uschad_mistakes_are_one_line(tmp_path):
    good = {"USC-HAD/Subject1/a1t1.mat": trial(np.zeros((700, 6)))}
    with pytest.raises(UserError, match=r"lacks Subject1/a1t2.mat and 348 more of 350 files"):
        convert(uschad, zipped(tmp_path / "u.zip", good))
    bad = io.BytesIO()
    scipy.io.savemat(bad, {"other": np.zeros(3)})
    for content, wanted in (
        (b"no mat", "no readable sensor_readings"),
        (bad.getvalue(), "no readable sensor_readings"),
        (trial(np.zeros((700, 5))), r"\(700, 5\), not \(samples, 6\)"),
        (trial(np.full((700, 6), np.nan)), "not .samples, 6. numbers"),
    ):
        with pytest.raises(UserError, match=wanted):
            convert(uschad, zipped(tmp_path / "v.zip", {"Subject1/a1t1.mat": content}), partial=True)


# ---------------------------------------------------------------------------------------------- real samples


@pytest.mark.parametrize(
    "module, name, count", [(dsads, "dsads", 120), (uschad, "uschad", 78)], ids=["dsads", "uschad"]
)
def test_real_samples_give_the_known_windows_of_the_same_rows(module, name, count):
    """Those are in float16; the stairs of person 1 in dsads end in zeros and give none."""
    found, _ = four_classes(convert(module, shared(f"raw/{name}_sample.zip"), partial=True))
    with np.load(shared(f"data/{name}_20_120.npz")) as known:
        data, labels = known["data"], known["label"]
    keys = [np.array([CLASSES.index(activity) for activity in found.activity])]
    keys += [ids for ids, _ in found.columns.values()]
    assert len(found.data) == count
    for number, window in enumerate(found.data):
        same = np.flatnonzero((labels == [key[number] for key in keys]).all(1))
        assert np.abs(data[same].astype(np.float32) - window).max((1, 2)).min() < 0.05
    stairs = np.isin(found.activity, ["upstairs", "downstairs"]) & (found.columns["user"][0] == 0)
    assert stairs.any() == (name == "uschad")
