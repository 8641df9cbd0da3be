r"""Keeps what foreign text may do to a terminal to letters.

Names of files, classes, tensors and phones may hold sequences that move the cursor,
change the title or hide lines. They are shown as they would be written in Python, such
as `\x1b`. Imports nothing of the package: `train.cli` runs this file without it.
"""

import re
import sys
from typing import TextIO

# Controls, but not tab and line feed; marks that reverse the direction of writing; and
# halves of characters, which Python makes of a file name that is not UTF-8.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)
# What progress bars write: back to the start of a line, and Keras's three colors.
_OF_BARS = re.compile("(^\x08*\r|\r(?=\n|\\Z)|\x1b\\[(?:0|1|32|37)m)")
_LINE_UP = re.compile("\n*(?:\x1b\\[A|\r)*")  # what tqdm writes between several bars


def _escape(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode()


def readable_text(text: str) -> str:
    """Returns a text without what controls a terminal, except for progress bars."""
    if not _CONTROLS.search(text) or _LINE_UP.fullmatch(text):
        return text
    parts = _OF_BARS.split(text)  # every second part is of a bar
    parts[::2] = [_CONTROLS.sub(_escape, part) for part in parts[::2]]
    return "".join(parts)


def guard_terminal() -> None:
    """Makes standard output and standard error write only `readable_text`.

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
        write(readable_text(text))
        return len(text)

    setattr(stream, "write", write_readable)  # noqa: B010  mypy: a method


def write_unguarded(stream: TextIO, text: str) -> None:
    """Writes a text of this program's own as it is."""
    type(stream).write(stream, text)
