"""Files of boxes, read and repaired: PASCAL VOC's XML and COCO's JSON.

What cannot be trained on is repaired or left out by one rule, and told of before the
training starts, with a count and the first file's name:

- corners that are swapped are put in order, and what lies beyond the image is cut off;
- a box without area or with a number that is none is left out;
- an image that is missing, listed twice, or whose annotation is no XML, is left out;
- an image without objects is kept: it is all background.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
import numpy as np
import tensorflow as tf
from absl import logging
from defusedxml import DefusedXmlException
from PIL import Image, UnidentifiedImageError


class Objects(NamedTuple):
    """An image and the objects on it.

    Attributes:
        path: of the image.
        boxes: corners as fractions of the image, float32 `[objects, 4]`.
        classes: int32 `[objects]`.
        is_crowd: bool `[objects]`: crowds and objects marked as difficult, which
            are neither learned nor counted.
        areas: as fractions of the image's, float32 `[objects]`.
    """

    path: str
    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray


class Repairs:
    """Counts what was repaired or left out."""

    def __init__(self):
        self.counts, self.examples = Counter(), {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        if count:
            self.counts[kind] += count
            self.examples.setdefault(kind, name)

    def log(self) -> None:
        for kind, count in self.counts.items():
            logging.warning("%s: %d, the first in %s", kind, count, self.examples[kind])


def repair_boxes(corners, width: float, height: float, name: str, repairs: Repairs):
    """Puts boxes in order and says which of them are any.

    Args:
        corners: `[objects, 4]` in pixels, in any order of the two corners.
        width: of the image, in pixels.
        height: likewise.
        name: of the file, for `repairs`.
        repairs: counts what is done.

    Returns:
        Boxes within the image as fractions of it, float32 `[kept, 4]`, and which of the
        rows they are, bool `[objects]`.
    """
    corners = np.asarray(corners, np.float64).reshape(-1, 4)
    is_finite = np.isfinite(corners).all(axis=1)
    ordered = np.sort(np.nan_to_num(corners).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    is_swapped = is_finite & (ordered != corners).any(axis=1)
    limits = np.array([width, height, width, height], np.float64)
    clipped = np.clip(ordered, 0, limits)
    is_beyond = is_finite & (clipped != ordered).any(axis=1)
    sizes = clipped[:, 2:] - clipped[:, :2]
    # Less than a hundredth of a pixel vanishes in float32.
    has_area = (sizes > 0.01).all(axis=1)
    repairs.add("boxes with swapped corners, put in order", name, is_swapped.sum())
    repairs.add("boxes beyond the image, cut off", name, (is_beyond & has_area).sum())
    repairs.add("boxes without area, left out", name, (is_finite & ~has_area).sum())
    repairs.add("boxes with no numbers, left out", name, (~is_finite).sum())
    kept = is_finite & has_area
    return (clipped[kept] / limits).astype(np.float32), kept


def _image_size(path: Path, repairs: Repairs) -> tuple[int, int] | None:
    """Returns (width, height), or `None` of what is no image."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        repairs.add("images that are missing, left out", str(path))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        repairs.add("images that cannot be read, left out", str(path))
    return None


def _number(node, tag: str) -> float:
    try:
        return float(node.findtext(tag, "nan"))
    except ValueError:
        return float("nan")


def read_lines(file: Path) -> list[str]:
    """Reads a list of names.

    Raises:
        ValueError: if the file is no text; the message names it.
    """
    try:
        return file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no list of names, but not even text in UTF-8."
        ) from error


def _voc_names(path: Path, split: str) -> list[str]:
    file = path / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        raise ValueError(
            f"There is no file {file}. Expected the layout of PASCAL VOC: {path}/"
            "Annotations/*.xml, JPEGImages/*, ImageSets/Main/train.txt and val.txt."
        )
    return [line.split()[0] for line in read_lines(file) if line.split()]


def _voc_root(file: Path, repairs: Repairs):
    """Parses an annotation, or returns `None`; entities in it are refused."""
    try:
        return defusedxml.ElementTree.parse(file).getroot()
    except FileNotFoundError:
        repairs.add("annotations that are missing, images left out", str(file))
    except (ParseError, DefusedXmlException, OSError, LookupError, ValueError):
        # The last two of encodings that are unknown, or that the parser cannot read.
        repairs.add("annotations that are no XML, images left out", str(file))
    return None


