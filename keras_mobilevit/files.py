"""Files and folders that are written whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def read_text(path) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Editors on Windows write such a mark; left in, it becomes part of the first word.

    Raises:
        ValueError: if the file is not text in UTF-8; the message names it.
        OSError: if it cannot be read.
    """
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8. Save it again with this encoding."
        ) from error


def _write_through(file: Path) -> None:
    # Windows flushes only what is opened for writing.
    with open(file, "r+b") as opened:
        os.fsync(opened.fileno())


@contextlib.contextmanager
def atomic_write(path) -> Iterator[Path]:
    """Gives a temporary name beside `path`, which takes its place at the end.

    A process that is killed, or a disk that is full, leaves an earlier file as it was.

    Args:
        path: where the file shall be; its ending is kept.

    Yields:
        The path to write to.

    Example:
    >>> with atomic_write("labels.txt") as temporary:
    ...     temporary.write_text("cat\ndog\n")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        _write_through(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_write_folder(path) -> Iterator[Path]:
    """Gives a temporary name beside `path` for a folder; see `atomic_write`.

    Args:
        path: where the folder shall be; its ending is kept.

    Yields:
        The path of the folder to make.
    """
    path = Path(path)
    # Hidden beside it, so that it can be renamed; of a name that no other run has.
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
    temporary, old = scratch / path.name, scratch / "old"
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _write_through(file)
        if os.path.lexists(path):  # nothing takes a folder's place in one step
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except BaseException:
            if os.path.lexists(old):
                os.replace(old, path)
            raise
    except BaseException:
        if not os.path.lexists(old):  # else it is all that is left of the earlier one
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
