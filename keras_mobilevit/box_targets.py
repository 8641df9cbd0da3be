"""Makes the targets of a detector from the boxes of any data set."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_mobilevit.argument_checks import check_positive

# A box that crosses the image's edge by more than the image's side is in pixels, or in
# another format.
MOST_OUTSIDE = 1.0
FORMATS = (
    "xyxy",
    "yxyx",
    "xywh",
    "center_xywh",
    "center_yxhw",
    "rel_xyxy",
    "rel_yxyx",
    "rel_xywh",
    "rel_center_xywh",
)


def _check_boxes(
    boxes: np.ndarray, labels: np.ndarray, image: int, classes: int | None
) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            "Each image has boxes [objects, 4] and labels [objects]. Received for "
            f"image {image}: boxes {boxes.shape} and labels {labels.shape}."
        )
    if not np.isfinite(boxes).all():
        raise ValueError(f"Image {image} has a box that is not finite.")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"Image {image} has a label below 0: {labels.min()}.")
    if len(labels) and classes is not None and labels.max() >= classes:
        raise ValueError(
            f"Image {image} has the label {labels.max()}. Labels of {classes} classes "
            f"are 0 to {classes - 1}, without the background."
        )


def _as_integers(labels: Sequence, image: int) -> np.ndarray:
    found = np.asarray(labels)
    if len(found) and found.dtype.kind not in "iu":
        raise ValueError(
            f"Labels are integers from 0. Received for image {image}: {labels!r}."
        )
    return found.astype(np.int32)


def _as_fractions(boxes: np.ndarray, source: str, size: tuple) -> np.ndarray:
    """Converts the boxes of an image `[objects, 4]` to corners as fractions of it."""
    height, width = size
    converted = keras.utils.bounding_boxes.convert_format(
        boxes[None], source, "rel_xyxy", height=height, width=width
    )
    return keras.ops.convert_to_numpy(converted)[0]


def _clip_corners(corners: np.ndarray, source: str, image: int) -> np.ndarray:
    """Clips boxes to the image; refuses those that then have no area.

    Such a box is outside, or not in the format that the caller names.
    """
    clipped = np.clip(corners, 0, 1)
    has_area = (clipped[:, 2:] > clipped[:, :2]).all(1)
    is_near = (np.abs(corners - 0.5) <= MOST_OUTSIDE + 0.5).all(1)
    wrong = np.flatnonzero(~(has_area & is_near))
    if len(wrong):
        raise ValueError(
            f"Box {wrong[0]} of image {image} is {corners[wrong[0]].round(3).tolist()} "
            "as fractions of the image, which has no area inside of it or lies far "
            f"outside. Is {source!r} the format of the boxes, and are `image_sizes` "
            "(height, width)?"
        )
    return clipped


def detection_targets(
    boxes: Sequence,
    labels: Sequence,
    *,
    bounding_box_format: str,
    image_sizes: tuple[int, int] | Sequence | None = None,
    max_objects: int | None = None,
    classes: int | None = None,
) -> dict[str, np.ndarray]:
    """Makes the targets of a `keras_mobilevit.Detector` from lists of boxes.

    Args:
        boxes: for each image, its boxes `[objects, 4]`.
        labels: for each image, the classes of its boxes `[objects]`, from 0. PyTorch's
            data sets often count the background as 0: subtract 1 then.
        bounding_box_format: one of the formats of
            `keras.utils.bounding_boxes.convert_format`: `"xyxy"` (torchvision, VOC),
            `"yxyx"` (KerasHub), `"xywh"` (COCO), `"rel_yxyx"` (TensorFlow Datasets),
            `"rel_center_xywh"` (YOLO), and others.
        image_sizes: `(height, width)` of all images, or one for each. Needed unless the
            format begins with `"rel_"`.
        max_objects: number of objects to which all images are padded; by default, that
            of the image with the most. With a fixed number, all batches have one
            shape.
        classes: number of classes of the detector; labels are then checked to be below.

    Returns:
        A dict: `boxes`, float32 `[images, objects, 4]`, corners `(x1, y1, x2, y2)` as
        fractions of the image, clipped to it, and `labels`, int32 `[images, objects]`,
        with -1 for padding.

    Raises:
        ValueError: if boxes and labels do not belong together, if a box is not in the
            format, or if an image has more than `max_objects`; the message names the
            image.

    Example:
    >>> targets = keras_mobilevit.detection_targets(
    ...     boxes=[[[10, 20, 110, 220]], []],
    ...     labels=[[2], []],
    ...     bounding_box_format="xyxy",
    ...     image_sizes=(480, 640),
    ... )
    >>> targets["labels"].tolist()
    [[2], [-1]]
    """
    source = str(bounding_box_format).lower()
    if source not in FORMATS:
        raise ValueError(
            f"`bounding_box_format` must be one of {', '.join(FORMATS)}. "
            f"Received: bounding_box_format={bounding_box_format!r}."
        )
    if len(boxes) != len(labels):
        raise ValueError(
            f"Boxes of {len(boxes)} images, but labels of {len(labels)} were given."
        )
    if max_objects is not None:
        check_positive(max_objects=max_objects)
    sizes = _image_sizes(image_sizes, len(boxes), source)
    rows = []
    for image, (own, own_labels, size) in enumerate(zip(boxes, labels, sizes)):
        corners = np.asarray(own, np.float32) if len(own) else np.zeros((0, 4))
        own_labels = _as_integers(own_labels, image)
        _check_boxes(corners, own_labels, image, classes)
        if len(own):
            corners = _as_fractions(corners, source, size)
            corners = _clip_corners(corners, source, image)
        rows.append((corners, own_labels))
    return _pad(rows, max_objects)


def _image_sizes(
    image_sizes: tuple[int, int] | Sequence | None, images: int, source: str
) -> list[tuple]:
    """Returns the (height, width) of each image; any if it is not needed."""
    if image_sizes is None:
        if not source.startswith("rel_"):
            raise ValueError(
                f"Boxes in the format {source!r} are in pixels, so `image_sizes` must "
                "be (height, width) of all images, or one for each."
            )
        return [(1, 1)] * images
    sizes = np.asarray(image_sizes)
    is_size = sizes.shape in ((2,), (images, 2)) and sizes.dtype.kind in "iuf"
    if not is_size or not (sizes > 0).all():
        raise ValueError(
            "`image_sizes` must be (height, width) of all images, or one for each of "
            f"{images}, in pixels. Received: image_sizes={image_sizes!r}."
        )
    return [tuple(row) for row in np.broadcast_to(sizes, (images, 2)).tolist()]


def _pad(rows: list[tuple], max_objects: int | None) -> dict[str, np.ndarray]:
    """Stacks the boxes and labels of images, padded to the same number of objects."""
    most = max((len(labels) for _, labels in rows), default=0)
    count = most if max_objects is None else max_objects
    if most > count:
        image = next(i for i, (_, x) in enumerate(rows) if len(x) > count)
        raise ValueError(
            f"Image {image} has {len(rows[image][1])} objects, more than "
            f"`max_objects={max_objects}`."
        )
    boxes = np.zeros((len(rows), max(count, 1), 4), np.float32)
    labels = np.full(boxes.shape[:2], -1, np.int32)
    for image, (own, own_labels) in enumerate(rows):
        boxes[image, : len(own)] = own
        labels[image, : len(own)] = own_labels
    return {"boxes": boxes, "labels": labels}