def voc_objects(path: Path, split: str, repairs: Repairs) -> Iterator[tuple]:
    """Reads one split of a data set in PASCAL VOC's layout.

    Args:
        path: the folder of Annotations, JPEGImages and ImageSets.
        split: `"train"` or `"val"`.
        repairs: counts what is repaired or left out.

    Yields:
        Of each image `Objects`, whose classes are the names that the file has.

    Raises:
        ValueError: if there is no such list.
    """
    seen = set()
    for name in _voc_names(path, split):
        if name in seen:
            repairs.add("images listed twice, taken once", name)
            continue
        seen.add(name)
        file = path / "Annotations" / f"{name}.xml"
        root = _voc_root(file, repairs)
        if root is None:
            continue
        image = path / "JPEGImages" / f"{name}.jpg"
        if not image.exists():
            image = image.with_name(Path(root.findtext("filename") or image.name).name)
        size = _image_size(image, repairs)
        if size is None:
            continue
        nodes = root.findall("object")
        corners = [
            [_number(node, f"bndbox/{tag}") for tag in ("xmin", "ymin", "xmax", "ymax")]
            for node in nodes
        ]
        boxes, kept = repair_boxes(corners, *size, str(file), repairs)
        names = np.array([node.findtext("name", "").strip() for node in nodes], object)
        is_named = names[kept] != ""
        unnamed = np.count_nonzero(~is_named)
        repairs.add("objects without a name, left out", str(file), unnamed)
        boxes, kept = boxes[is_named], np.flatnonzero(kept)[is_named]
        difficult = np.array([_number(node, "difficult") == 1 for node in nodes], bool)
        yield Objects(str(image), boxes, names[kept], difficult[kept], _areas(boxes))


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def read_coco(file: Path) -> dict:
    """Reads a file of COCO's annotations.

    Raises:
        ValueError: if it is no such file.
    """
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    parts = ("images", "annotations", "categories")
    keys = content if isinstance(content, dict) else {}
    missing = [part for part in parts if not isinstance(keys.get(part), list)]
    if missing:
        raise ValueError(
            f"{file} is no file of COCO's annotations: it has no list of "
            f"{', '.join(missing)}."
        )
    for part, row_keys in _COCO_KEYS.items():
        for row in content[part]:
            _check_coco_row(row, row_keys, f"{file}: one of its {part}")
    names = Counter(category["name"] for category in content["categories"])
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"{file}: more than one category is called {twice[0]!r}.")
    return content


_COCO_KEYS = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


_SIDES = ("width", "height")


def _check_coco_row(row, keys: dict[str, type], where: str) -> None:
    """Raises a ValueError if an entry lacks what is needed of it."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object, but {row!r}.")
    for key, kind in keys.items():
        if not isinstance(row.get(key), kind) or (key in _SIDES and row[key] < 1):
            raise ValueError(f"{where} has no valid {key!r}: {str(row)[:200]}.")
    box = row.get("bbox", [0] * 4)
    if len(box) != 4 or not all(isinstance(x, int | float) for x in box):
        raise ValueError(f"{where} has a box that is no four numbers: {box}.")


def coco_categories(content: dict) -> dict[int, str]:
    """Returns the names of the classes by their ids, in the order of these."""
    rows = sorted(content["categories"], key=lambda category: category["id"])
    return {category["id"]: category["name"] for category in rows}


def coco_objects(
    content: dict, folder: Path, file: Path, repairs: Repairs
) -> Iterator[Objects]:
    """Goes through the images of a file of COCO's annotations.

    Args:
        content: from `read_coco`.
        folder: of the images.
        file: where it was read from.
        repairs: counts what is repaired or left out.

    Yields:
        Of each image that is there `Objects`, whose classes count from 0 in the order
        of the categories' ids.

    Raises:
        ValueError: if an object is of no listed category.
    """
    labels = {key: label for label, key in enumerate(coco_categories(content))}
    by_image, ids = {}, set()
    images = {image["id"] for image in content["images"]}
    for annotation in content["annotations"]:
        key = annotation.get("id")
        if key is not None and key in ids:
            repairs.add("objects listed twice, taken once", f"{file}, id {key}")
            continue
        ids.add(key)
        if annotation["image_id"] not in images:
            kind = "objects of images that are not listed, left out"
            repairs.add(kind, f"{file}, id {key}")
            continue
        if annotation["category_id"] not in labels:
            raise ValueError(
                f"{file}: the object {key} has the category "
                f"{annotation['category_id']}, which the file does not list."
            )
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    present, seen = {entry.name for entry in folder.iterdir()}, set()
    for image in content["images"]:
        if image["id"] in seen:
            repairs.add("images listed twice, taken once", image["file_name"])
            continue
        seen.add(image["id"])
        name, file_path = image["file_name"], folder / image["file_name"]
        # A name may have a folder in it; the others are found in one listing.
        if name not in present and not file_path.is_file():
            repairs.add("images that are missing, left out", str(file_path))
            continue
        yield _coco_image(image, by_image.get(image["id"], []), labels, folder, repairs)


def _coco_image(image: dict, found: list, labels: dict, folder: Path, repairs: Repairs):
    width, height = image["width"], image["height"]
    xywh = np.array([a["bbox"] for a in found], np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    path = str(folder / image["file_name"])
    boxes, kept = repair_boxes(corners, width, height, path, repairs)
    classes = np.array([labels[a["category_id"]] for a in found], np.int32)
    is_crowd = np.array([bool(a.get("iscrowd")) for a in found], bool)
    areas = np.array([a.get("area") for a in found], np.float64) / (width * height)
    areas = np.where(np.isfinite(areas[kept]), areas[kept], _areas(boxes))
    return Objects(path, boxes, classes[kept], is_crowd[kept], areas)


def columns(images: Sequence[Objects]) -> dict[str, tf.RaggedTensor]:
    """Lays objects out in columns, of each image as many as it has.

    Args:
        images: with classes as numbers.

    Returns:
        `boxes` `[images, (objects), 4]`, `classes` int32 `[images, (objects)]`,
        `is_crowd` bool and `areas` float32 `[images, (objects)]`.
    """
    lengths = [len(image.boxes) for image in images]

    def column(name: str, dtype, *shape: int):
        rows = [np.asarray(getattr(image, name), dtype) for image in images]
        values = np.concatenate([np.zeros((0, *shape), dtype), *rows])
        return tf.RaggedTensor.from_row_lengths(values, lengths)

    return {
        "boxes": column("boxes", np.float32, 4),
        "classes": column("classes", np.int32),
        "is_crowd": column("is_crowd", bool),
        "areas": column("areas", np.float32),
    }
