"""Classes are matched by name wherever they meet; sets of the same users are told apart from new ones."""

import json

import pytest
from conftest import ACTIVITIES, make_windows

from bookkeeping import artefacts, configs
from bookkeeping.commands import UserError

BACKWARDS = ACTIVITIES[::-1]
BASELINE = ("experiments.baselines", "-d", "a", "-td", "b", "-b", "forest", "-lr", 0.5)


def reordered(project, name, count, seed):
    """The same windows with their classes listed, and numbered, backwards."""
    data, labels = make_windows(count, seed)
    labels = labels.copy()
    labels[..., 0] = 3 - labels[..., 0]
    project.dataset(name, data=data, labels=labels, activity_label=BACKWARDS)


@pytest.mark.parametrize("which", ["a", "b"])
def test_the_same_classes_in_another_order_give_the_same_scores(trained, capsys, which):
    """Of the target; or of the source, after its classifier was trained."""
    before = trained.scores
    reordered(trained, which, *((32, 1) if which == "a" else (12, 2)))
    if which == "a":  # made of the same windows: only the numbers of the classes are others
        for path in trained.folder.glob("saved/*/*.json"):
            record = json.loads(path.read_text())
            record["made_from"] = {k: v for k, v in record["made_from"].items() if not k.startswith("dataset/a/label")}
            path.write_text(json.dumps(record))
    after = trained.run("cross_dataset_test", "-d", "a", "-td", "b")
    assert after["confusion"] == before["confusion"] and after["names"] == ACTIVITIES


def test_baselines_match_classes_by_name_too(project):
    before = project.run(*BASELINE)["b"]
    reordered(project, "b", 12, 2)
    after = project.run(*BASELINE)["b"]
    assert after["confusion"] == before["confusion"]


@pytest.mark.parametrize("names", [["walking", "upstairs", "downstairs", "lying"], ACTIVITIES[:3]])
def test_other_classes_are_refused(trained, names):
    data, labels = make_windows(12, 2)
    rows = labels[:, 0, 0] < len(names)
    trained.dataset("b", data=data[rows], labels=labels[rows], activity_label=names, activity_label_size=len(names))
    before = trained.files()
    for script in (("cross_dataset_test", "-d", "a", "-td", "b"), BASELINE):
        with pytest.raises(UserError, match="the same classes"):
            trained.run(*script)
    assert {name for name in trained.files() if "results" in name} == {n for n in before if "results" in n}


def test_sets_of_the_same_users_are_warned_of_and_marked(trained, capsys):
    entries = json.loads((trained.folder / "dataset/data_config.json").read_text())
    entries["b_20_120"]["shares_users_with"] = ["a"]
    (trained.folder / "dataset/data_config.json").write_text(json.dumps(entries))
    for script in (("cross_dataset_test", "-d", "a", "-td", "b"), BASELINE):
        trained.run(*script)
        assert "b and a are of the same users" in capsys.readouterr().err
        assert artefacts.read_table("saved/results.csv")[-1]["shared_users"] == "a"
    trained.run("cross_dataset_test", "-d", "a", "-td", "a")
    assert "a is the source too" in capsys.readouterr().err
    assert configs.sharing("a", "b", "20_120") == configs.sharing("a+c", "b", "20_120") == ["a"]
    assert configs.sharing("b", "a", "20_120") == ["b"] and configs.sharing("a", "c", "20_120") == []


def test_the_projects_own_sets_say_who_shares_users(monkeypatch):
    from conftest import ROOT

    monkeypatch.chdir(ROOT)
    pairs = {
        (s, t)
        for s in ("uci", "uci20", "sim", "motion")
        for t in ("uci", "uci20", "sim", "motion")
        if s != t and configs.sharing(s, t, "20_120")
    }
    assert pairs == {("uci", "uci20"), ("uci20", "uci"), ("uci", "sim"), ("sim", "uci")}
