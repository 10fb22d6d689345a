"""entry.json: an own set's entry, what the checks found in any set, and that nobody uses what was not accepted."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import DATASET, ROOT
from test_prepare_check import good_windows

import reproduce
import utils
from bookkeeping import artefacts, configs
from bookkeeping.commands import UserError
from dataset import check, prepare, store
from dataset.windows import CLASSES

FOUR = {
    "pretrain": ("pretrain", "-d", "mine"),
    "embedding": ("embedding", "-d", "mine"),
    "classifier": ("classifier", "-d", "mine", "-lr", 0.5),
    "classifier v2": ("classifier", "-d", "mine", "-lr", 0.5, "-mv", "v2"),
    "stage 3": ("cross_dataset_test", "-d", "mine", "-td", "b"),
    "stage 3, target": ("cross_dataset_test", "-d", "a", "-td", "mine"),
    "several sources": ("pretrain", "-d", "a,mine"),
    "baseline": ("experiments.baselines", "-d", "mine", "-b", "forest", "-lr", 0.5, "--targets", "b"),
    "baseline, target": ("experiments.baselines", "-d", "a", "-b", "forest", "-lr", 0.5, "--targets", "mine"),
}
PROBLEM = r"exact copies of others .windows 79 = 3 \.\.\..: is a recording there twice\?"


def run(*argv):
    return prepare.main(prepare.get_args([str(a) for a in argv]))


def prepared(name="mine", copies=False, **changes):
    """Prepare a set as prepare.py does after reading: False if its checks found problems that nobody accepted."""
    windows = good_windows(**changes)
    if copies:
        windows.data[79] = windows.data[3]
    store.save_dataset(name, windows, {"command": "prepare"})
    report, accepted = store.checked(name, check.check)
    return not report.problems or accepted


def entry(name="mine"):
    return json.loads(configs.entry_path(name).read_text())["20_120"]


# ------------------------------------------------------------------------------------------------- where it lives


def test_preparing_changes_no_tracked_file(project):
    before = (project.folder / "dataset/data_config.json").read_bytes()
    assert prepared() and prepared("uci")
    assert (project.folder / "dataset/data_config.json").read_bytes() == before
    found = entry()
    columns = [found[f"{name}_label_index"] for name in ("activity", "position", "user")]
    assert columns == [0, 1, 2] and found["user_label"] == list("abcd") and found["size"] == 80
    assert found["activity_label"] == list(CLASSES) and found["checks"]["problems"] == []
    data, _, config = utils.load_windows("mine", "20_120")
    assert len(data) == 80 and config == found | {"file": "dataset/mine/entry.json"}


def test_a_built_in_sets_file_holds_what_differs(tmp_path, monkeypatch):
    """With --partial it is another size; the rest stands in the project's own data_config.json."""
    monkeypatch.chdir(tmp_path)
    whole = good_windows()
    whole.columns = {"user": (whole.columns["user"][0], [str(i) for i in range(1, 31)])}
    store.save_dataset("uci", whole, {})
    assert entry("uci").keys() == {"size", "checks"} and entry("uci")["size"] == 80
    config = configs.dataset_config("uci", "20_120")
    assert config["size"] == 80 and config["user_label_size"] == 30 and check.check("uci").problems == []
    whole.columns = {}
    store.save_dataset("uci", whole.take(slice(0, 40)), {})
    assert entry("uci")["size"] == 40
    with pytest.raises(UserError, match="mine_20_120'.*there: uci_20_120, .*nor is there dataset/mine/entry.json"):
        configs.dataset_config("mine", "20_120")


def test_what_windows_cannot_tell_stays(project):
    prepared()
    with store.changing("mine") as entries:
        entries["20_120"] |= {"shares_users_with": ["a"], "acc_unit": "g"}
    assert configs.sharing("a", "mine", "20_120") == ["a"] and configs.sharing("mine", "a", "20_120") == ["mine"]
    prepared(seed=1)
    assert entry()["shares_users_with"] == ["a"] and "acc_unit" not in entry()  # it is prepared in m/s²


