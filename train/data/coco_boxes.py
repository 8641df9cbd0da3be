"""Boxes from COCO's JSON files.

Ids of annotations mean nothing here, and may repeat. Those of images and categories
connect the parts of a file: one that stands for two images or two names is refused.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import numpy as np
from absl import logging
from tqdm import tqdm

from keras_mobilevit.files import read_text
from train.data.annotations import (
    Objects,
    box_areas,
    image_header,
    place_boxes,
    without_repeats,
)
from train.data.geometry import find_canvas
from train.data.repairs import Repairs

_KEYS = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_KINDS = {
    int: "a whole number",
    str: "a text",
    list: "a list of four numbers: left, top, width and height in pixels",
}
_SIDES = ("width", "height")
_RENUMBER = (
    "This happens when files are joined that both count from 1. Renumber the {}, also "
    "in the annotations."
)


def read_coco(file: Path) -> dict:
    """Reads a file of COCO's annotations.

    Returns:
        Its content; the names of categories are without spaces around them.

    Raises:
        ValueError: if it is no such file.
    """
    text = read_text(file)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    keys = content if isinstance(content, dict) else {}
    missing = [part for part in _KEYS if not isinstance(keys.get(part), list)]
    if missing:
        raise ValueError(
            f"{file} is no file of COCO's annotations: it has no list of "
            f"{', '.join(missing)}."
        )
    for part, row_keys in _KEYS.items():
        for row in content[part]:
            _check_row(row, row_keys, f"{file}: one of its {part}")
    for category in content["categories"]:
        category["name"] = category["name"].strip()
        if not category["name"]:
            raise ValueError(f"{file}: the category {category['id']} has no name.")
    return content


def _check_row(row, keys: dict[str, type], where: str) -> None:
    """Raises a ValueError if an entry lacks what is needed of it."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object, but {row!r}.")
    for key, kind in keys.items():
        if not isinstance(row.get(key), kind) or (key in _SIDES and row[key] < 1):
            least = " of at least 1" if key in _SIDES else ""
            raise ValueError(
                f"{where} has no valid {key!r}: {str(row)[:200]}. Expected "
                f"{_KINDS[kind]}{least}."
            )
    box = row.get("bbox", [0] * 4)
    if len(box) != 4 or not all(isinstance(x, int | float) for x in box):
        raise ValueError(
            f"{where} has a box that is no four numbers: {box}. Expected left, top, "
            "width and height in pixels."
        )


def drop_root_categories(contents: dict[Path, dict]) -> None:
    """Drops categories that only stand above others, as Roboflow writes them.

    Such a one has no object in any of the files, and others have its name as their
    supercategory; its own name may be that of a class.

    Args:
        contents: from `read_coco`, by file; their categories are changed.
    """
    names = [
        {category["id"]: category["name"] for category in content["categories"]}
        for content in contents.values()
    ]
    used = {
        (a["category_id"], name.get(a["category_id"]))
        for content, name in zip(contents.values(), names)
        for a in content["annotations"]
    }
    for file, content in contents.items():
        below = {}  # ids by the name that stands above them
        for row in content["categories"]:
            if isinstance(above := row.get("supercategory"), str):
                below.setdefault(above.strip(), set()).add(row["id"])
        kept, dropped = [], []
        for row in content["categories"]:
            is_above = below.get(row["name"], set()) - {row["id"]}
            is_used = (row["id"], row["name"]) in used
            (dropped if is_above and not is_used else kept).append(row)
        content["categories"] = kept
        for row in dropped:
            logging.warning(
                "%s: the category %d, %r, is no class: it has no objects, and other "
                "categories name it as their supercategory.",
                file,
                row["id"],
                row["name"],
            )


def coco_categories(content: dict, file: Path, repairs: Repairs) -> dict[int, str]:
    """Returns the names of the classes by their ids, in the order of these.

    Raises:
        ValueError: if an id has two names, or a name two ids.
    """
    names, ids = {}, {}
    for row in sorted(content["categories"], key=lambda category: category["id"]):
        key, name = row["id"], row["name"]
        if names.get(key, name) != name:
            raise ValueError(
                f"{file}: the category id {key} stands for two names, {names[key]!r} "
                f"and {name!r}, so that it is uncertain which class its objects have. "
                + _RENUMBER.format("categories")
            )
        if ids.get(name, key) != key:
            raise ValueError(
                f"{file}: more than one category is called {name!r}: the ids "
                f"{ids[name]} and {key}. Rename one of them, or use one id for both."
            )
        if key in names:
            repairs.add("categories listed twice, taken once", f"{file}, id {key}")
        names[key], ids[name] = name, key
    return names


def _images_by_id(content: dict, file: Path, repairs: Repairs) -> dict[int, dict]:
    """Returns the entries of images by their ids; see `coco_objects` for errors."""
    images = {}
    for image in content["images"]:
        other = images.setdefault(image["id"], image)
        if other is image:
            continue
        name, other_name = _plain(image["file_name"]), _plain(other["file_name"])
        if name != other_name:
            raise ValueError(
                f"{file}: the image id {image['id']} stands for two files, "
                f"{other_name} and {name}, so that it is uncertain on which of them "
                f"its objects are. {_RENUMBER.format('images')}"
            )
        sizes = [f"{row['width']}x{row['height']}" for row in (other, image)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{file}: the image {name}, id {image['id']}, is listed twice, with "
                f"{sizes[0]} and with {sizes[1]} pixels. Remove one of the entries."
            )
        repairs.add("images listed twice, taken once", name)
    return images


