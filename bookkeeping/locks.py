"""Locks between processes: they die with the process that holds them, and leave no file behind."""

import contextlib
import errno
import fcntl
import functools
import os
from pathlib import Path

from bookkeeping.commands import UserError, warn

WITHOUT = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}  # of a file system


@contextlib.contextmanager
def locked(path, busy=None):
    """Hold the lock file `path` meanwhile; where another process holds it, wait, or raise UserError(busy) if given.

    A file system that has no locks gets a warning and none. Raises UserError where the file cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = hold(path, busy)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)  # before it is free: whoever waits for it sees that it has gone and makes another
        handle.close()


def hold(path, busy):
    """The open, locked file `path`."""
    while True:
        handle = open(path, "w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(path)):
                return handle
        except FileNotFoundError:  # it was another's that has just gone
            pass
        except BlockingIOError as error:
            handle.close()
            raise UserError(busy) from error
        except OSError as error:
            if error.errno in WITHOUT:
                warn_once(str(path.parent))
                return handle
            handle.close()
            raise
        handle.close()


@functools.cache
def warn_once(folder):
    warn(f"{folder} is on a file system without locks: run one command at a time there")