def test_own_sets_come_after_the_others_in_alphabetical_order(project):
    for name in ("zoo", "mine"):
        prepared(name)
    assert configs.in_order("zoo+b+mine+a", "20_120") == "a+b+mine+zoo"
    from experiments.grid import prepared as there

    assert there("20_120") == ["a", "b", "mine", "zoo"] and there("50_120") == []


def test_two_entries_of_one_name_are_an_error(project):
    prepared()
    project.dataset("mine")
    both = r"data_config.json and dataset/mine/entry.json both have an entry of mine_20_120: remove one"
    for argv in (("pretrain", "-d", "mine"), ("classifier", "-d", "a,mine", "-mv", "v2")):
        with pytest.raises(UserError, match=both):
            project.run(*argv)
    with pytest.raises(UserError, match="has an entry mine_20_120, which belongs in dataset/mine/entry.json"):
        run("-d", "mine", "--raw", ".", "--recordings", "no.json")


def test_a_set_put_there_by_hand_works_as_ever(project):
    """With an entry in data_config.json; and with an entry.json that was written by hand."""
    project.run("pretrain", "-d", "a")
    name = project.folder / "dataset/c"
    (project.folder / "dataset/b").rename(name)
    (name / "entry.json").write_text(json.dumps({"20_120": DATASET}))
    project.run("pretrain", "-d", "c")
    with pytest.raises(UserError, match="look before you use it"):
        run("--check", "c")  # its size is not said
    assert json.loads((name / "entry.json").read_text()) == {"20_120": DATASET}