def _plain(file_name: str) -> str:
    """Writes the name of a file as on any system: `./a\\b.jpg` is `a/b.jpg`."""
    if "/" not in file_name and "\\" not in file_name:  # as nearly all of COCO's are
        return file_name
    return PureWindowsPath(file_name).as_posix()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


class _Folder:
    """Finds the files of images by their names in annotations."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._present = {entry.name for entry in folder.iterdir()}
        self._names = {}

    def find(self, file_name: str) -> Path | None:
        """Returns the path of an image, also by the last part of its name alone.

        Raises:
            ValueError: if another name has led to the same file.
        """
        plain = _plain(file_name)
        # A name may have a folder in it; the others are found in one listing.
        for name in (file_name, plain, plain.rpartition("/")[2]):
            path = self.folder / name
            if name in self._present or _is_file(path):
                other = self._names.setdefault(path, plain)
                if other != plain:
                    raise ValueError(
                        f"The annotations name two images, {other} and {plain}, but "
                        f"there is only {path} for them. Put the images there that "
                        "the annotations name."
                    )
                return path
        return None


def coco_objects(
    content: dict, labels: dict[int, int], folder: Path, file: Path, repairs: Repairs
) -> Iterator[Objects]:
    """Goes through the images of a file of COCO's annotations.

    Args:
        content: from `read_coco`.
        labels: of the classes, by the categories' ids.
        folder: of the images.
        file: where it was read from.
        repairs: counts what is repaired or left out.

    Yields:
        Of each image that is there `Objects`. An image that is listed under several
        ids has the objects of all of them.

    Raises:
        ValueError: if an object is of no listed category, an image id stands for two
            files, or an entry is of another image than its file.
    """
    images, found = _images_by_id(content, file, repairs), {}
    by_image = _annotations_by_image(content, images, labels, file, repairs)
    files = _Folder(folder)
    for key, image in tqdm(
        images.items(), f"{file.stem}", unit="img", disable=None, leave=False
    ):
        path = files.find(image["file_name"])
        if path is None:
            path = folder / image["file_name"]
            repairs.add("images that are missing, left out", str(path))
            continue
        objects = _objects(image, by_image.get(key, []), labels, path, file, repairs)
        if objects is not None:
            found.setdefault(path, []).append(objects)
    for path, parts in found.items():
        kind = "images listed under several ids, with the objects of all of them"
        repairs.add(kind, str(path), len(parts) > 1)
        objects = parts[0] if len(parts) == 1 else _together(parts)
        yield without_repeats(objects, str(path), repairs)


def _together(parts: list[Objects]) -> Objects:
    columns = (np.concatenate(values) for values in zip(*(part[1:] for part in parts)))
    return Objects(parts[0].path, *columns)


def _annotations_by_image(content, images, labels, file, repairs) -> dict[int, list]:
    by_image = {}
    for annotation in content["annotations"]:
        key = annotation.get("id", "without id")
        if annotation["image_id"] not in images:
            kind = "objects of images that are not listed, left out"
            repairs.add(kind, f"{file}, id {key}")
            continue
        if annotation["category_id"] not in labels:
            raise ValueError(
                f"{file}: the object {key} has the category "
                f"{annotation['category_id']}, which the file does not list. Add it to "
                "the categories, or remove its objects."
            )
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    return by_image


def _objects(image: dict, found, labels, path: Path, file: Path, repairs: Repairs):
    """Returns the `Objects` of one entry, `None` if its image cannot be read."""
    header = image_header(path, repairs)
    if header is None:
        return None
    size = (image["width"], image["height"])
    canvas = find_canvas(header, size, f"{file} states", path, repairs)
    # Integers beyond those of floats are no coordinates.
    rows = [[x if abs(x) < 1e18 else math.nan for x in a["bbox"]] for a in found]
    xywh = np.array(rows, np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes, kept = place_boxes(corners, canvas, str(path), repairs)
    classes = np.array([labels[a["category_id"]] for a in found], np.int32)
    is_crowd = np.array([_is_crowd(a) for a in found], bool)
    areas = np.array([_area(a) for a in found], np.float64)[kept] / (size[0] * size[1])
    areas = np.where(areas > 0, areas, box_areas(boxes))
    return Objects(str(path), boxes, classes[kept], is_crowd[kept], areas)


def _is_crowd(annotation: dict) -> bool:
    """Reads the flag, which some tools write as text."""
    return str(annotation.get("iscrowd", 0)).strip().lower() in ("1", "true", "1.0")


def _area(annotation: dict) -> float:
    """Returns the area that an object has by its mask, 0 if there is none."""
    area = annotation.get("area")
    is_number = isinstance(area, int | float) and abs(area) < 1e18
    return area if is_number else 0.0
