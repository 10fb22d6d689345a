"""Writes that are whole or not there, broken at every point; tables that keep whole rows; where artefacts came from."""

import csv
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from bookkeeping import artefacts
from bookkeeping.commands import UserError

PRETRAINED = "saved/pretrain_base_a_20_120/model_masked_6_1.pt"
CLASSIFIED = "saved/classifier_base_transformer_a_20_120/model_transformer.pt"

# --------------------------------------------------------------------------------- one file, broken at every point


def write_state(path, value):
    artefacts.save_state(path, {"w": torch.full((1000,), float(value))}, {"config": {"value": value}})


def write_npy(path, value):
    artefacts.save_npy(path, np.full(5000, value))


def write_pieces(path, value):
    with artefacts.npy_writer(path, (4, 1000), record={"config": {"value": value}}) as write:
        for _ in range(2):
            write(np.full((2, 1000), value, np.float32))


def write_json(path, value):
    artefacts.save_json(path, {"value": value, "filler": "x" * 3000})


def write_table(path, value):
    artefacts.save_table(path, [{"a": value, "b": i} for i in range(300)])


def write_row(path, value):
    artefacts.append_row(path, {"a": value, "b": "x" * 3000})


WRITERS = [write_state, write_npy, write_pieces, write_json, write_table, write_row]


class Breaker:
    """Lets `act` happen before or after the `call`-th of the calls by which files come to be.

    These are open, the file's write and flush, fsync (of the file, then of its folder) and replace.
    """

    def __init__(self, monkeypatch, call, act, after=False):
        self.call, self.act, self.after, self.count = call, act, after, 0
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        opened = self.counted(open)

        def open_counted(path, mode="r", **more):
            return Handle(opened(path, mode), self) if mode == "xb" else open(path, mode, **more)

        monkeypatch.setattr(artefacts, "open", open_counted, raising=False)

    def counted(self, original):
        def wrapped(*args, **more):
            self.count += 1
            now = self.count == self.call
            if now and not self.after:
                self.act()
            result = original(*args, **more)
            if now and self.after:
                self.act()
            return result

        return wrapped


class Handle:
    """A file object whose writes count as points."""

    def __init__(self, handle, breaker):
        self.handle = handle
        self.write, self.flush = breaker.counted(handle.write), breaker.counted(handle.flush)

    def __getattr__(self, name):
        return getattr(self.handle, name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return self.handle.__exit__(*args)


def points_of(writer, folder):
    """How many points `writer` passes."""
    with pytest.MonkeyPatch.context() as patch:
        breaker = Breaker(patch, 0, None)
        writer(folder / "count.file", 1)
    return breaker.count


def contents(folder):
    """{name: bytes} of the files in a folder; a lock file holds nothing and is left out."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


def whole(writer, folder):
    """What is in the folder after writing 1, and after writing 2 over it."""
    folder.mkdir()
    writer(folder / "it.file", 1)
    old = contents(folder)
    writer(folder / "it.file", 2)
    return old, contents(folder)


def check_whole(found, old, new):
    """Each file is the old or the new one, byte for byte, and there is no other."""
    for name, content in found.items():
        assert content in (old.get(name), new.get(name)), f"{name} is neither the old file nor the new one"
    assert old.keys() <= found.keys()


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()],
    ids=["disk", "ctrl-c", "memory"],
)
@pytest.mark.parametrize("writer", WRITERS)
def test_an_exception_at_any_point_leaves_whole_files_and_no_litter(tmp_path, writer, error, after):
    old, new = whole(writer, tmp_path / "reference")
    count = points_of(writer, tmp_path / "reference")
    assert count >= 6, "open, write, flush, fsync, replace, and the folder's fsync"
    for call in range(1, count + 1):
        folder = tmp_path / str(call)
        folder.mkdir()
        writer(folder / "it.file", 1)
        with pytest.MonkeyPatch.context() as patch:
            breaker = Breaker(patch, call, raising(error), after)
            expected = UserError if isinstance(error, OSError) else type(error)
            with pytest.raises(expected):
                writer(folder / "it.file", 2)
            assert breaker.count >= call
        check_whole(contents(folder), old, new)
        writer(folder / "it.file", 2)  # and the next attempt succeeds


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_kill_at_any_point_leaves_whole_files(tmp_path, writer, after):
    old, new = whole(writer, tmp_path / "reference")
    for call in range(1, points_of(writer, tmp_path / "reference") + 1):
        folder = tmp_path / str(call)
        folder.mkdir()
        writer(folder / "it.file", 1)
        child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                Breaker(patch, call, lambda: os.kill(os.getpid(), signal.SIGKILL), after)
                writer(folder / "it.file", 2)
                os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found = {name: content for name, content in contents(folder).items() if not name.startswith(".it.")}
        check_whole(found, old, new)
        writer(folder / "it.file", 2)


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    """The limit on a file's size stands for a full disk: the write itself fails, part of it may be on the disk."""
    for writer in WRITERS:
        path = tmp_path / writer.__name__
        writer(path, 1)
        before = contents(tmp_path)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))  # Python ignores SIGXFSZ: write() fails instead
        try:
            with pytest.raises(UserError, match=f"{path.name} cannot be written: .*nothing was changed"):
                writer(path, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert contents(tmp_path) == before


def test_a_file_never_lies_beside_the_record_of_another_unnoticed(tmp_path):
    """Killed between the two renames, the record speaks of the new file while the old one lies there: refused."""
    path = tmp_path / "it.pt"
    write_state(path, 1)
    replace = os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "replace", lambda a, b: replace(a, b) if str(b).endswith(".json") else raising(MemoryError())()
        )
        with pytest.raises(MemoryError):
            artefacts.save_state(path, {"w": torch.zeros(3)}, {"config": {}, "made_from": {}})
    with pytest.raises(UserError, match="it.pt is not the file that it.json describes"):
        artefacts.load_record(path)