MALFORMED = {
    "no JSON": "{",
    "a list": "[]",
    "an entry that is none": '{"20_120": 3}',
    "checks that are none": '{"20_120": {"checks": []}}',
    "checks without problems": '{"20_120": {"checks": {"fingerprint": "", "label_fingerprint": "", "accepted": true}}}',
    "accepted as text": json.dumps(
        {"20_120": {"checks": dict(fingerprint="", label_fingerprint="", problems=["x"], accepted="yes")}}
    ),
    "twice": '{"20_120": {}, "20_120": {}}',
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_one_line(project, case):
    prepared()
    configs.entry_path("mine").write_text(MALFORMED[case])
    for argv in FOUR.values():
        if argv[:3] not in (FOUR["stage 3, target"][:3], FOUR["baseline, target"][:3]):
            with pytest.raises(UserError, match="^dataset/mine/entry.json .*mend it") as caught:
                project.run(*argv)
            assert "\n" not in str(caught.value)
    for argv in (("--check", "mine"), ("--accept", "mine")):
        with pytest.raises(UserError, match="^dataset/mine/entry.json .*mend it"):
            run(*argv)
    with pytest.raises(UserError, match="^dataset/mine/entry.json .*mend it"):
        prepared()
    project.run("pretrain", "-d", "a")  # another set is none of its business


def test_a_renamed_folder_is_a_set_of_that_name(project):
    prepared(copies=True)
    (project.folder / "dataset/mine").rename(project.folder / "dataset/yours")
    with pytest.raises(UserError, match=f"^dataset/yours: 1 windows are {PROBLEM}; look with: .* --check yours"):
        project.run("pretrain", "-d", "yours")


# ------------------------------------------------------------------------------------------------- problems


@pytest.fixture
def trainable(project):
    """a, b and mine, prepared; the first three stages ran on a and on mine."""
    for name in ("a", "b"):
        project.datasets.pop(f"{name}_20_120")
    (project.folder / "dataset/data_config.json").write_text("{}")
    for seed, name in enumerate(("a", "b", "mine")):
        assert prepared(name, seed=seed)
    models = project.folder / "config"
    for name in ("pretrain_model", "classifier", "physics"):
        (models / f"{name}.json").write_text((ROOT / "config" / f"{name}.json").read_text())
    project.config("pretrain", n_epochs=2, n_epochs_cl=1), project.config("train", n_epochs=1, total_steps=3)
    for name in ("a", "mine"):
        for script in ("pretrain", "embedding", "classifier"):
            project.run(script, "-d", name)
    return project


def test_problems_are_refused_then_accepted_with_a_warning(trainable, capsys, monkeypatch):
    """Everywhere a number may come from, also where the windows themselves are read no more."""
    from experiments import baselines

    monkeypatch.setattr(baselines, "TREES", 3)
    with store.changing("mine") as entries:
        entries["20_120"]["checks"]["problems"] = ["it looks odd", "and worse"]
    for argv in FOUR.values():
        with pytest.raises(UserError, match="^dataset/mine: it looks odd .the first of 2 problems.; look with: ") as no:
            trainable.run(*argv)
        assert "--check mine" in str(no.value) and "--accept mine" in str(no.value) and "\n" not in str(no.value)
    grid = ["--variants", "forest", "--jobs", "0", "-g", "cpu", "--seeds", "1", "--no_figures"]
    with pytest.raises(UserError, match="^dataset/mine: it looks odd"):
        reproduce.main(reproduce.get_args(grid))
    trainable.run("pretrain", "-d", "a"), trainable.run("embedding", "-d", "a")
    capsys.readouterr()
    assert run("--accept", "mine") == {}
    assert capsys.readouterr().out.splitlines() == [
        "accepted for dataset/mine: it looks odd",
        "accepted for dataset/mine: and worse",
    ]
    for argv in FOUR.values():
        trainable.run(*argv)
        lines = [line for line in capsys.readouterr().err.splitlines() if "looks odd" in line]
        assert len(lines) == 1 and lines[0].startswith("warning: dataset/mine: it looks odd"), (argv, lines)
        assert "accepted, but what is computed from it may be wrong" in lines[0]
    reproduce.main(reproduce.get_args(grid))
    assert "warning: dataset/mine: it looks odd" in capsys.readouterr().err
    reproduce.main(reproduce.get_args([*grid, "--table"]))
    assert "warning: dataset/mine: it looks odd" in capsys.readouterr().err


def test_acceptance_is_of_these_windows_and_these_problems(project):
    assert not prepared(copies=True)
    run("--accept", "mine")
    assert prepared(copies=True)  # the same windows again
    run("--check", "mine")  # accepted: no error
    assert not prepared(copies=True, seed=1)  # others
    with pytest.raises(UserError, match="look with"):
        project.run("pretrain", "-d", "mine")
    run("--accept", "mine")
    with store.changing("mine") as entries:
        entries["20_120"]["size"] = 79
    with pytest.raises(UserError, match="2 problem.s. found in dataset/mine.*--accept mine"):
        run("--check", "mine")  # another problem than the one accepted
    assert not entry()["checks"]["accepted"]
    assert prepared() and entry()["checks"]["problems"] == []


def test_other_labels_forget_the_acceptance_too(project):
    windows = good_windows()
    windows.data[79] = windows.data[3]
    for classes in (CLASSES, CLASSES[::-1]):
        store.save_dataset("mine", windows, {}, classes=classes)
        assert store.checked("mine", check.check)[1] is False
        run("--accept", "mine")


def test_accept_refuses_where_there_is_nothing_to_accept(project):
    with pytest.raises(UserError, match="--accept nosuch: dataset/nosuch/data_20_120.npy or .* is missing"):
        run("--accept", "nosuch")
    with pytest.raises(UserError, match="--accept a: .*dataset/a/entry.json is missing"):
        run("--accept", "a")
    prepared()
    with pytest.raises(UserError, match="--accept mine: its checks found no problem"):
        run("--accept", "mine")
    store.save_dataset("mine", good_windows(seed=3), {})  # and no check
    with pytest.raises(UserError, match="no checks of these windows are known; look first: .* --check mine"):
        run("--accept", "mine")
    assert not (project.folder / "dataset/nosuch").exists()


@pytest.mark.parametrize("argv", [["--accept", "a", "--check", "a"], ["-d", "uci", "--accept", "a"]])
def test_one_thing_at_a_time(argv, capsys):
    with pytest.raises(SystemExit):
        prepare.get_args(argv)
    with pytest.raises(SystemExit):
        prepare.get_args(["--accept", "a", "--figure", "a.png"])
    assert "--figure does nothing with --accept" in capsys.readouterr().err


def test_a_crash_before_the_checks_leaves_a_set_that_is_refused_until_it_is_checked(project):
    store.save_dataset("mine", good_windows(), {})
    with pytest.raises(UserError, match="dataset/mine: its checks did not come to an end; look with"):
        project.run("pretrain", "-d", "mine")
    run("--check", "mine")
    project.run("pretrain", "-d", "mine")


def test_windows_put_in_their_place_are_other_windows(project, capsys):
    """Whoever removes the JSON beside the windows says so."""
    prepared(copies=True)
    np.save("dataset/mine/data_20_120.npy", good_windows(seed=5).data)
    with pytest.raises(UserError, match="is not the file that data_20_120.json describes"):
        project.run("pretrain", "-d", "mine")
    store.paths("mine")[2].unlink()
    project.run("pretrain", "-d", "mine")


def test_looking_at_a_set_makes_no_folder_and_changes_none(project):
    with pytest.raises(UserError, match="nosuch_20_120"):
        run("--check", "nosuch")
    assert not (project.folder / "dataset/nosuch").exists()
    prepared(copies=True)
    before = project.files()
    with pytest.raises(UserError, match="--accept mine"):
        run("--check", "mine")
    assert project.files() == before


def test_two_preparations_at_once_leave_one_whole_set(project):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\nfrom test_prepare_entry import prepared\n"
        "for i in range(4): prepared(copies=sys.argv[1] == '1', seed=int(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code]
    jobs = [subprocess.Popen([*command, seed, str(ROOT), str(ROOT / "tests")]) for seed in "012"]
    assert [job.wait(120) for job in jobs] == [0, 0, 0]
    data, _, _ = utils.load_windows("mine", "20_120", look=True)
    copies = bool((data[79] == data[3]).all())
    assert entry()["checks"]["fingerprint"] == artefacts.fingerprint("dataset/mine/data_20_120.npy")
    assert bool(entry()["checks"]["problems"]) == copies
    assert not list(project.folder.rglob("*.lock"))


# ------------------------------------------------------------------------------------- no gyroscope, no labels


def without_gyroscope(rows):
    windows = good_windows()
    windows.data[rows, :, 3:] = np.nan
    return windows


@pytest.mark.parametrize("rows", [slice(None), slice(0, 40)])
def test_a_set_without_gyroscope(project, capsys, rows):
    store.save_dataset("mine", without_gyroscope(rows), {})
    assert entry()["gyroscope"] is False
    report = run("--check", "mine", "--figure", "mine.png")["mine"]
    assert report.problems == [] and report.notes == [
        f"no gyroscope in {80 if rows.stop is None else 40} of 80 windows: for -mv v2 alone"
    ]
    channel = next(line.split() for line in report.lines if line.startswith("gyro z"))
    assert (channel[2:] == ["none", "none"]) == (rows.stop is None)
    with pytest.raises(UserError, match="only -mv v2 can do without"):
        project.run("pretrain", "-d", "mine")
    windows = without_gyroscope(rows)
    windows.data[1] = windows.data[0]
    store.save_dataset("mine", windows, {})
    assert "exact copies of others (windows 1 = 0" in check.check("mine").text()
    assert prepared() and "gyroscope" not in entry()


@pytest.mark.parametrize("where", [(3, 5, 4), (3, slice(None), 4), (3, slice(60), slice(3, 6)), (3, slice(None), 0)])
def test_nothing_else_may_be_missing(project, where):
    windows = good_windows()
    windows.data[where] = np.nan
    with pytest.raises(UserError, match="NaN or infinity; nothing was written"):
        store.save_dataset("mine", windows, {})


def test_an_unlabelled_set_is_for_pretraining(trainable, capsys):
    windows = good_windows(seed=7)
    windows.activity = np.full(80, "")
    store.save_dataset("mine", windows, {})
    report = run("--check", "mine", "--figure", "mine.png")["mine"]
    assert report.problems == [] and report.notes == ["no labels (-1): for pretrain.py and predict.py alone"]
    assert (utils.load_windows("mine", "20_120")[1][:, :, 0] == -1).all()
    trainable.run("pretrain", "-d", "mine"), trainable.run("embedding", "-d", "mine")
    trainable.run("pretrain", "-d", "a,mine"), trainable.run("embedding", "-d", "a,mine")
    refused = [FOUR[key] for key in FOUR if key not in ("pretrain", "embedding", "several sources", "stage 3")]
    refused += [("classifier", "-d", "a,mine"), ("classifier", "-d", "mine,a", "-mv", "v2")]
    for argv in refused:
        with pytest.raises(UserError, match="-1 is no label: an unlabelled set is for pretrain.py and predict.py"):
            trainable.run(*argv)
    with pytest.raises(UserError, match="dataset/mine has no labels .-1.: leave it out, see --sources and --targets"):
        reproduce.main(reproduce.get_args(["--variants", "forest", "--jobs", "0", "-g", "cpu"]))


def test_some_windows_without_label_are_a_mistake(project):
    windows = good_windows()
    windows.activity[3] = ""
    with pytest.raises(UserError, match="activity '' is none of"):
        store.save_dataset("mine", windows, {})


# ------------------------------------------------------------------------------------- what the gyroscope shows


def replaced(rotation, rows=slice(None)):
    """Problems of a set whose rotation rate is that of the function of the acceleration and the rate."""
    windows = good_windows()
    data = windows.data[rows]
    data[..., 3:] = rotation(data[..., :3], data[..., 3:])
    windows.data[rows] = data
    store.save_dataset("mine", windows, {})
    return [p for p in check.check("mine").problems if "of still windows" in p and "gyro" in p]


@pytest.mark.parametrize(
    ("rotation", "said"),
    [
        (lambda acc, gyro: acc, "the set: median |gyro| of still windows is 9.81.*looks like an acceleration"),
        (lambda acc, gyro: -acc[..., [1, 0, 2]], "9.81.*looks like an acceleration"),
        (lambda acc, gyro: acc / 9.80665, "1.00.*looks like an acceleration"),
        (lambda acc, gyro: gyro + [0, 0, 45], "45.00.*deg/s, or another sensor's"),  # a magnetometer's z in µT
        (lambda acc, gyro: gyro * 180 / np.pi, "deg/s, or another sensor's"),
        (lambda acc, gyro: gyro + [0.6, 0, 0], "0.60"),
    ],
)
def test_a_rotation_rate_that_is_none_is_a_problem(project, rotation, said):
    (problem,) = replaced(rotation)
    assert re.search(said.replace("|", r"\|"), problem), problem


def test_one_users_rotation_rate_that_is_none_is_a_problem(project):
    problems = replaced(lambda acc, gyro: acc, slice(0, 20))
    assert len(problems) == 1 and problems[0].startswith("user a: median |gyro| of still windows is 9.81")


@pytest.mark.parametrize("bias", [0.0, 0.1, 0.25])
def test_a_gyroscope_that_is_off_by_what_they_are_off_by_is_none(project, bias):
    assert replaced(lambda acc, gyro: gyro + np.array([bias, -bias, bias])) == []
