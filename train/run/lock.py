"""Locks a working directory, so that only one training writes there."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

LOCK = ".training.lock"
# A link would lead to a file elsewhere, which would be overwritten. Windows has no such
# flag.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def only_training(workdir: Path) -> Iterator[None]:
    """Creates a working directory, and locks it until the context ends.

    The operating system releases the lock when the process ends, even if it is killed.
    A directory that is empty at the end is removed. Raises a ValueError if another
    training holds the lock.
    """
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    handle = None
    try:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            handle = _acquire(workdir / LOCK)
        except OSError as error:
            raise ValueError(f"Cannot write into --workdir: {error}.") from error
        yield
    finally:
        if handle is not None:
            _release(handle, workdir / LOCK)
        with contextlib.suppress(OSError):  # not empty: it holds a run
            for folder in made:
                folder.rmdir()


def _release(handle: int, file: Path) -> None:
    """Removes the lock's file before the lock is released; on Windows, after it."""
    with contextlib.suppress(OSError):  # Windows does not remove an open file
        file.unlink(missing_ok=True)
    os.close(handle)
    if os.name == "nt":
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _acquire(file: Path) -> int:
    """Opens and locks the file, and writes the owner into it."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o644)
        try:
            _lock(handle, file)
            if file.exists() and os.path.samestat(os.fstat(handle), os.stat(file)):
                owner = {"process": os.getpid(), "machine": socket.gethostname()}
                os.truncate(handle, 0)
                os.write(handle, json.dumps(owner).encode())
                return handle
        except ValueError:  # the file is another training's
            os.close(handle)
            raise
        except BaseException:  # such as the exit on SIGTERM
            _release(handle, file)
            raise
        os.close(handle)  # its owner has just removed it


def _lock(handle: int, file: Path) -> None:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"Another training{_owner(file)} writes into {file.parent}. Wait for it, "
            "end it, or choose another --workdir."
        ) from error
    except (OSError, ImportError) as error:  # storage without locks, or Windows
        logging.warning(
            "%s cannot be locked (%s): make sure that no other training writes there",
            file.parent,
            error.strerror if isinstance(error, OSError) else "by this system",
        )


def _owner(file: Path) -> str:
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
        return f" (process {owner['process']} on {owner['machine']})"
    except (OSError, ValueError, KeyError, TypeError):  # not yet written
        return ""
