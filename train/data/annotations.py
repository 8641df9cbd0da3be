"""Images with boxes in memory, and the one rule by which boxes are repaired.

What cannot be trained on is repaired or left out, and told of before the training
starts, with a count and the first file's name:

- corners that are swapped are put in order, and what lies beyond the image is cut off;
- a box without area or with a number that is none is left out;
- an object that is listed twice, with the same class and box, is taken once;
- an image that is missing, listed twice, or whose annotation is no XML, is left out;
- an image without objects is kept: it is all background.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mobilevit.image_files import Header, read_header
from train.data.geometry import Canvas
from train.data.repairs import Repairs

TINY = (
    "boxes less than a pixel wide or high, kept; if they are fractions of the image, "
    "write pixels"
)


class Objects(NamedTuple):
    """An image and the objects on it.

    Attributes:
        path: of the image.
        boxes: corners as fractions of the upright image, float32 `[objects, 4]`.
        classes: int32 `[objects]`.
        is_crowd: bool `[objects]`: crowds and objects marked as difficult, which
            are neither learned nor counted.
        areas: as fractions of the image's, float32 `[objects]`; infinite for what is
            difficult, see `train.tasks.detection.average_precision.average_precision`.
    """

    path: str
    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray


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
    known = np.where(np.isfinite(corners), corners, 0)
    ordered = np.sort(known.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
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
    repairs.add(
        "boxes with coordinates that are not numbers, left out",
        name,
        (~is_finite).sum(),
    )
    kept = is_finite & has_area
    is_tiny = kept & (sizes < 1).any(axis=1)
    repairs.add(TINY, name, is_tiny.sum())
    return (clipped[kept] / limits).astype(np.float32), kept


def place_boxes(corners, canvas: Canvas, name: str, repairs: Repairs):
    """Repairs boxes where they were drawn, and turns them to the upright picture.

    Args:
        corners: as for `repair_boxes`.
        canvas: what they were drawn on.
        name: of the file, for `repairs` and errors.
        repairs: counts what is done.

    Returns:
        As `repair_boxes`.

    Raises:
        ValueError: if that picture is not certain, and a box does not lie on it.
    """
    corners = np.asarray(corners, np.float64).reshape(-1, 4)
    if not canvas.is_certain:
        centers = (corners[:, :2] + corners[:, 2:]) / 2
        if (centers > canvas.size).any():  # false for what is no number
            box = corners[(centers > canvas.size).any(axis=1)][0].tolist()
            width, height = canvas.size
            raise ValueError(
                f"{name}: the box {box} does not lie on a picture of {width}x{height} "
                "pixels, which the annotation states or its picture has as shown. "
                "The picture's file has another size or is turned by EXIF, so that the "
                "place of the box is uncertain. Correct the size in the annotation."
            )
    boxes, kept = repair_boxes(corners, *canvas.size, name, repairs)
    return canvas.turn_boxes(boxes), kept


def image_header(path: Path, repairs: Repairs) -> Header | None:
    """Reads size and orientation of an image, or returns `None` of what is none."""
    try:
        return read_header(path)
    except FileNotFoundError:
        repairs.add("images that are missing, left out", str(path))
    except ValueError as error:
        repairs.add("images that cannot be read, left out", str(error))
    return None


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas of corners `[objects, 4]`."""
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def without_repeats(objects: Objects, name: str, repairs: Repairs) -> Objects:
    """Takes an object once that is listed again with the same class and box."""
    keys = zip(objects.classes, objects.is_crowd, map(tuple, objects.boxes.tolist()))
    first = list(
        {key: index for index, key in reversed(list(enumerate(keys)))}.values()
    )
    if len(first) == len(objects.boxes):
        return objects
    count = len(objects.boxes) - len(first)
    repairs.add("objects listed twice, taken once", name, count)
    first = sorted(first)
    return Objects(objects.path, *(values[first] for values in objects[1:]))


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
