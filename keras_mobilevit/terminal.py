r"""Keeps what foreign text may do to a terminal to letters.

Names of files, classes, tensors and phones may hold sequences that move the cursor,
change the title or hide lines. They are shown as they would be written in Python, such
as `\x1b`. Only progress bars may control a terminal. They are known by the code that
writes, because a name can hold all that a bar writes. Imports nothing of the package:
`train.cli` runs this file without it.
"""

import re
import sys
from types import FrameType
from typing import TextIO

# Controls, but not tab and ends of lines; marks that reverse the direction of writing;
# and halves of characters, which Python makes of a file name that is not UTF-8.
_CONTROLS = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# What progress bars write: back to the start of a line, tqdm between several bars only
# lines up, and Keras its colors. A bar may also hold names.
_OF_TQDM = re.compile("(^\r|^(?:\x1b\\[A)+\\Z)")
_OF_KERAS = re.compile("(^\x08*\r|\x1b\\[(?:0|1|32|37)m)")
_KERAS = "keras.src.utils."


def _escape(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode()


def readable_text(text: str) -> str:
    """Returns a text with the controls of a terminal as they are written in Python."""
    return _CONTROLS.sub(_escape, text)


def _of_bar(writer: FrameType) -> re.Pattern | None:
    """Returns what a caller of `write` may write, if it is a progress bar."""

    def module(frame: FrameType | None) -> str:
        return frame.f_globals.get("__name__", "") if frame else ""

    if module(writer) == "tqdm.utils" and writer.f_back:  # tqdm's wrapper of a stream
        writer = writer.f_back
    if module(writer) == "tqdm.std" and writer.f_code.co_name != "write":
        return _OF_TQDM  # `tqdm.write` writes texts of others
    callers = module(writer), module(writer.f_back)
    is_keras = callers == (f"{_KERAS}io_utils", f"{_KERAS}progbar")
    return _OF_KERAS if is_keras else None


def _readable(text: str, writer: FrameType | None) -> str:
    if not _CONTROLS.search(text):
        return text
    allowed = _of_bar(writer) if writer else None
    parts = allowed.split(text) if allowed else [text]  # every second part is allowed
    parts[::2] = map(readable_text, parts[::2])
    return "".join(parts)


def guard_terminal() -> None:
    """Makes standard output and standard error write `readable_text`, and bars.

    A terminal may also lack letters of a name; they are shown in the same way.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a program replaced it
            stream.reconfigure(errors="backslashreplace")
        if stream is not None and "write" not in getattr(stream, "__dict__", {}):
            _guard(stream)


def _guard(stream: TextIO) -> None:
    write = stream.write

    def write_readable(text: str) -> int:
        # No function calls it when Python itself writes the message of `sys.exit`.
        frame: FrameType | None = sys._getframe()
        write(_readable(text, frame.f_back if frame else None))
        return len(text)

    setattr(stream, "write", write_readable)  # noqa: B010  mypy: a method


def write_unguarded(stream: TextIO, text: str) -> None:
    """Writes a text of this program's own as it is."""
    type(stream).write(stream, text)
