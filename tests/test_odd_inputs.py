"""Odd artefacts, configurations, windows and flags: a run succeeds, or ends in one line and leaves all as it was."""

import copy
import io
import json
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import Project

from bookkeeping import artefacts, ledger, resume
from bookkeeping.commands import UserError
from experiments import baselines

ODD = (
    *(None, [], {}, "x", "", -1, 0, 1.5, 10**30, float("inf"), float("nan"), True),
    *([None], [[1]], ["x"] * 4, {"x": {}}, {"": None}),
)
PRETRAIN, EMBED, CLASSIFY = ("pretrain", "-d", "a"), ("embedding", "-d", "a"), ("classifier", "-d", "a", "-lr", 0.5)
TEST = ("cross_dataset_test", "-d", "a", "-td", "b")
READERS = {
    "saved/pretrain_base_a_20_120/model_masked_6_1.json": (EMBED, TEST, PRETRAIN),
    "embed/embed_a_20_120.json": (CLASSIFY, EMBED),
    "embed/label_a_20_120.json": (CLASSIFY,),
    "saved/classifier_base_transformer_a_20_120/model_transformer.json": (TEST, CLASSIFY),
}
STATES = {
    "saved/pretrain_base_a_20_120/model_state_6_1.pt": PRETRAIN,
    "saved/classifier_base_transformer_a_20_120/model_transformer_state.pt": CLASSIFY,
}


def places(value, path=()):
    """The paths of all values within nested dicts and lists (of a list the first two)."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(value, path, odd):
    """A copy of `value` with `odd` at a place, or without what is there (KeyError)."""
    if not path:
        return odd
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if odd is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = odd
    return value


def mutations(value, seed, count):
    """`count` times a copy of `value` that is odd somewhere, and where."""
    rng = random.Random(seed)
    inner = list(places(value))
    for _ in range(count):
        path = rng.choice(inner)
        odd = rng.choice([*ODD, KeyError]) if path else rng.choice(ODD)
        yield changed(value, path, odd), f"{path}: {odd}"


def one_line(project, command, what):
    """Runs a command, which may end in a line, and then must not have changed a file."""
    before = project.files()
    try:
        project.run(*command)
    except UserError as error:
        assert 10 < len(str(error)) < 3000, what
        assert project.files() == before, f"{what}, {command[0]}: {error}"
    except SystemExit as end:
        assert end.code == 2 and project.files() == before, what
    except Exception as error:
        raise AssertionError(f"{what}, {command[0]}: {type(error).__name__}: {error}") from error


def put_back(project, before):
    now = project.files()
    for name in now.keys() - before.keys():
        (project.folder / name).unlink()
    for name, content in before.items():
        if now.get(name) != content:
            (project.folder / name).write_bytes(content)


@pytest.mark.parametrize("name", READERS, ids=lambda name: name.rsplit("/", 1)[1])
@pytest.mark.filterwarnings("ignore")
def test_odd_json_beside_an_artefact(trained, name):
    before = trained.files()
    for content, what in mutations(json.loads(before[name]), name, 40):
        for command in READERS[name][: 1 if random.Random(what).random() < 0.8 else None]:
            (trained.folder / name).write_text(json.dumps(content))
            one_line(trained, command, what)
            put_back(trained, before)


def test_odd_json_beside_windows(trained):
    record = {"artefact": "data_20_120.npy", "config": {}, "made_from": {}, "windows": 12}
    paths = [f"dataset/b/{kind}_20_120.npy" for kind in ("data", "label")]
    record |= dict(zip(("fingerprint", "label_fingerprint"), map(artefacts.fingerprint, paths), strict=True))
    before = trained.files()
    for content, what in mutations(record, 1, 25):
        (trained.folder / "dataset/b/data_20_120.json").write_text(json.dumps(content))
        one_line(trained, TEST, what)
        put_back(trained, before)


@pytest.fixture(scope="module")
def stopped(all_stages):
    """{file: state} of runs that were interrupted, and the project's files with them."""
    folder = all_stages[0].parent / "stopped"
    shutil.copytree(all_stages[0], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(resume, "COPY_SECONDS", 0)
        original = resume.Resume.after_epoch

        def after_epoch(self, *args, **more):
            original(self, *args, **more)
            if more["epoch"] == 3:
                raise KeyboardInterrupt

        patch.setattr(resume.Resume, "after_epoch", after_epoch)
        for command in STATES.values():
            with pytest.raises(KeyboardInterrupt):
                Project(folder).run(*command)
    return {name: (folder / name).read_bytes() for name in STATES}


@pytest.mark.parametrize("name", STATES, ids=lambda name: name.rsplit("/", 1)[1])
def test_odd_training_states(trained, stopped, name):
    before = trained.files()
    state = torch.load(io.BytesIO(stopped[name]), weights_only=True)
    other = torch.load(io.BytesIO(stopped[next(n for n in STATES if n != name)]), weights_only=True)["state"]
    foreign = [(state | {"state": part}, "foreign") for part in (other, {}, None, [], state["state"] | {"model": {}})]
    best = state["state"]["best"]
    foreign += [(changed(state, ("state", "best", "model"), {k: v[:1] for k, v in best["model"].items()}), "cut")]
    for content, what in [*foreign, *mutations(state, 3, 60)]:
        torch.save(content, trained.folder / name)
        one_line(trained, STATES[name], what)
        put_back(trained, before)


@pytest.mark.parametrize("name", STATES, ids=lambda name: name.rsplit("/", 1)[1])
def test_truncated_training_states(trained, stopped, name):
    before, whole = trained.files(), stopped[name]
    for size in (0, 1, 3, 100, len(whole) // 2, len(whole) - 1):
        (trained.folder / name).write_bytes(whole[:size])
        with pytest.raises(UserError, match="is not a readable training state; start afresh with --restart"):
            trained.run(*STATES[name])
    (trained.folder / name).unlink()
    assert trained.files() == before


def test_truncated_and_odd_predictions(trained):
    (path,) = trained.folder.glob("saved/*/*.npz")
    whole, good = path.read_bytes(), ledger.read_npz(path)
    (row,) = ledger.read_rows()
    for size in (0, 1, 30, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        for read in (ledger.read_npz, lambda p: ledger.read_predictions(p, row)):
            with pytest.raises(UserError, match="is not a readable file of predictions"):
                read(path)
    for name in ("window", "label", "logits"):
        for odd in (0, "x", [], [[1.5]], good[name][:-1], good[name][None], good[name] * np.nan):
            np.savez(path, **(good | {name: odd}))
            with pytest.raises(UserError, match="is not a readable file of predictions"):
                ledger.read_npz(path)
    for name, low in (("window", -1), ("label", -1), ("label", 4)):
        np.savez(path, **(good | {name: np.where(np.arange(len(good[name])) == 3, low, good[name])}))
        with pytest.raises(UserError, match="is not a readable file of predictions"):
            ledger.read_npz(path)
    for odd in (-1.0, 0.0, "x", [1.0, 2.0]):
        np.savez(path, **(good | {"temperature": odd}))
        with pytest.raises(UserError, match="is not a readable file of predictions"):
            ledger.read_npz(path)


def test_any_byte_of_a_checkpoint(trained):
    """Its fingerprint is not asked, as that of a released file: a changed byte is a changed weight, or one line."""
    rng = random.Random(5)
    for path in sorted(trained.folder.glob("saved/*/*.pt")):
        path.with_suffix(".json").unlink()
    paths = sorted(trained.folder.glob("saved/*/*.pt"))
    before = trained.files()
    for number in range(40):
        path = rng.choice(paths)
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 1, 5, 200])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), len(content), rng.randrange(len(content))])])
        one_line(trained, TEST, f"{path.name} {number}")
        put_back(trained, before)


