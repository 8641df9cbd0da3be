"""Names of files, as they are printed and written."""

import sys


def print_any_name() -> None:
    """Lets `print` take names with letters that the terminal's encoding has not."""
    if hasattr(sys.stdout, "reconfigure"):  # not where it was replaced
        sys.stdout.reconfigure(errors="backslashreplace")


def readable(text: str) -> str:
    """Returns a text with the names of files as UTF-8 has them.

    Where the locale is not in UTF-8, Python takes each other byte of a name for half a
    letter, which no file can hold.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
