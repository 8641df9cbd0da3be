"""Writes files and folders completely or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def read_lines(path: str | os.PathLike) -> list[str]:
    """Reads the lines of a text file, such as class names; see `read_text`.

    Only line breaks of files end a line: `str.splitlines` would also split at others,
    such as U+2028, which may be in a name.
    """
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_text(path: str | os.PathLike) -> str:
    """Reads a UTF-8 text file and removes a byte order mark.

    Some editors on Windows write this mark. It would become part of the first word.
    """
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8. Save it again with this encoding."
        ) from error


def _flush_to_disk(file: Path) -> None:
    # Windows flushes only files that are open for writing.
    with open(file, "r+b") as opened:
        os.fsync(opened.fileno())


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary file in the same folder, then renames it to `path`.

    If the process is killed or the disk is full, an earlier file stays unchanged. The
    temporary file has the suffix of `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_write_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a folder to create, then renames it; see `atomic_write`."""
    path = Path(path)
    # On the same disk, which renaming needs; under a name that no other run uses.
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
    temporary, old = scratch / path.name, scratch / "old"
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        if os.path.lexists(path):  # a folder cannot be replaced in one step
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except BaseException:
            if os.path.lexists(old):
                os.replace(old, path)
            raise
    except BaseException:
        if not os.path.lexists(old):  # otherwise `old` is the only copy
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
