"""Lists and files of PASCAL VOC's layout, for boxes and masks alike.

A line of a list names an image. The name may have a path, an ending and spaces. VOC's
column of 1 and -1, or the path of a mask as in SBD's lists, may follow it. If a line
can be read in several ways, the reading that names an existing file is taken.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from keras_mobilevit.files import read_text
from train.data.annotation_report import AnnotationReport
from train.data.source import IMAGE_SUFFIXES, is_ignored_file

MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff")
ENDINGS = (*MASK_SUFFIXES, ".xml")
_FILE = rf"(.+?(?:{'|'.join(map(re.escape, ENDINGS))}))"
_TWO_PATHS = re.compile(rf"{_FILE}\s+\S*[/\\].*", re.IGNORECASE)
_TWO_FILES = re.compile(rf"{_FILE}\s+\S.*", re.IGNORECASE)
_NAME_AND_COLUMN = re.compile(r"(.*\S)\s+-?[01]")


def read_lines(file: Path) -> list[str]:
    """Reads the lines of a list, stripped, without empty lines."""
    text = read_text(file)
    if "\0" in text:  # UTF-16 without a byte order mark looks like UTF-8 with zeros
        raise ValueError(
            f"{file} is not text in UTF-8. Save it again with this encoding."
        )
    return [line.strip() for line in text.splitlines() if line.strip()]


def without_ending(name: str) -> str:
    """Removes the ending of an image, a mask or an annotation from a name."""
    ending = next((e for e in ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _readings(line: str) -> Iterator[str]:
    """Yields the names that a line may mean, the likeliest first."""
    if match := _TWO_PATHS.fullmatch(line):
        yield match[1]
    yield line
    for pattern in (_TWO_FILES, _NAME_AND_COLUMN):
        if match := pattern.fullmatch(line):
            yield match[1]
    yield line.split()[0]


class Files:
    """Finds the files of a folder and its subfolders by their names in lists.

    `suffixes` are the endings of the files, in lower case.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str]):
        self.folder = folder
        self._exact: dict[str, list[Path]] = defaultdict(list)
        self._in_any_case: dict[str, list[Path]] = defaultdict(list)
        seen = set[tuple[int, int]]()  # folders, since links may lead in circles
        for parent, folders, names in os.walk(folder, followlinks=True):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not is_ignored_file(name))
            for name in sorted(names):
                if name.lower().endswith(tuple(suffixes)) and not is_ignored_file(name):
                    file = Path(parent, name)
                    key = without_ending(file.relative_to(folder).as_posix())
                    self._exact[key].append(file)
                    self._in_any_case[key.lower()].append(file)

    def find(self, name: str) -> list[Path]:
        """Returns the files that a name may mean, with or without path and ending.

        If the name has a path, its longest end that leads to a file decides.
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
        """Returns the file of a name, or `None`; several files are refused."""
        files = self.find(name)
        if len(files) > 1:
            raise ValueError(
                f"{files[0]} and {files[1].name} differ only in ending or case, so "
                f"{name!r} may be either of them. Remove or rename one."
            )
        return files[0] if files else None


def read_names(
    file: Path, folders: Sequence[Files], report: AnnotationReport
) -> list[str]:
    """Reads names for `Files.find`, each once, from a list of images.

    `folders` hold the files that the lines name.
    """
    names: dict[tuple[Path, ...] | str, str] = {}
    for line in read_lines(file):
        readings = list(_readings(line))
        known = (name for name in readings if any(f.find(name) for f in folders))
        name = next(known, readings[0])
        found = (tuple(folder.find(name)) for folder in folders)
        key = next(filter(None, found), without_ending(name))
        if key in names:
            report.add("images listed twice, taken once", f"{file}: {line}")
        names.setdefault(key, name)
    if not names:
        raise ValueError(
            f"{file} is empty. Expected the name of an image in each line."
        )
    return list(names.values())
