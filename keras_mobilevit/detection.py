"""From a detector's outputs to the objects on an image."""

import functools

from keras import ops

from keras_mobilevit import boxes as box_math

SCORE_THRESHOLD = 0.01  # for COCO's mean average precision; higher for looking at
IOU_THRESHOLD = 0.5
CANDIDATES = 400  # of each class
MAX_DETECTIONS = 200  # of an image


def decode_outputs(outputs: dict, anchors):
    """Turns offsets and logits into boxes and the classes' probabilities.

    Args:
        outputs: of a model made by `SSDLite`: `offsets` `[batch, anchors, 4]` and
            `logits` `[batch, anchors, classes + 1]`.
        anchors: `[anchors, 4]`, from `anchor_boxes`.

    Returns:
        Boxes `[batch, anchors, 4]`, corners within the image, and scores
        `[batch, anchors, classes]`, without the background's.
    """
    # ml-cvnets clips after the suppression. The overlaps differ only for boxes that
    # reach beyond the image; converted models clip here too, and agree with this.
    boxes = box_math.decode(outputs["offsets"], ops.convert_to_tensor(anchors))
    return box_math.clip(boxes), ops.softmax(outputs["logits"], axis=-1)[..., 1:]


def non_max_suppression(
    boxes,
    scores,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
    candidates: int = CANDIDATES,
    max_detections: int = MAX_DETECTIONS,
) -> dict:
    """Keeps the best of boxes that overlap, class by class.

    The best box of all is taken, then those of its class that overlap it are dropped,
    and so on: shapes are static, so that this compiles with XLA. A box without area,
    as clipping leaves of one beyond the image, is none.

    Args:
        boxes: corners `[batch, anchors, 4]`.
        scores: `[batch, anchors, classes]`.
        score_threshold: boxes must score more.
        iou_threshold: a box that overlaps a better one of its class by more is dropped.
        candidates: the best so many of each class are looked at.
        max_detections: the best so many of an image are returned.

    Returns:
        A dict: `boxes` `[batch, max_detections, 4]`, `scores`
        `[batch, max_detections]`, the best first, `classes` int32
        `[batch, max_detections]`. Places without a detection have the score 0, the
        class -1 and a box of zeros.
    """
    classes = scores.shape[-1]
    candidates = _smaller(candidates, ops.shape(scores)[1])
    scores = ops.where((box_math.area(boxes) > 0)[..., None], scores, 0.0)
    # [batch, classes, candidates] and [batch, classes, candidates, 4]
    scores, indices = ops.top_k(ops.transpose(scores, (0, 2, 1)), candidates)
    scores = ops.where(scores > score_threshold, scores, 0.0)
    flat = ops.reshape(indices, (-1, classes * candidates, 1))
    boxes = ops.take_along_axis(boxes, flat, axis=1)
    boxes = ops.reshape(boxes, (-1, classes, candidates, 4))
    batch = ops.shape(scores)[0]

    def is_left(step, scores, found):
        return ops.any(scores > 0)

    body = functools.partial(_take_best, boxes, iou_threshold)
    found = ops.zeros((batch, max_detections, 6))  # box, score, class
    found -= ops.one_hot(5, 6)  # the class of what is not found: -1
    _, _, found = ops.while_loop(
        is_left, body, (0, scores, found), maximum_iterations=max_detections
    )
    return {
        "boxes": found[..., :4],
        "scores": found[..., 4],
        "classes": ops.cast(found[..., 5], "int32"),
    }


def _smaller(one: int, other):
    """Returns the smaller of two numbers; one may be known only at run time."""
    return min(one, other) if isinstance(other, int) else ops.minimum(one, other)


def _take_best(boxes, iou_threshold: float, step, scores, found):
    """Moves each image's best candidate to what is found, and drops its rivals."""
    classes = scores.shape[1]
    best = ops.max(scores, axis=-1)  # [batch, classes]
    label = ops.argmax(best, axis=-1)[:, None]  # [batch, 1]
    row = ops.take_along_axis(scores, label[..., None], axis=1)[:, 0]  # [batch, c]
    row_boxes = ops.take_along_axis(boxes, label[..., None, None], axis=1)[:, 0]
    place = ops.argmax(row, axis=-1)[:, None]  # [batch, 1]
    score = ops.take_along_axis(row, place, axis=1)  # [batch, 1]
    box = ops.take_along_axis(row_boxes, place[..., None], axis=1)  # [batch, 1, 4]
    # The box itself too, whose overlap may be 0 / 0.
    is_dropped = box_math.iou(row_boxes, box) > iou_threshold
    is_dropped |= ops.arange(ops.shape(row)[-1]) == place
    is_class = ops.arange(classes) == label  # [batch, classes]
    scores = ops.where(is_class[..., None] & is_dropped[:, None], 0.0, scores)
    new = ops.concatenate(
        [box[:, 0], score, ops.cast(label, found.dtype)], axis=-1
    )  # [batch, 6]
    is_place = (ops.arange(found.shape[1]) == step)[:, None] & (score > 0)[..., None]
    return step + 1, scores, ops.where(is_place, new[:, None], found)


def detect(outputs: dict, anchors, **options) -> dict:
    """Finds the objects of images.

    Args:
        outputs: of a model made by `SSDLite`, for a batch of images.
        anchors: `[anchors, 4]`, `anchor_boxes(height, width)` of these images.
        **options: of `non_max_suppression`: `score_threshold`, `iou_threshold`,
            `candidates`, `max_detections`.

    Returns:
        The dict of `non_max_suppression`: `boxes` (corners as fractions of the image),
        `scores` and `classes`, counted from 0 without the background.

    Example:
    >>> outputs = model.predict(images)  # [1, 320, 320, 3]
    >>> found = detect(outputs, anchor_boxes(320, 320), score_threshold=0.3)
    >>> found["classes"][0, :2], found["boxes"][0, 0]
    """
    boxes, scores = decode_outputs(outputs, anchors)
    return non_max_suppression(boxes, scores, **options)
