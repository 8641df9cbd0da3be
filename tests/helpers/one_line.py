"""Reading a damaged file ends well, or in one line that names the file."""

import contextlib
import functools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SECONDS = 10  # for each file
MEMORY = 2 * 10**9  # bytes that reading may add


class Forbidden(BaseException):
    """What a reader must not do. No `except Exception` of the reader hides it."""


def _memory() -> int:
    """Returns the bytes that this process has in memory."""
    pages = Path("/proc/self/statm").read_text("utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    """Returns the most bytes that this process had since `_forget_peak`."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


class _Guard:
    """Refuses what Python writes, renames or removes outside of a folder."""

    folder: Path | None = None  # None: everything is allowed

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.folder is None or event not in (*_CHANGES, "open"):
            return
        path, mode = arguments[0], arguments[1] if event == "open" else "w"
        if isinstance(path, int) or not set("wax+") & set(mode or ""):
            return
        place = os.path.abspath(os.fsdecode(path))
        # `tempfile` opens its folder to make a file in it.
        temporary = os.path.join(tempfile.gettempdir(), tempfile.gettempprefix())
        allowed = (f"{self.folder}/", "/proc/self/", "/dev/null", temporary)
        if place != tempfile.gettempdir() and not place.startswith(allowed):
            raise Forbidden(f"{event} outside of {self.folder}: {place}")


_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink")


@functools.cache
def _guard() -> _Guard:
    """Adds the guard to Python, which has no way to remove it."""
    guard = _Guard()
    sys.addaudithook(guard)
    return guard


@contextlib.contextmanager
def one_line(folder: Path, *names: str) -> Iterator[None]:
    """Allows a ValueError or OSError with one of the names, and nothing else.

    Whatever is beside `folder` must be the same afterwards. It takes Linux.
    """

    def end(*_):
        raise Forbidden(f"It took more than {SECONDS} s.")

    guard = _guard()
    before = sorted(folder.parent.iterdir())
    used = _memory()
    _forget_peak()
    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    guard.folder = folder
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        assert any(name in text for name in names), f"{type(error)}: {text[:500]}"
    finally:
        guard.folder = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert _peak() - used < MEMORY
    assert sorted(folder.parent.iterdir()) == before
