"""Files and folders that are written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def _hidden(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}.{purpose}{path.suffix}")


def _write_through(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


@contextlib.contextmanager
def whole_file(path) -> Iterator[Path]:
    """Gives a temporary name beside `path`, which takes its place at the end.

    A process that is killed, or a disk that is full, leaves an earlier file as it was.

    Args:
        path: where the file shall be; its ending is kept.

    Yields:
        The path to write to.

    Example:

    >>> with whole_file("labels.txt") as temporary:
    ...     temporary.write_text("cat\ndog\n")
    """
    path = Path(path)
    temporary = _hidden(path, "tmp")
    try:
        yield temporary
        _write_through(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path) -> Iterator[Path]:
    """Gives a temporary name beside `path` for a folder; see `whole_file`.

    Args:
        path: where the folder shall be; its ending is kept.

    Yields:
        The path of the folder to make.
    """
    path = Path(path)
    temporary, old = _hidden(path, "tmp"), _hidden(path, "old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _write_through(file)
        # A folder cannot take the place of another in one step.
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
