"""Folders of photos with a folder for each class.

Either `PATH/train/<class>/*` and `PATH/validation/<class>/*`, or `PATH/<class>/*`. The
part that validates may also be called `val` or `valid`.
"""

import stat
from collections import Counter
from pathlib import Path

import numpy as np
from absl import logging

from keras_mobilevit.image_files import MAX_BYTES
from train.data.folder_split import FRACTION, RULE, split_class
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

# Of the parts of a folder, by split. The second is ImageNet's, the third Roboflow's.
PART_NAMES = dict(zip(SPLITS, (("train",), ("validation", "val", "valid"))))


def folder_source(argument: str, cache: bool = False) -> Source:
    """Opens a folder of class folders, with or without `train` and `validation`.

    Images stay encoded until the pipeline crops them; with `cache` in memory. A file
    that cannot be decoded is listed like any other; the pipeline skips it.
    """
    path = Path(argument).expanduser()
    name = f"folder:{path}"
    if has_parts(path):
        listing = {split: _list_part(path, split) for split in SPLITS}
        where = f"{path}/train/<class>/*"
    else:
        listing = _split_classes(path)
        where = f"{path}/<class>/*"
    refuse_other_classes(str(path), *listing.values())
    class_names = sorted(listing["train"])
    refuse_one_class(name, class_names, where)
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


def has_parts(path: Path) -> bool:
    """Tells whether a folder has the parts `train` and `validation`, or one of them.

    A single folder of such a name with photos directly inside is a class, such as
    pictures of trains. Raises a ValueError if it also has class folders.
    """
    parts = [part for split in SPLITS if (part := find_part(path, split))]
    if len(parts) == 2 and all(has_photos(x) and not class_folders(x) for x in parts):
        raise ValueError(
            f"{parts[0]} and {parts[1]} have photos directly inside. Move the photos "
            "into a folder for each class; or, if they are classes, rename them."
        )
    if len(parts) != 1 or not has_photos(parts[0]):
        return bool(parts)
    (part,) = parts
    if folders := class_folders(part):
        raise ValueError(
            f"{part} has photos, as a class has, and the class folders "
            f"{join_names([folder.name for folder in folders])}, as a part of the data "
            "has. Move the photos into class folders; or, if it is a class, move the "
            "folders away."
        )
    return False


def find_part(path: Path, split: str) -> Path | None:
    """Returns the folder of a split by one of its names; two of them are refused."""
    found = [path / name for name in PART_NAMES[split] if (path / name).is_dir()]
    if len(found) > 1:
        raise ValueError(
            f"{path} has the folders {found[0].name} and {found[1].name}, and either "
            f"may be the {split} part. Move one of them away."
        )
    return found[0] if found else None


def has_photos(folder: Path) -> bool:
    """Tells whether photos lie directly in a folder."""
    return any(map(_is_photo, folder.iterdir()))


def photos_in(folder: Path) -> list[str]:
    """Returns the paths of the photos that lie directly in a folder, sorted."""
    return [str(entry) for entry in sorted(folder.iterdir()) if _is_photo(entry)]


def class_folders(path: Path) -> list[Path]:
    """Returns the folders in a folder that have photos directly inside, sorted."""
    children = (child for child in path.iterdir() if not is_ignored_file(child.name))
    return sorted(child for child in children if child.is_dir() and has_photos(child))


def _is_photo(entry: Path) -> bool:
    if entry.suffix.lower() not in IMAGE_SUFFIXES or is_ignored_file(entry.name):
        return False
    try:
        status = entry.stat()
    except OSError:  # such as a link to nothing
        return False
    # TensorFlow would wait for a named pipe forever, and read any file to its end.
    return stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES


def _kind(entry: Path) -> str:
    """Describes what is in the folder of a class and is not a photo."""
    if entry.is_dir():
        return "folder"
    if entry.suffix.lower() in IMAGE_SUFFIXES:
        return f"{entry.suffix} that is no file, or larger than {MAX_BYTES:,} bytes"
    return entry.suffix or entry.name


def _split_classes(path: Path) -> dict[str, dict[str, list[str]]]:
    """Lists `{split: {class: image files}}` of a folder without parts."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder. Expected {_layouts(path)}.")
    if photos := photos_in(path):
        raise ValueError(
            f"{path} has photos outside of class folders, {len(photos)} such as "
            f"{Path(photos[0]).name}. Expected {_layouts(path)}. Move each photo into "
            "the folder of its class."
        )
    classes = {
        class_name: split_class(files)
        for class_name, files in _list_classes(path).items()
    }
    _refuse_single_photos(path, classes)
    logging.info("no train/ and validation/ in %s: %s", path, RULE)
    return {
        split: {class_name: parts[split] for class_name, parts in classes.items()}
        for split in SPLITS
    }


def _refuse_single_photos(path: Path, classes: dict[str, dict[str, list[str]]]) -> None:
    """Raises a ValueError if no photo of a class validates."""
    single = [name for name, parts in classes.items() if not parts["validation"]]
    if single:
        raise ValueError(
            f"Classes with a single photo in {path}: {join_names(single)}. Expected "
            "two or more, since one trains and another validates; copies count as one. "
            "Add photos to these folders, or remove them."
        )


def _layouts(path: Path) -> str:
    """Describes where photos may lie, for messages."""
    return (
        f"{path}/train/<class>/* and {path}/validation/<class>/* (or val, or valid); "
        f"or, without these two folders, {path}/<class>/*, of which {FRACTION:.0%} "
        "validate"
    ).replace("%", " %")


def _list_part(path: Path, split: str) -> dict[str, list[str]]:
    """Lists `{class: image files}` of the part of a split."""
    part = find_part(path, split)
    if part is None:
        raise ValueError(f"{path / split} is not a folder. Expected {_layouts(path)}.")
    return _list_classes(part)


def _check_encoding(folder: Path) -> None:
    """Raises a ValueError if a folder's name is not UTF-8, as of old archives."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The name of the class folder {str(folder)!r} is not UTF-8. Rename it."
        ) from error


def _list_classes(folder: Path) -> dict[str, list[str]]:
    """Lists `{class: image files}` of the class folders in a folder, both sorted."""
    others: Counter[str] = Counter()
    ignored: list[str] = []
    classes = {}
    for child in sorted(folder.iterdir()):
        if is_ignored_file(child.name):
            ignored.append(child.name)
        elif child.is_dir():
            _check_encoding(child)
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
        elif _is_photo(entry):
            files.append(str(entry))
        else:
            others[_kind(entry)] += 1
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
