"""Classes are matched by name wherever they meet; sets of the same users are told apart from new ones."""

import json

import pytest
from conftest import ACTIVITIES, make_windows

from bookkeeping import artefacts, configs, ledger
from bookkeeping.commands import UserError

BACKWARDS = ACTIVITIES[::-1]
BASELINE = ("experiments.baselines", "-d", "a", "-td", "b", "-b", "forest", "-lr", 0.5)


def reordered(project, name, count, seed):
    """The same windows with their classes listed, and numbered, backwards."""
    data, labels = make_windows(count, seed)
    labels = labels.copy()
    labels[..., 0] = 3 - labels[..., 0]
    project.dataset(name, data=data, labels=labels, activity_label=BACKWARDS)


def entry(project, name, changes):
    """Change a set's entry in data_config.json, or take it out (None)."""
    old = project.datasets.pop(f"{name}_20_120")
    project.datasets |= {} if changes is None else {f"{name}_20_120": old | changes}
    (project.folder / "dataset/data_config.json").write_text(json.dumps(project.datasets))


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


def test_the_projects_own_sets_are_known_in_another_data_config_too(project, capsys):
    """One of an older version, or of the released code, does not say it."""
    for name in ("uci", "uci20", "sim", "motion"):
        project.dataset(name)
    baseline = ("experiments.baselines", "-b", "forest", "-lr", 0.5, "-d")
    project.run(*baseline, "uci", "--targets", "uci", "uci20", "sim", "motion")
    err = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].split()[0] for line in err if "users" in line or "source too" in line] == [
        "uci",
        "uci20",
        "sim",
    ]
    project.run(*baseline, "sim,motion", "--targets", "uci")
    assert "uci and sim are of the same users" in capsys.readouterr().err
    rows = artefacts.read_table("saved/results.csv")
    assert [row["shared_users"] for row in rows] == ["uci", "uci", "uci", "", "sim"]
    entry(project, "sim", {"shares_users_with": []})  # whoever says so has other people in it
    assert configs.sharing("uci", "sim", "20_120") == []


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


# ------------------------------------------------------------------------------------------ embeddings, rows


def test_classes_listed_in_another_order_after_embedding_py_are_those_of_its_labels(trained):
    """The embedding's label file has the ids of then."""
    wanted = trained.run("classifier", "-d", "a", "-lr", 0.5)
    entry(trained, "a", {"activity_label": BACKWARDS})
    found = trained.run("classifier", "-d", "a", "-lr", 0.5)
    assert found["confusion"] == wanted["confusion"] and found["names"] == ACTIVITIES


@pytest.mark.parametrize(
    "changes",
    [
        {"activity_label": ["a", "b", "c", "d"]},
        {"activity_label_index": 1, "user_label_index": 0},
        {"activity_label": ACTIVITIES[:3], "activity_label_size": 3},
    ],
)
def test_an_embedding_of_other_labels_is_refused(trained, changes):
    entry(trained, "a", changes)
    with pytest.raises(UserError, match="embed_a_20_120.npy was made with other labels.*repeat: python embedding.py"):
        trained.run("classifier", "-d", "a", "-lr", 0.5)


def test_a_name_that_stands_twice_is_refused(trained):
    entry(trained, "b", {"activity_label": ["walking", "upstairs", "walking", "sitting&standing"]})
    with pytest.raises(UserError, match="activity_label has a name twice"):
        trained.run("cross_dataset_test", "-d", "a", "-td", "b")


def test_a_row_counts_for_the_classes_that_it_was_made_with(trained):
    """One without the column, of an older version, for those of now."""
    (key,) = ledger.read_rows()
    assert ledger.read_rows()[key]["classes"] == "|".join(ACTIVITIES)
    entry(trained, "b", {"activity_label": BACKWARDS})
    assert not ledger.read_rows()
    trained.run("cross_dataset_test", "-d", "a", "-td", "b")
    assert ledger.read_rows()[key]["classes"] == "|".join(BACKWARDS)
    rows = artefacts.read_table(ledger.PATH)
    artefacts.save_table(ledger.PATH, [{k: v for k, v in row.items() if k != "classes"} for row in rows])
    assert set(ledger.read_rows()) == {key}
    entry(trained, "b", None)
    assert set(ledger.read_rows()) == {key}


@pytest.mark.parametrize("value", ["a", {"a": 1}, 3])
def test_who_shares_users_is_a_list(trained, value):
    entry(trained, "b", {"shares_users_with": value})
    with pytest.raises(UserError, match="b_20_120: 'shares_users_with' must be a list"):
        trained.run("cross_dataset_test", "-d", "a", "-td", "b")
