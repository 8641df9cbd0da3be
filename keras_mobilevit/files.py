"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
