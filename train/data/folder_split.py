"""Which photos of a folder without `train` and `validation` validate.

A photo validates if a hash of its class and its name, as a number in [0, 1), is below
`FRACTION`. So neither the order of a listing, the place of the folder nor --seed
matters, and training, evaluation and conversion find the same photos.

To sort by the hash and take the first fifth would give exact counts, but then each
added photo could push another one to the other side: a model would be evaluated on
photos that an earlier run trained it on. A threshold gives counts that vary, such as
20 +- 4 of 100, and moves no photo, with two exceptions:

- Each side gets at least one photo. If all hashes of a class are on one side of the
  threshold, the photo nearest to the other side goes there, until a later photo takes
  its place. No rule avoids this: of any three photos, two would have the same fixed
  side, and a class of these two would lack the other side.
- Copies of a photo, the same bytes under another name, stay together in their class.
  They train if one of them does. So a new copy may take a photo out of the validation
  part, but never one out of the training part.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from train.data.source import SPLITS

FRACTION = 0.2  # of the photos of a class validate
RULE = (
    f"of each class about {FRACTION:.0%} of the photos validate, chosen by the SHA-256 "
    "of <class>/<file name>"
).replace("%", " %")
_BLOCK = 4096  # bytes


def split_class(files: Sequence[str]) -> dict[str, list[str]]:
    """Splits the photos of one class; each side keeps the order of `files`.

    `files` are paths that end in `<class>/<file name>`. No photo validates if all are
    copies of one.
    """
    groups = sorted(_group_copies(files), key=_group_position)
    count = sum(_group_position(group) < FRACTION for group in groups)
    count = min(max(count, 1), len(groups) - 1)
    validating = {file for group in groups[:count] for file in group}
    train, validation = SPLITS
    return {
        train: [file for file in files if file not in validating],
        validation: [file for file in files if file in validating],
    }


def _group_position(group: Sequence[str]) -> float:
    return max(map(_position, group))


def _position(file: str) -> float:
    """Returns the hash of `<class>/<file name>` as a number in [0, 1)."""
    path = Path(file)
    # macOS may store an accented letter as two characters, other systems as one.
    name = unicodedata.normalize("NFC", f"{path.parent.name}/{path.name}")
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # exact in a float


def _group_copies(files: Sequence[str]) -> list[list[str]]:
    """Groups files with the same bytes.

    This is cheap, since most photos differ in size, and nearly all others in their
    last bytes: only copies are read to the end.
    """
    groups = [list(files)]
    for key in (_size, _last_block, _digest):
        groups = [part for group in groups for part in _divide(group, key)]
    return groups


def _divide(files: list[str], key: Callable[[str], object]) -> list[list[str]]:
    """Divides files by a key. A file that cannot be read is alone."""
    if len(files) == 1:
        return [files]
    parts: dict[object, list[str]] = {}
    for file in files:
        try:
            value = key(file)
        except OSError:
            value = file
        parts.setdefault(value, []).append(file)
    return list(parts.values())


def _size(file: str) -> int:
    return os.path.getsize(file)


def _last_block(file: str) -> bytes:
    with open(file, "rb") as stream:
        stream.seek(max(0, os.path.getsize(file) - _BLOCK))
        return stream.read()


def _digest(file: str) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
