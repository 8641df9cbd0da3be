"""Reads files that are files, and writes files and folders completely or not at all."""

import contextlib
import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of a list, a table or a configuration. A line for each of ImageNet's 1.3 million
# images takes a sixth of it.
MAX_TEXT_BYTES = 2**28
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_file(path: str | os.PathLike, max_bytes: int) -> None:
    """Raises a ValueError unless a path leads to a file of at most `max_bytes`.

    To read a named pipe would wait forever, and to read `/dev/zero` or a sparse file
    would take all memory. Data from elsewhere may contain links to any of them. If
    there is nothing, the error is Python's FileNotFoundError.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kinds = (kind for is_kind, kind in _KINDS if is_kind(status.st_mode))
        raise ValueError(
            f"{os.fspath(path)} is {next(kinds, 'of another kind')}. Expected a file. "
            "Replace or remove it."
        )
    if status.st_size > max_bytes:
        raise ValueError(
            f"{os.fspath(path)} has {status.st_size:,} bytes. Expected at most "
            f"{max_bytes:,}. Perhaps it is another file, or damaged. Replace or remove "
            "it."
        )


def read_lines(path: str | os.PathLike) -> list[str]:
    """Reads the lines of a text file, such as class names; see `read_text`.

    Only line breaks of files end a line: `str.splitlines` would also split at others,
    such as U+2028, which may be in a name.
    """
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_text(path: str | os.PathLike, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Reads a UTF-8 text file and removes a byte order mark; see `check_file`.

    Some editors on Windows write this mark. It would become part of the first word.
    """
    check_file(path, max_bytes)
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8. Save it again with this encoding."
        ) from error


def read_json(path: str | os.PathLike, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Reads a JSON file; see `read_text`."""
    return parse_json(read_text(path, max_bytes), str(path))


def parse_json(text: str, name: str) -> Any:
    """Parses JSON. Raises a ValueError that begins with `name` if it is not valid."""
    try:
        return json.loads(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # a JSONDecodeError, or a number with 4,301 digits
        reason = str(error)
    raise ValueError(f"{name} is not valid JSON: {reason}.")


def _flush_to_disk(file: Path) -> None:
    # Windows flushes only files that are open for writing.
    with open(file, "r+b") as opened:
        os.fsync(opened.fileno())


def temporary_path(path: Path) -> Path:
    """Returns a name beside a file, for what this thread will rename to it.

    Threads may write the same file at once, such as weights that each of them fetches.
    """
    owner = f"{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f".{path.stem}.{owner}.tmp{path.suffix}")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary file in the same folder, then renames it to `path`.

    If the process is killed or the disk is full, an earlier file stays unchanged. The
    temporary file has the suffix of `path`. The file gets the permissions of any new
    file, and an OSError names it, whatever library writes it.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        permissions = _new_permissions(temporary)
        yield temporary
        os.chmod(temporary, permissions)  # safetensors writes for the owner only
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        named = _with_name(error, path, temporary)
        if named is error:
            raise
        raise named from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _new_permissions(file: Path) -> int:
    """Returns the permissions that a new file gets in the folder of `file`."""
    # What a killed process left, or a link that somebody else has put there.
    file.unlink(missing_ok=True)
    with open(file, "xb") as opened:
        permissions = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
    file.unlink()
    return permissions


def _with_name(error: OSError, path: Path, temporary: Path) -> OSError:
    """Returns an error that names `path`, unless it names another file."""
    if error.errno is None:  # of a library, such as HDF5
        text = str(error).replace(str(temporary), str(path))
        return OSError(text if str(path) in text else f"Cannot write {path}: {text}")
    names = error.filename, error.filename2
    if any(name is not None and Path(os.fsdecode(name)) != temporary for name in names):
        return error  # such as the file that is replaced, or one that is read
    return OSError(error.errno, error.strerror, str(path))


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
