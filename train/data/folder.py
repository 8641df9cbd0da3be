"""Folders of photos with a folder for each class: `PATH/train/<class>/*`."""

from collections import Counter
from pathlib import Path

import numpy as np
from absl import logging

from train.data.source import (
    IMAGE_SUFFIXES,
    SPLITS,
    Source,
    image_columns,
    indexed_source,
    is_ignored_file,
    join_names,
    refuse_one_class,
    refuse_other_classes,
    warn_of_similar_names,
)


def folder_source(argument: str, cache: bool = False) -> Source:
    """Opens `PATH/train/<class>/*` and `PATH/validation/<class>/*`.

    Images stay encoded until the pipeline crops them; with `cache` in memory. A file
    that cannot be decoded is listed like any other; the pipeline skips it.
    """
    path = Path(argument).expanduser()
    name = f"folder:{path}"
    listing = {split: _list_classes(path, split) for split in SPLITS}
    refuse_other_classes(str(path), *listing.values())
    class_names = sorted(listing["train"])
    refuse_one_class(name, class_names, f"{path}/train/<class>/*")
    warn_of_similar_names(class_names, name)
    paths = {
        split: [file for class_name in class_names for file in classes[class_name]]
        for split, classes in listing.items()
    }
    columns = image_columns(name, paths, cache)
    labels = np.arange(len(class_names), dtype=np.int32)
    for split, classes in listing.items():
        counts = [len(classes[class_name]) for class_name in class_names]
        columns[split]["label"] = np.repeat(labels, counts)
    return indexed_source(name, class_names, columns)


def _list_classes(path: Path, split: str) -> dict[str, list[str]]:
    """Lists `{class: image files}` of one split, both sorted."""
    folder = path / split
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder. Expected {path}/train/<class>/* and "
            f"{path}/validation/<class>/*."
        )
    others: Counter[str] = Counter()
    ignored: list[str] = []
    classes = {}
    for child in sorted(folder.iterdir()):
        if is_ignored_file(child.name):
            ignored.append(child.name)
        elif child.is_dir():
            classes[child.name] = _list_images(child, others, ignored)
        else:
            others["file outside of the class folders"] += 1
    _refuse_empty_classes(folder, classes)
    _warn_of_skipped_files(folder, others, ignored)
    return classes


def _list_images(folder: Path, others: Counter[str], ignored: list[str]) -> list[str]:
    """Lists the images of a class; adds the rest to `others` and `ignored`."""
    files = []
    for entry in sorted(folder.iterdir()):
        if is_ignored_file(entry.name):
            ignored.append(f"{folder.name}/{entry.name}")
        elif entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES:
            files.append(str(entry))
        else:
            others["folder" if entry.is_dir() else entry.suffix or entry.name] += 1
    return files


def _refuse_empty_classes(folder: Path, classes: dict[str, list[str]]) -> None:
    """Raises a ValueError if a class, or every class, has no images."""
    if not any(classes.values()):
        raise ValueError(
            f"No images in {folder}. Expected {folder}/<class>/* with one of the "
            f"endings {', '.join(IMAGE_SUFFIXES)}."
        )
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise ValueError(
            f"Class folders without images in {folder}: {', '.join(empty)}. Remove "
            "them or add images."
        )


def _warn_of_skipped_files(
    folder: Path, others: Counter[str], ignored: list[str]
) -> None:
    if ignored:
        logging.warning(
            "%s: skipped hidden files and files of a system or tool: %s.",
            folder,
            join_names(ignored),
        )
    if others:
        counts = ", ".join(f"{n} {ending}" for ending, n in others.most_common())
        logging.warning(
            "%s: skipped, since only files in <class>/* that end in %s are images: %s",
            folder,
            ", ".join(IMAGE_SUFFIXES),
            counts,
        )
