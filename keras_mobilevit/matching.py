"""Chooses the anchors that learn each object, and those that learn the background.

Source: section 2.2 of SSD, https://arxiv.org/abs/1512.02325. All images of a batch are
padded to the same number of objects, so that shapes are static.
"""

import numpy as np
from keras import ops

from keras_mobilevit import boxes as box_math
from keras_mobilevit.backend import Tensor

POSITIVE_IOU = 0.5
NEGATIVES_PER_POSITIVE = 3


def match(boxes: Tensor, is_object: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Matches each anchor with the object that it overlaps most.

    An anchor is positive if their intersection over union is at least 0.5. The best
    anchor of an object is always positive for it, so that every object has an anchor.
    If several objects have the same best anchor, the last object is matched.

    Boxes are corners `[batch, objects, 4]`, anchors centers and sizes `[anchors, 4]`.
    Returns the index of each anchor's object, int32 `[batch, anchors]`, and whether the
    anchor is positive. Ignore the index if it is not.
    """
    corners = box_math.cxcywh_to_xyxy(anchors)
    overlaps = box_math.iou(boxes[:, :, None], corners)  # [batch, objects, anchors]
    overlaps = ops.where(is_object[..., None], overlaps, -1.0)
    matched_index = ops.cast(ops.argmax(overlaps, axis=1), "int32")  # [batch, anchors]
    is_positive = ops.max(overlaps, axis=1) >= POSITIVE_IOU

    best = ops.argmax(overlaps, axis=2)  # [batch, objects]
    is_best = ops.one_hot(best, anchors.shape[0], dtype="int32")
    # Number, from 1, of the last object whose best anchor this is; 0 for none.
    numbers = ops.cumsum(ops.ones_like(best, dtype="int32"), axis=1)
    numbers *= ops.cast(is_object, "int32")
    forced = ops.max(is_best * numbers[..., None], axis=1)  # [batch, anchors]
    matched_index = ops.where(forced > 0, forced - 1, matched_index)
    return matched_index, is_positive | (forced > 0)


def hard_negatives(losses: Tensor, is_positive: Tensor) -> Tensor:
    """Chooses the background anchors with the highest losses, bool `[batch, anchors]`.

    For each positive anchor of an image, three background anchors are kept, and any
    that tie with the last one.
    """
    losses = ops.where(is_positive, -1.0, losses)
    ranked = -ops.sort(-losses, axis=1)  # the highest first
    positives = ops.sum(ops.cast(is_positive, "int32"), axis=1)
    count = NEGATIVES_PER_POSITIVE * positives
    last = ops.clip(count, 1, losses.shape[1]) - 1
    threshold = ops.take_along_axis(ranked, last[:, None], axis=1)  # [batch, 1]
    return (losses >= threshold) & (losses >= 0) & (count > 0)[:, None]


def anchor_targets(
    boxes: Tensor, labels: Tensor, anchors: np.ndarray
) -> dict[str, Tensor]:
    """Returns what each anchor learns from the objects of its image.

    Args:
        boxes: `[batch, objects, 4]`, corners `(x1, y1, x2, y2)` as fractions of the
            image.
        labels: `[batch, objects]`, the class of each object; -1 for padding. Boxes
            without area count as padding.
        anchors: `[anchors, 4]`, as `keras_mobilevit.anchor_boxes` returns them.

    Returns:
        A dict: `offsets` `[batch, anchors, 4]`, the box deltas, which are 0 for the
        background; `labels`, int32 `[batch, anchors]`: 0 for the background, else the
        object's class plus 1.
    """
    anchors = ops.convert_to_tensor(anchors)
    labels = ops.cast(labels, "int32")
    # A box without area is learned by no anchor: its logarithm would be infinite.
    is_object = (labels >= 0) & (box_math.area(boxes) > 0)
    matched_index, is_positive = match(boxes, is_object, anchors)
    boxes = ops.take_along_axis(boxes, matched_index[..., None], axis=1)
    labels = ops.take_along_axis(labels, matched_index, axis=1)
    # [batch, anchors, 4]. An anchor without an object may have matched padding of size
    # zero, which has no logarithm.
    boxes = ops.where(is_positive[..., None], boxes, box_math.cxcywh_to_xyxy(anchors))
    return {
        "offsets": box_math.encode(boxes, anchors),
        "labels": ops.where(is_positive, labels + 1, 0),
    }
