"""Lists and files of PASCAL VOC's layout, as people have them.

One reader for boxes and masks. A list names an image in a line, with or without its
ending or its path, perhaps with spaces in its name, followed by VOC's column of 1 and
-1 or by the path of its mask, as SBD has it. A line may be understood in several ways:
that counts which names a file that is there.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from keras_mobilevit.files import read_text
from train.data.repairs import Repairs
from train.data.sources import IMAGE_SUFFIXES, is_litter

MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff")
ENDINGS = (*MASK_SUFFIXES, ".xml")
_FILE = rf"(.+?(?:{'|'.join(map(re.escape, ENDINGS))}))"
_TWO_PATHS = re.compile(rf"{_FILE}\s+\S*[/\\].*", re.IGNORECASE)
_TWO_FILES = re.compile(rf"{_FILE}\s+\S.*", re.IGNORECASE)
_NAME_AND_COLUMN = re.compile(r"(.*\S)\s+-?[01]")


def read_lines(file: Path) -> list[str]:
    """Reads the lines of a list that are not empty, without spaces around them.

    Raises:
        ValueError: if the file is not text in UTF-8; the message names it.
    """
    text = read_text(file)
    if "\0" in text:  # UTF-16 without a mark looks like UTF-8 with zeros
        raise ValueError(
            f"{file} is not text in UTF-8. Save it again with this encoding."
        )
    return [line.strip() for line in text.splitlines() if line.strip()]


def without_ending(name: str) -> str:
    """Returns a name without the ending of an image, a mask or an XML."""
    ending = next((e for e in ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _readings(line: str) -> Iterator[str]:
    """Yields what a line may name, the likeliest first."""
    if match := _TWO_PATHS.fullmatch(line):
        yield match[1]
    yield line
    for pattern in (_TWO_FILES, _NAME_AND_COLUMN):
        if match := pattern.fullmatch(line):
            yield match[1]
    yield line.split()[0]


class Files:
    """The files of a folder, which are found by names as lists have them.

    Args:
        folder: is searched with the folders in it.
        suffixes: the endings of the files, in lower case.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str]):
        self.folder = folder
        self._exact, self._in_any_case = defaultdict(list), defaultdict(list)
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not is_litter(name))
            for name in sorted(names):
                if name.lower().endswith(tuple(suffixes)) and not is_litter(name):
                    file = Path(parent, name)
                    key = without_ending(file.relative_to(folder).as_posix())
                    self._exact[key].append(file)
                    self._in_any_case[key.lower()].append(file)

    def find(self, name: str) -> list[Path]:
        """Returns the files that a name with or without path and ending may mean.

        Of a path the longest end counts that leads to a file in the folder.
        """
        # Both kinds of slashes: a list or an XML may come from another system.
        parts = re.split(r"[/\\]+", name)
        for start in range(len(parts)):
            path = "/".join(parts[start:])
            for key in (path, without_ending(path)):
                files = self._exact.get(key) or self._in_any_case.get(key.lower())
                if files:
                    named = [file for file in files if file.name == parts[-1]]
                    return named or files
        return []

    def find_one(self, name: str) -> Path | None:
        """Returns the file that a name means, `None` if there is none.

        Raises:
            ValueError: if there are several.
        """
        files = self.find(name)
        if len(files) > 1:
            raise ValueError(
                f"{files[0]} and {files[1].name} differ only in ending or case, so "
                f"that it is uncertain which of them {name!r} is. Remove or rename one."
            )
        return files[0] if files else None


def read_names(file: Path, folders: Sequence[Files], repairs: Repairs) -> list[str]:
    """Reads a list of images.

    Args:
        file: the list.
        folders: where files of the images are; a line is read such that its name is
            found there.
        repairs: counts what is listed twice.

    Returns:
        Names for `Files.find`, each once.

    Raises:
        ValueError: if the file is not text, or names nothing.
    """
    names = {}
    for line in read_lines(file):
        readings = list(_readings(line))
        known = (name for name in readings if any(f.find(name) for f in folders))
        name = next(known, readings[0])
        found = (tuple(folder.find(name)) for folder in folders)
        key = next(filter(None, found), without_ending(name))
        if key in names:
            repairs.add("images listed twice, taken once", f"{file}: {line}")
        names.setdefault(key, name)
    if not names:
        raise ValueError(
            f"{file} is empty. Expected the name of an image in each line."
        )
    return list(names.values())