# ------------------------------------------------------------------------------------------ what users bring

FOREST = ("experiments.baselines", "-d", "a", "-td", "b", "-b", "forest")
COMMANDS = (PRETRAIN, EMBED, CLASSIFY, TEST, FOREST)
FILES = ("data_config.json", "pretrain.json", "train.json", "mask.json", "pretrain_model.json", "classifier.json")
FLAGS = ("-mv", "-d", "-td", "-dv", "-f", "-t", "-a", "-l", "-s", "-lr", "-am", "--seed")
VALUES = (
    *("", "v1", "v2", "nope", "a", "b", "a,b", "a+a", "../x", "0", "-1", "1", "1e9", "nan", "0.5", "jitter", "none"),
    *("config/mask.json", "config/train.json", "config", "/dev/null", "x" * 300, "ü", "a b", "model", "20_120", "\n"),
)


@pytest.mark.parametrize("seed", range(6))
def test_odd_configurations(trained, seed, monkeypatch):
    monkeypatch.setattr(baselines, "TREES", 3)
    rng = random.Random(seed)
    before = trained.files()
    path = next(name for name in before if name.endswith(f"/{FILES[seed]}"))
    for content, what in mutations(json.loads(before[path]), seed, 25):
        if not any(f": {odd}" in what for odd in (10**30,)):  # a training of so many epochs is no mistake
            (trained.folder / path).write_text(json.dumps(content))
            one_line(trained, rng.choice(COMMANDS), f"{path} {what}")
            put_back(trained, before)


WINDOWS = (
    lambda x: x[:0],
    lambda x: x[:1],
    lambda x: x[:, :50],
    lambda x: x[..., :1],
    lambda x: x[0],
    lambda x: x.astype("f8") * 1e300,
    lambda x: np.where(np.arange(len(x))[:, None, None] == 3, np.nan, x),
    lambda x: x.astype("i4"),
    lambda x: x.astype("c8"),
    lambda x: x.astype("U3"),
    lambda x: x.astype("?"),
    lambda x: x * 0,
    lambda x: x - 5,
    lambda x: np.array(5.0),
)


@pytest.mark.parametrize(
    "name", ["dataset/a/data", "dataset/b/data", "dataset/b/label", "embed/embed_a", "embed/label_a"]
)
def test_odd_windows(trained, name, monkeypatch):
    monkeypatch.setattr(baselines, "TREES", 3)
    before, path = trained.files(), f"{name}_20_120.npy"
    of_target = (TEST, FOREST) if "/b/" in name else (CLASSIFY,) if "embed" in name else (PRETRAIN, EMBED, FOREST)
    whole = np.load(io.BytesIO(before[path]))
    for number, change in enumerate(WINDOWS):
        np.save(trained.folder / path, change(whole))
        one_line(trained, of_target[number % len(of_target)], f"{path} {number}")
        put_back(trained, before)


@pytest.mark.parametrize("seed", range(3))
def test_odd_flags(trained, seed, monkeypatch, capsys):
    monkeypatch.setattr(baselines, "TREES", 3)
    rng = random.Random(seed)
    before = trained.files()
    for _ in range(40):
        more = [x for _ in range(rng.choice([1, 1, 2])) for x in (rng.choice(FLAGS), rng.choice(VALUES))]
        one_line(trained, (*rng.choice(COMMANDS), *more), more)
        put_back(trained, before)
