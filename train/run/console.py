"""Names of files and classes, as programs print and write them."""

import sys


def print_any_name() -> None:
    """Lets programs print letters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where it was replaced
            stream.reconfigure(errors="backslashreplace")


def readable(text: str) -> str:
    """Returns a text with the names of files as UTF-8 has them.

    Where the locale is not in UTF-8, Python represents each other byte of a name by a
    surrogate, which cannot be written to a file.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
