"""Raw files as they are distributed: a folder, a zip, or a zip inside either, read in place and never extracted.

A zip's member names are checked for a way out of their folder and its declared sizes for a bomb before anything is
read; the zip module holds every member to its declared size and checksum while reading.
"""

import contextlib
import os
import posixpath
import re
import zipfile
from pathlib import Path

from bookkeeping.commands import UserError

MEMBERS = 100_000  # more than this many files is no data set


class Source:
    """The files of one raw data set by their relative path, with '/' between folders.

    label: the path that the user knows it by; sizes: name -> bytes; skipped: name -> why it is not there.
    """

    def __init__(self, label, sizes, opener, skipped=None):
        self.label = str(label)
        self.sizes = sizes
        self.skipped = skipped or {}
        self._open = opener

    def __contains__(self, name):
        return name in self.sizes

    @contextlib.contextmanager
    def open(self, name):
        """The file's bytes as a stream. Raises UserError for a damaged archive, naming it."""
        try:
            with self._open(name) as stream:
                yield stream
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{self.label}: {name} cannot be read ({error}); fetch the archive again") from error
        except Exception as error:
            if type(error).__module__ == "zlib":
                raise UserError(f"{self.label}: {name} is damaged ({error}); fetch the archive again") from error
            raise

    def matching(self, pattern):
        """The files whose whole path matches the regular expression `pattern`: {name: match}, sorted by name."""
        found = ((name, re.fullmatch(pattern, name)) for name in sorted(self.sizes))
        return {name: match for name, match in found if match}


@contextlib.contextmanager
def open_source(path, limit, wanted):
    """The Source at `path`, a folder or a zip; a zip within it is opened if `wanted` is not there but in that one.

    `wanted` is a regular expression that some file's whole path must match; `limit` is the most bytes that all files of
    an archive may unpack to. Raises UserError: nothing there, damaged, unsafe names, too large, none that is wanted.
    """
    path = Path(path)
    if path.suffix.lower() == ".rar":
        raise UserError(f"{path}: RAR archives are not read; unpack it (unar, 7z x or unrar x) and give --raw FOLDER")
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            source = _folder(path)
        elif path.is_file() and (zipfile.is_zipfile(path) or path.suffix.lower() == ".zip"):
            source = _zip(stack, path, path, limit)
        elif path.is_file() and re.fullmatch(wanted, path.name):  # one recording
            source = Source(path.parent, {path.name: path.stat().st_size}, lambda name: open(path.parent / name, "rb"))
        elif path.is_file():
            raise UserError(f"--raw {path} is no whole zip archive, and no file that is read by itself; fetch it again")
        else:
            raise UserError(f"--raw {path}: there is no such file or folder")
        if not source.sizes:
            raise UserError(f"--raw {path} is empty; give the archive as distributed, or the folder it unpacks to")
        if not source.matching(wanted):
            inner = None
            for name in source.matching(r".*\.zip"):
                label = f"{source.label}/{name}"
                inner = _zip(stack, label, stack.enter_context(source.open(name)), limit)
                if inner.matching(wanted):
                    break
            if inner is None or not inner.matching(wanted):
                first = ", ".join(sorted(source.sizes)[:3])
                raise UserError(f"--raw {path} does not hold the files of this data set (it holds {first}, ...)")
            source = inner
        yield source


def _folder(path):
    """The files below a folder; links are followed, each file and folder is taken once."""
    sizes, skipped, seen = {}, {}, set()
    for folder, folders, files in os.walk(path, followlinks=True):
        at = Path(folder)
        if _again(at, seen):
            skipped[f"{at.relative_to(path).as_posix()}/"] = "a link to what is read already"
            folders.clear()
            continue
        folders.sort()
        for file in sorted(files):
            name = (at / file).relative_to(path).as_posix()
            if not (at / file).exists():
                skipped[name] = "a link to nothing"
            elif not (at / file).is_file() or _hidden(name):
                continue
            elif _copy(name):
                skipped[name] = "an editor's or notebook's copy"
            elif _again(at / file, seen):
                skipped[name] = "a link to what is read already"
            else:
                sizes[name] = (at / file).stat().st_size
            if len(sizes) > MEMBERS:
                raise UserError(f"--raw {path} holds more than {MEMBERS} files; give the data set's own folder")
    return Source(path, sizes, lambda name: open(path / name, "rb"), skipped)


def _again(path, seen):
    """Whether a file or folder, links followed, is one of `seen`, which it joins."""
    status = path.stat()
    key = status.st_dev, status.st_ino
    again = key in seen
    seen.add(key)
    return again


def _zip(stack, label, file, limit):
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"{label} is no whole zip archive ({error}); fetch it again") from error
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > MEMBERS or sum(member.file_size for member in members) > limit:
        raise UserError(f"{label} would unpack to more than {limit >> 20} MB or {MEMBERS} files; refused")
    for member in members:
        # orig_filename: the zip module itself cuts the name at a null byte
        for name in (member.filename, member.orig_filename):
            drive = re.match(r"[A-Za-z]:", name)
            if name.startswith(("/", "\\")) or drive or ".." in re.split(r"[/\\]", name):
                raise UserError(f"{label} holds {name!r}, a path that leaves its folder; refused")
    members = [member for member in members if not _hidden(member.filename)]
    sizes = {member.filename: member.file_size for member in members if not _copy(member.filename)}
    skipped = {member.filename: "an editor's or notebook's copy" for member in members if member.filename not in sizes}
    return Source(label, sizes, archive.open, skipped)


def _hidden(name):
    """Files that operating systems add: .DS_Store, ._NAME, __MACOSX/..."""
    return posixpath.basename(name).startswith(".") or name.startswith("__MACOSX/") or "/__MACOSX/" in name


def _copy(name):
    """Copies that editors, notebooks and spreadsheets leave beside a file."""
    base = posixpath.basename(name)
    return (
        ".ipynb_checkpoints/" in f"/{name}" or base.endswith(("~", ".bak", ".orig", ".swp", ".tmp")) or base[:2] == "~$"
    )
