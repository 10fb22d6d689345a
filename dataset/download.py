"""Fetching an archive into downloads/: progress bar, resumed after a break, length and SHA-256 checked, timeouts."""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from bookkeeping.commands import UserError
from bookkeeping.locks import locked

FOLDER = Path("downloads")
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 5  # breaks of the connection in one run; a later run resumes as well
PIECE = 1 << 18


class Unreachable(Exception):
    """The address cannot be read: no network, no such file, or it broke off too often."""


def fetch(url, name, size=None, sha256=None, timeout=TIMEOUT, attempts=ATTEMPTS, wait=1.0):
    """Fetch `url` to downloads/`name` unless a good copy lies there; returns its path.

    What an interrupted fetch left (NAME.part) is continued with an HTTP Range request. size (bytes) and sha256 (hex)
    are checked where given. Raises Unreachable, and UserError for a file that is not the expected one.
    """
    path = FOLDER / name
    if path.exists():
        try:
            return verify(path, size, sha256)
        except UserError:
            path.unlink()  # damaged, or of another version
    part = path.with_name(name + ".part")
    busy = f"{part}: another process is fetching it; wait for that one"
    with locked(part.with_name(f".{part.name}.lock"), busy), open(part, "ab") as handle:
        for attempt in range(attempts):
            try:
                if _transfer(url, handle, size, timeout, path.name):
                    break
                problem = "the connection broke off"
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = _reason(error)
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise Unreachable(problem) from error
                if isinstance(error, OSError) and error.errno in (28, 122):  # no space, quota: on our side
                    raise UserError(f"{part} cannot be written: {error.strerror}") from error
            time.sleep(wait if attempt < attempts - 1 else 0)
        else:
            raise Unreachable(problem)
        handle.flush()
        os.fsync(handle.fileno())
        try:
            verify(part, size, sha256)
        except UserError:
            part.unlink()
            raise
        os.replace(part, path)
    return path


def verify(path, size=None, sha256=None):
    """Check a file's length and SHA-256 where they are known; returns its path. Raises UserError."""
    actual = os.path.getsize(path)
    if size is not None and actual != size:
        raise UserError(f"{path} has {actual} bytes, not {size}: not the expected file, or damaged; fetch it again")
    if sha256 is not None:
        with open(path, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if digest != sha256:
            raise UserError(f"{path} has SHA-256 {digest}, not {sha256}: not the expected file; fetch it again")
    return Path(path)


def _transfer(url, handle, size, timeout, name):
    """Append what is missing of `url` to the open file; True when it is whole, as far as its length is known."""
    from tqdm import tqdm

    have = handle.seek(0, os.SEEK_END)
    if size is not None and have == size:
        return True
    if size is not None and have > size:
        handle.truncate(0)
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "CrossHAR-prepare"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the part is as long as the file, or longer than it: begin anew
            total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if total == str(have):
                return True
            handle.truncate(0)
            return False
        raise
    with contextlib.closing(response):
        start = (response.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
        if have and (response.status != 206 or start != str(have)):  # the server does not resume
            handle.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        if size is not None and total not in (None, size):
            raise UserError(f"{url} has {total} bytes, not {size}: not the expected file any more")
        with tqdm(total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024, desc=name) as bar:
            while piece := response.read(PIECE):
                handle.write(piece)
                have += len(piece)
                bar.update(len(piece))
        handle.flush()
    return total is None or have == total


def _reason(error):
    reason = getattr(error, "reason", None) or error
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return str(reason) or type(error).__name__


def package_link(requirement):
    """The address of a source package in the Python package index. Raises Unreachable.

    unearth only looks the package up: unlike pip it never builds or runs it to learn its metadata.
    """
    try:
        from unearth import PackageFinder

        index = os.environ.get("PIP_INDEX_URL")  # a mirror, where the user's pip has one
        finder = PackageFinder(index_urls=[index] if index else [], no_binary=[":all:"])
        found = finder.find_best_match(requirement).best
    except ImportError as error:
        raise Unreachable("unearth is not installed (pip install -r requirements.txt)") from error
    except Exception as error:  # whatever the HTTP client in use raises
        raise Unreachable(_reason(error)) from error
    if found is None:
        raise Unreachable("the package index does not offer it")
    return found.link.normalized
