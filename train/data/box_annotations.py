"""Images with boxes in memory, and how invalid boxes are fixed or skipped.

An example has, beside `path` or `encoded` and `id`, the columns of `Objects`. Readers
fix or skip invalid annotations before the training starts, and log the number of each
kind with its first file. An image without objects is kept: it is all background.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from keras_mobilevit.image_files import Header, read_header
from train.data.annotation_report import AnnotationReport
from train.data.geometry import Canvas
from train.data.plan import MAX_OBJECTS
from train.data.source import (
    SPLITS,
    Source,
    image_columns,
    indexed_source,
    warn_of_missing_classes,
    warn_of_similar_names,
)

TINY = (
    "boxes less than a pixel wide or high, kept; if they are fractions of the image, "
    "write pixels"
)


class Objects(NamedTuple):
    """The objects of the image `path`."""

    path: str
    boxes: np.ndarray  # corners as fractions of the upright image, float32 [objects, 4]
    classes: np.ndarray  # int32 [objects]
    # Crowds and difficult objects, neither learned nor counted, bool [objects].
    is_crowd: np.ndarray
    # Fractions of the image's area, float32 [objects]; infinite for difficult objects,
    # see `train.tasks.detection.average_precision.average_precision`.
    areas: np.ndarray


def object_source(
    name: str,
    class_names: Sequence[str],
    splits: Mapping[str, Sequence[Objects]],
    images: Mapping[str, Mapping[str, Sequence]],
) -> Source:
    """Makes a source of the objects of each image, by split.

    `images` has by split the columns `id` and `path` or `encoded`.
    """
    check_objects(name, splits)
    train, validation = (splits[split] for split in SPLITS)
    if not _has_learnable(validation):
        logging.warning(
            "%s: all validation objects are crowds or marked as difficult, which do "
            "not count. The average precision will be -1.",
            name,
        )
    learned = {label for image in train for label in image.classes[~image.is_crowd]}
    problem = "have no training object that could be learned"
    warn_of_missing_classes(name, class_names, learned, problem)
    warn_of_similar_names(class_names, name)
    columns = {
        split: {**images[split], **object_columns(objects)}
        for split, objects in splits.items()
    }
    return indexed_source(name, class_names, columns)


def object_file_source(
    name: str,
    class_names: Sequence[str],
    splits: Mapping[str, Sequence[Objects]],
    cache: bool,
) -> Source:
    """Makes a source of objects whose images are files; see `object_source`."""
    paths = {
        split: [image.path for image in objects] for split, objects in splits.items()
    }
    images = image_columns(name, paths, cache)
    return object_source(name, class_names, splits, images)


def check_objects(name: str, splits: Mapping[str, Sequence[Objects]]) -> None:
    """Raises a ValueError if a split has no boxes, or there is nothing to learn."""
    for split, objects in splits.items():
        if not any(len(image.boxes) for image in objects):
            raise ValueError(
                f"{name} has {len(objects)} {split} images, and no box on any of them."
            )
    if not _has_learnable(splits["train"]):
        raise ValueError(
            f"{name}: all training objects are crowds or marked as difficult, which "
            "are not learned. Expected at least one object that is neither."
        )


def refuse_fractions(
    name: str, splits: Mapping[str, Sequence[Objects]], report: AnnotationReport
) -> None:
    """Raises a ValueError if all boxes are smaller than a pixel."""
    total = sum(len(image.boxes) for objects in splits.values() for image in objects)
    if 0 < total <= report.counts[TINY]:
        raise ValueError(
            f"{name}: all {total} boxes are less than a pixel wide or high. Are they "
            "fractions of the image? Expected pixels."
        )


def _has_learnable(images: Sequence[Objects]) -> bool:
    return any((~image.is_crowd).any() for image in images)


def fix_boxes(
    corners, width: float, height: float, name: str, report: AnnotationReport
) -> tuple[np.ndarray, np.ndarray]:
    """Puts corners in order, clips boxes to the image, and drops invalid boxes.

    The `corners` `[objects, 4]`, `width` and `height` are in pixels. Returns the valid
    boxes as fractions of the image, float32 `[kept, 4]`, and which objects they belong
    to, bool `[objects]`.
    """
    corners = np.asarray(corners, np.float64).reshape(-1, 4)
    is_finite = np.isfinite(corners).all(axis=1)
    finite = np.where(np.isfinite(corners), corners, 0)
    ordered = np.sort(finite.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    is_swapped = is_finite & (ordered != corners).any(axis=1)
    limits = np.array([width, height, width, height], np.float64)
    clipped = np.clip(ordered, 0, limits)
    is_clipped = is_finite & (clipped != ordered).any(axis=1)
    sizes = clipped[:, 2:] - clipped[:, :2]
    # Less than a hundredth of a pixel vanishes in float32.
    has_area = (sizes > 0.01).all(axis=1)
    kept = is_finite & has_area
    for kind, is_case in (
        ("boxes with swapped corners, put in order", is_swapped),
        ("boxes beyond the image, clipped", is_clipped & has_area),
        ("boxes without area, skipped", is_finite & ~has_area),
        ("boxes with coordinates that are not numbers, skipped", ~is_finite),
        (TINY, kept & (sizes < 1).any(axis=1)),
    ):
        report.add(kind, name, int(is_case.sum()))
    return (clipped[kept] / limits).astype(np.float32), kept


def place_boxes(
    corners, canvas: Canvas, name: str, report: AnnotationReport
) -> tuple[np.ndarray, np.ndarray]:
    """Fixes boxes on the picture that they were drawn on, and turns them upright.

    Arguments and results are those of `fix_boxes`, with `canvas` for the size.
    If other pictures are possible, a box that does not lie on this one is refused.
    """
    corners = np.asarray(corners, np.float64).reshape(-1, 4)
    if not canvas.is_certain:
        centers = (corners[:, :2] + corners[:, 2:]) / 2
        is_outside = (centers > canvas.size).any(axis=1)  # False for NaN
        if is_outside.any():
            width, height = canvas.size
            raise ValueError(
                f"{name}: the box {corners[is_outside][0].tolist()} does not lie on a "
                f"picture of {width}x{height} pixels. This is the size that the "
                "annotation states or, if it states none, the size of the image as "
                "shown. The image file has another size or is turned by EXIF, so the "
                "position of the box is uncertain. Correct the size in the annotation."
            )
    boxes, kept = fix_boxes(corners, *canvas.size, name, report)
    return canvas.turn_boxes(boxes), kept


def image_header(path: Path, report: AnnotationReport) -> Header | None:
    """Reads size and orientation of an image; `None` if it is missing or unreadable."""
    try:
        return read_header(path)
    except FileNotFoundError:
        report.add("images that are missing, skipped", str(path))
    except ValueError as error:
        report.add("images that cannot be read, skipped", str(error))
    return None


def is_set(flag: object) -> bool:
    """Reads a flag, which some tools write as a word or as a float."""
    return str(flag).strip().lower() in ("1", "true", "1.0")


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas of corners `[objects, 4]`."""
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def drop_repeats(objects: Objects, name: str, report: AnnotationReport) -> Objects:
    """Drops objects that are listed again with the same class and box."""
    first: dict[tuple, int] = {}
    keys = zip(objects.classes, objects.is_crowd, map(tuple, objects.boxes.tolist()))
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    repeats = len(objects.boxes) - len(first)
    report.add("objects listed twice, taken once", name, repeats)
    kept = np.array(list(first.values()), int)
    return Objects(objects.path, *(values[kept] for values in objects[1:]))


def has_few_objects(count: int, path: str, report: AnnotationReport) -> bool:
    """Tells whether an image has at most `MAX_OBJECTS`, and counts it if not."""
    kind = f"images with more than {MAX_OBJECTS:,} objects, skipped: divide them"
    report.add(kind, path, int(count > MAX_OBJECTS))
    return count <= MAX_OBJECTS


def object_columns(images: Sequence[Objects]) -> dict[str, tf.RaggedTensor]:
    """Arranges objects in ragged columns `[images, (objects), ...]`."""
    lengths = [len(image.boxes) for image in images]

    def column(name: str, dtype, *shape: int) -> tf.RaggedTensor:
        rows = [np.asarray(getattr(image, name), dtype) for image in images]
        values = np.concatenate([np.zeros((0, *shape), dtype), *rows])
        return tf.RaggedTensor.from_row_lengths(values, lengths)

    return {
        "boxes": column("boxes", np.float32, 4),
        "classes": column("classes", np.int32),
        "is_crowd": column("is_crowd", bool),
        "areas": column("areas", np.float32),
    }