def test_the_record_is_there_before_the_artefact(tmp_path):
    """Else a kill in between would leave a file without a JSON, which passes for a released one."""
    path, order = tmp_path / "it.pt", []
    replace = os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: order.append(os.path.basename(b)) or replace(a, b))
        write_state(path, 1)
    assert order == ["it.json", "it.pt"]
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["artefact"] == "it.pt" and record["fingerprint"] == artefacts.fingerprint(path)


def test_what_a_kill_left_is_removed_after_a_day(tmp_path):
    """An embedding's part may be a gigabyte; a younger one may belong to a run that is still writing."""
    names = {name: tmp_path / name for name in (".it.json.0123abcd", ".it.json.89abcdef", ".other.json.0123abcd")}
    for path in (*names.values(), tmp_path / ".it.json.lock"):
        path.write_text("part")
        os.utime(path, (0, 0))
    os.utime(names[".it.json.89abcdef"])
    write_json(tmp_path / "it.json", 1)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"it.json", ".it.json.lock", ".it.json.89abcdef", ".other.json.0123abcd"}


def test_files_get_the_permissions_that_the_user_gives_to_new_files(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(old)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_pieces_that_don_t_add_up_leave_nothing(tmp_path):
    for pieces in ([2], [2, 3], [3]):
        with pytest.raises(ValueError), artefacts.npy_writer(tmp_path / "x.npy", (4, 3)) as write:
            for size in pieces:
                write(np.zeros((size, 3), np.float32))
    with pytest.raises(ValueError), artefacts.npy_writer(tmp_path / "x.npy", (4, 3)) as write:
        write(np.zeros((4, 3)))  # float64
    assert list(tmp_path.iterdir()) == []


def test_equal_weights_give_equal_files_whatever_their_name(tmp_path):
    state = {"w": torch.arange(5.0)}
    artefacts.save_state(tmp_path / "one.pt", state), artefacts.save_state(tmp_path / "another_name.pt", state)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another_name.pt").read_bytes()
    view = torch.arange(10.0)[::2]  # a view would bring its whole storage along
    artefacts.save_state(tmp_path / "view.pt", {"w": view})
    artefacts.save_state(tmp_path / "copy.pt", {"w": view.clone()})
    assert (tmp_path / "view.pt").read_bytes() == (tmp_path / "copy.pt").read_bytes()


# --------------------------------------------------------------------------------- scripts, broken at every write

SCRIPTS = {
    "pretrain": ("-d", "a", "--seed", 8),
    "embedding": ("-d", "a"),
    "classifier": ("-d", "a", "-lr", 0.9),
    "cross_dataset_test": ("-d", "a", "-td", "c"),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_a_script_broken_at_any_of_its_renames_leaves_whole_old_or_new_files(trained, script, error):
    """Another seed, label rate or target than before, so that the new files differ from those there."""
    trained.config("pretrain", n_epochs=2, n_epochs_cl=1), trained.config("train", n_epochs=1)
    trained.dataset("c", 8, seed=4)
    if script == "embedding":
        trained.run("pretrain", "-d", "a", "--seed", 8)
    before = trained.files()
    trained.run(script, *SCRIPTS[script])
    after = trained.files()
    assert before != after
    replace, count = os.replace, 0
    while True:
        for path, content in before.items():
            (trained.folder / path).write_bytes(content)
        for path in after.keys() - before.keys():
            (trained.folder / path).unlink(missing_ok=True)
        count += 1
        calls = []

        def breaking(a, b, calls=calls, count=count):
            calls.append(b)
            if len(calls) == count:
                raise error
            return replace(a, b)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", breaking)
            try:
                trained.run(script, *SCRIPTS[script])
                assert len(calls) < count, "an error was swallowed"
                break
            except UserError as mistake:
                assert "cannot be written: No space left" in str(mistake)
            except KeyboardInterrupt:
                pass
        found = trained.files()
        for path, content in found.items():
            if not path.endswith("_state.pt") and "_state_" not in path:
                assert content in (before.get(path), after.get(path)), path
        assert before.keys() <= found.keys()
        for path in trained.folder.glob("*/*/*_state*"):
            path.unlink()
    assert count > 2 and trained.files() == after


@pytest.mark.parametrize(
    "script, made, next_stage",
    [
        ("pretrain", "saved/pretrain_base_a_20_120/*", "embedding"),
        ("embedding", "embed/*", "classifier"),
        ("classifier", "saved/classifier_base_transformer_a_20_120/*", "cross_dataset_test"),
    ],
)
def test_what_a_broken_run_leaves_never_passes_for_a_released_file(trained, script, made, next_stage):
    """A file without its JSON would: later stages would take its augmentation and seed from their flags' defaults."""
    for path in trained.folder.glob(made):
        path.unlink()
    replace, count = os.replace, 0
    while True:
        count += 1
        calls = []

        def breaking(a, b, calls=calls, count=count):
            calls.append(b)
            if len(calls) == count:
                raise KeyboardInterrupt
            return replace(a, b)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", breaking)
            try:
                trained.run(script, *SCRIPTS[script][:2])
                break
            except KeyboardInterrupt:
                pass
        for path in trained.folder.glob(made):
            if path.suffix in (".pt", ".npy") and "_state" not in path.name:
                assert artefacts.load_record(path) is not None, f"{path.name} lies there without its JSON"
    assert count > 3
    trained.run(next_stage, "-d", "a", "-td", "b")


# --------------------------------------------------------------------------------- results.csv


def read_csv(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


APPEND = """
import sys; sys.path.insert(0, {root!r})
from bookkeeping import artefacts
for i in range({count}):
    artefacts.append_row({path!r}, {{"writer": sys.argv[1], "row": i, "text": "x, y\\n" * 50}})
    if i == {ready}:
        print("ready", flush=True)
"""


def test_the_lock_is_held_from_reading_the_table_to_writing_it(tmp_path, monkeypatch):
    """What two processes at once would need luck to show: nobody else gets in between."""
    path = tmp_path / "results.csv"
    artefacts.append_row(path, {"a": 1})
    seen = []

    def locked(original):
        def wrapped(*args):
            with open(tmp_path / ".results.csv.lock") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.append(original.__name__)
            return original(*args)

        return wrapped

    for name in ("read_columns", "save_table"):
        monkeypatch.setattr(artefacts, name, locked(getattr(artefacts, name)))
    artefacts.append_row(path, {"a": 2})
    assert seen == ["read_columns", "save_table"]


def test_rows_of_processes_that_append_at_once_are_all_there_and_whole(tmp_path):
    path = tmp_path / "saved" / "results.csv"
    code = APPEND.format(root=str(ROOT), path=str(path), count=10, ready=-1)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    rows = read_csv(path)
    assert sorted((int(row["writer"]), int(row["row"])) for row in rows) == [
        (w, i) for w in range(4) for i in range(10)
    ]
    assert {row["text"] for row in rows} == {"x, y\n" * 50}


def test_a_killed_process_leaves_whole_rows_and_no_lock(tmp_path):
    path = tmp_path / "results.csv"
    code = APPEND.format(root=str(ROOT), path=str(path), count=100_000, ready=5)
    writer = subprocess.Popen([sys.executable, "-c", code, "0"], stdout=subprocess.PIPE)
    writer.stdout.readline()
    writer.kill(), writer.wait(), writer.stdout.close()
    rows = read_csv(path)
    assert [int(row["row"]) for row in rows] == list(range(len(rows))) and len(rows) >= 6
    assert {row["text"] for row in rows} == {"x, y\n" * 50}
    artefacts.append_row(path, {"writer": "1", "row": 0, "text": ""})  # would hang on a lock left behind
    assert len(read_csv(path)) == len(rows) + 1


def test_new_columns_come_after_the_old_ones_and_old_rows_leave_them_empty(tmp_path):
    path = tmp_path / "results.csv"
    artefacts.append_row(path, {"source": "a", "f1": 1})
    artefacts.append_row(path, {"source": "b", "new": 2})
    assert path.read_text() == "source,f1,new\na,1,\nb,,2\n"


# --------------------------------------------------------------------------------- where artefacts came from


def fails(project, call, wanted):
    before = project.files()
    with pytest.raises(UserError, match=wanted):
        project.run(*call)
    assert project.files() == before


def test_each_stage_refuses_artefacts_whose_parents_changed_and_names_the_command_to_repeat(trained):
    """The shell loop that forgets a stage: every later one stops until the forgotten one was repeated."""
    embed, classify = ("embedding", "-d", "a"), ("classifier", "-d", "a", "-lr", 0.5)
    test = ("cross_dataset_test", "-d", "a", "-td", "b")
    trained.dataset("a", 32, seed=9)  # the windows were prepared again, otherwise
    fails(trained, embed, "model_masked_6_1.pt was made from an older dataset/a/data.*repeat: python pretrain.py -d a")
    fails(trained, classify, "embed_a_20_120.npy was made from an older dataset/a.*repeat: python embedding.py -d a")
    fails(
        trained,
        test,
        "model_transformer.pt was made from an older dataset/a.*repeat: python embedding.py -d a -g cpu && py",
    )
    trained.run("pretrain", "-d", "a")
    fails(trained, classify, "embed_a_20_120.npy was made from an older .*; repeat: python embedding.py -d a")
    fails(trained, test, "model_transformer.pt was made from an older .*; repeat: python embedding.py")
    trained.run(*embed)
    fails(trained, test, "model_transformer.pt was made from an older .*; repeat: python embedding.py")
    trained.run(*classify)
    trained.run(*test)


def test_the_same_stage_again_with_the_same_result_spoils_nothing(trained):
    trained.run("pretrain", "-d", "a"), trained.run("embedding", "-d", "a")
    trained.run("cross_dataset_test", "-d", "a", "-td", "b")


def test_labels_of_another_run_than_the_embeddings_are_refused(trained):
    paths = [trained.folder / f"embed/label_a_20_120.{end}" for end in ("npy", "json")]
    kept = [(path, path.read_bytes()) for path in paths]
    trained.run("pretrain", "-d", "a", "--seed", 8), trained.run("embedding", "-d", "a")
    for path, content in kept:
        path.write_bytes(content)
    fails(trained, ("classifier", "-d", "a"), "label_a_20_120.npy and .*embed_a_20_120.npy are of different runs")


def test_parents_that_are_gone_are_no_contradiction(trained):
    """An embedding takes gigabytes; who removes it can still test the classifier."""
    for path in trained.folder.glob("embed/*"):
        path.unlink()
    trained.run("cross_dataset_test", "-d", "a", "-td", "b")


def test_only_plain_files_are_read_as_parents(tmp_path, monkeypatch):
    """A JSON from a stranger may name what never ends."""
    monkeypatch.setattr(artefacts, "fingerprint", lambda path: pytest.fail(f"read {path}"))
    os.mkfifo(tmp_path / "pipe")
    parents = {"/dev/zero": "x", str(tmp_path / "pipe"): "x", str(tmp_path): "x", "a\0b": "x"}
    artefacts.check_parents("it", {"made_from": parents}, "")


def test_fingerprints_see_every_byte_of_a_file_up_to_64_mib(tmp_path):
    path = tmp_path / "it"
    content = bytearray(3_000_000)
    path.write_bytes(content)
    first = artefacts.fingerprint(path)
    for place in (0, 1_500_001, 2_999_999):
        changed = content.copy()
        changed[place] = 1
        path.write_bytes(changed)
        assert artefacts.fingerprint(path) != first
    path.write_bytes(content + b"\0")
    assert artefacts.fingerprint(path) != first


def test_fingerprints_of_larger_files_see_their_length_and_blocks_throughout(tmp_path):
    path = tmp_path / "it"
    size = (1 << 26) + 12345
    with open(path, "wb") as handle:
        handle.truncate(size)  # a sparse file
    seen = {artefacts.fingerprint(path)}
    for place in (0, size - 1):
        with open(path, "r+b") as handle:
            handle.seek(place)
            handle.write(b"x")
        seen.add(artefacts.fingerprint(path))
    with open(path, "r+b") as handle:
        handle.truncate(size + 1)
    seen.add(artefacts.fingerprint(path))
    assert len(seen) == 4
