"""Converts a detector's outputs to the objects on an image."""

import functools
import numbers
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mobilevit import boxes as box_math
from keras_mobilevit.anchors import anchors_of_count
from keras_mobilevit.argument_checks import check_positive, is_positive
from keras_mobilevit.backend import Tensor

SCORE_THRESHOLD = 0.01  # for COCO's average precision; use a higher one for viewing
IOU_THRESHOLD = 0.5
PRE_NMS_TOP_K = 400  # boxes of each class
MAX_DETECTIONS = 200  # of an image


def decode_outputs(
    outputs: dict[str, Tensor], anchors: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Converts the outputs of `SSDLite` to boxes and probabilities of the classes.

    Returns boxes `[batch, anchors, 4]`, clipped to the image, and scores
    `[batch, anchors, classes]`, without the background.
    """
    # ml-cvnets clips after the suppression, which changes only the overlaps of boxes
    # that cross the image's edge. Converted models clip here too.
    boxes = box_math.decode(outputs["offsets"], ops.convert_to_tensor(anchors))
    return box_math.clip(boxes), ops.softmax(outputs["logits"], axis=-1)[..., 1:]


def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
    pre_nms_top_k: int = PRE_NMS_TOP_K,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, Tensor]:
    """Keeps the best of overlapping boxes, separately for each class; see `detect`.

    Each step keeps the best box of all classes and drops the boxes of its class that
    overlap it. All shapes are static, so the function compiles with XLA. Boxes without
    area are dropped; clipping makes them of boxes outside the image.

    The boxes are corners `[batch, anchors, 4]`, the scores `[batch, anchors, classes]`.
    """
    classes = scores.shape[-1]
    anchors = ops.shape(scores)[1]  # may be known only at run time
    minimum = min if isinstance(anchors, int) else ops.minimum
    top_k = minimum(pre_nms_top_k, anchors)
    scores = ops.where((box_math.area(boxes) > 0)[..., None], scores, 0.0)
    # Both are [batch, classes, top_k].
    scores, indices = ops.top_k(ops.transpose(scores, (0, 2, 1)), top_k)
    scores = ops.where(scores > score_threshold, scores, 0.0)
    flat = ops.reshape(indices, (-1, classes * top_k, 1))
    boxes = ops.take_along_axis(boxes, flat, axis=1)
    boxes = ops.reshape(boxes, (-1, classes, top_k, 4))
    batch = ops.shape(scores)[0]

    def is_left(step: Tensor, scores: Tensor, found: Tensor) -> Tensor:
        return ops.any(scores > 0)

    body = functools.partial(_take_best, boxes, iou_threshold)
    found = ops.zeros((batch, max_detections, 6))  # box, score, class
    found -= ops.one_hot(5, 6)  # unused entries have the class -1
    _, _, found = ops.while_loop(
        is_left, body, (0, scores, found), maximum_iterations=max_detections
    )
    return {
        "boxes": found[..., :4],
        "scores": found[..., 4],
        "classes": ops.cast(found[..., 5], "int32"),
    }


def _take_best(
    boxes: Tensor, iou_threshold: float, step: Tensor, scores: Tensor, found: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moves each image's best box to entry `step` of `found`, and drops its rivals.

    Boxes are `[batch, classes, top_k, 4]`, scores `[batch, classes, top_k]` (0 once a
    box is moved or dropped) and found `[batch, max_detections, 6]`.
    """
    classes = scores.shape[1]
    best = ops.max(scores, axis=-1)  # [batch, classes]
    label = ops.argmax(best, axis=-1)[:, None]  # [batch, 1]
    row = ops.take_along_axis(scores, label[..., None], axis=1)[:, 0]  # [batch, top_k]
    row_boxes = ops.take_along_axis(boxes, label[..., None, None], axis=1)[:, 0]
    index = ops.argmax(row, axis=-1)[:, None]  # [batch, 1]
    score = ops.take_along_axis(row, index, axis=1)  # [batch, 1]
    box = ops.take_along_axis(row_boxes, index[..., None], axis=1)  # [batch, 1, 4]
    is_dropped = box_math.iou(row_boxes, box) > iou_threshold  # [batch, top_k]
    is_dropped |= ops.arange(ops.shape(row)[-1]) == index  # the box itself
    is_class = ops.arange(classes) == label  # [batch, classes]
    scores = ops.where(is_class[..., None] & is_dropped[:, None], 0.0, scores)
    new = ops.concatenate(
        [box[:, 0], score, ops.cast(label, found.dtype)], axis=-1
    )  # [batch, 6]
    is_entry = (ops.arange(found.shape[1]) == step)[:, None] & (score > 0)[..., None]
    return step + 1, scores, ops.where(is_entry, new[:, None], found)


def detect(
    outputs: dict[str, Tensor],
    image_size: tuple[int, int] | None = None,
    *,
    anchors: Tensor | None = None,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
    candidates: int = PRE_NMS_TOP_K,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, Tensor]:
    """Finds the objects on a batch of images.

    Args:
        outputs: outputs of a model made by `SSDLite`.
        image_size: `(height, width)` of the images in pixels.
        anchors: `[anchors, 4]`, instead of the size: `anchor_boxes` of the images and
            the detector's backbone. In a graph, only anchors may be of any number.
        score_threshold: boxes with this score or a lower one are dropped.
        iou_threshold: a box is dropped if its overlap with a better box of its class
            is larger.
        candidates: number of boxes of each class that are considered, the best.
        max_detections: number of boxes of an image that are returned, the best.

    Returns:
        A dict: `boxes` `[batch, max_detections, 4]`, corners `(x1, y1, x2, y2)` as
        fractions of the image; `scores` `[batch, max_detections]`, in descending order;
        `classes`, int32 `[batch, max_detections]`, where 0 is the first class after the
        background; `number`, int32 `[batch]`, of the entries that are used. Unused
        entries have a box of zeros, the score 0 and the class -1.

    Raises:
        ValueError: if the outputs do not belong to images of this size.

    Example:
    >>> outputs = model.predict(images)  # [1, 320, 320, 3]
    >>> found = detect(outputs, (320, 320), score_threshold=0.3)
    >>> found["number"][0], found["classes"][0, :2], found["boxes"][0, 0]
    """
    _check_outputs(outputs)
    _check_limits(score_threshold, iou_threshold, candidates, max_detections)
    outputs = {name: ops.cast(x, "float32") for name, x in outputs.items()}
    count = outputs["offsets"].shape[1]
    anchors = _anchors_of_size(image_size, count) if anchors is None else anchors
    _check_anchors(anchors, count)
    boxes, scores = decode_outputs(outputs, anchors)
    found = non_max_suppression(
        boxes, scores, score_threshold, iou_threshold, candidates, max_detections
    )
    return {**found, "number": ops.sum(ops.cast(found["classes"] >= 0, "int32"), 1)}


def _check_outputs(outputs: Any) -> None:
    if not isinstance(outputs, dict) or set(outputs) != {"offsets", "logits"}:
        found = f"a dict of {sorted(outputs)}" if isinstance(outputs, dict) else outputs
        raise ValueError(
            "Expected the outputs of a model made by `SSDLite`, a dict of `offsets` "
            f"and `logits`. Received: {found}."
        )


def _check_limits(
    score_threshold: float, iou_threshold: float, candidates: int, max_detections: int
) -> None:
    check_positive(candidates=candidates, max_detections=max_detections)
    limits = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    for name, value in limits.items():
        if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
            raise ValueError(
                f"`{name}` must be a number in [0, 1]. Received: {name}={value!r}."
            )


def _checked_size(image_size: Any) -> tuple[int, int]:
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else ()
    if len(sides) != 2 or not all(map(is_positive, sides)):
        raise ValueError(
            "`image_size` must be (height, width) of the images in pixels, unless "
            f"`anchors` are given. Received: image_size={image_size!r}."
        )
    return int(sides[0]), int(sides[1])


def _anchors_of_size(
    image_size: tuple[int, int] | None, count: int | None
) -> np.ndarray:
    """Returns the anchors of a network that predicts `count` boxes."""
    height, width = _checked_size(image_size)
    if count is None:
        raise ValueError(
            "The number of boxes is not known here. Build the detector with the height "
            "and width of its images, as in `SSDLite(input_shape=(320, 320, 3))`, or "
            f"give `anchors`. Received: image_size={image_size!r}."
        )
    return anchors_of_count(height, width, count)


def _check_anchors(anchors: Tensor, count: int | None) -> None:
    given = anchors.shape[0]
    if count not in (None, given):
        raise ValueError(
            f"The outputs have {count} boxes, but there are {given} anchors. Use "
            "`anchor_boxes(height, width, backbone)` with the size of the images and "
            "the name of the detector's backbone."
        )


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class DetectObjects(keras.layers.Layer):
    """`keras_mobilevit.detect` as a layer: the end of a model that is exported.

    Args:
        image_size: `(height, width)` of the images in pixels.
        score_threshold: boxes with this score or a lower one are dropped.
        iou_threshold: a box is dropped if its overlap with a better box of its class
            is larger.
        candidates: number of boxes of each class that are considered, the best.
        max_detections: number of boxes of an image that are returned, the best.
        **kwargs: arguments of `keras.layers.Layer`, such as `name`.

    Call arguments: the outputs of a model made by `SSDLite`. The result is the dict
    that `detect` returns.

    Example:
    >>> model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=3, weights=None)
    >>> objects = keras_mobilevit.DetectObjects((320, 320), score_threshold=0.3)
    >>> detector = keras.Model(model.input, objects(model.output))
    >>> detector.export("detector")
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        score_threshold: float = SCORE_THRESHOLD,
        iou_threshold: float = IOU_THRESHOLD,
        candidates: int = PRE_NMS_TOP_K,
        max_detections: int = MAX_DETECTIONS,
        **kwargs: Any,
    ):
        _check_limits(score_threshold, iou_threshold, candidates, max_detections)
        # Boxes and scores are float32, also if layers compute in 16 bits.
        super().__init__(autocast=False, **kwargs)
        height, width = _checked_size(image_size)
        self.image_size = (height, width)
        self.limits: dict[str, Any] = {
            "score_threshold": score_threshold,
            "iou_threshold": iou_threshold,
            "candidates": candidates,
            "max_detections": max_detections,
        }

    def call(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Finds the objects on a batch of images."""
        return detect(outputs, self.image_size, **self.limits)

    def compute_output_spec(
        self, outputs: dict[str, keras.KerasTensor]
    ) -> dict[str, keras.KerasTensor]:
        """Returns the shapes and types of the dict."""
        _check_outputs(outputs)
        batch, boxes = outputs["offsets"].shape[:2]
        _anchors_of_size(self.image_size, boxes)  # checks that they belong together
        count = self.limits["max_detections"]
        return {
            "boxes": keras.KerasTensor((batch, count, 4)),
            "scores": keras.KerasTensor((batch, count)),
            "classes": keras.KerasTensor((batch, count), "int32"),
            "number": keras.KerasTensor((batch,), "int32"),
        }

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "image_size": self.image_size, **self.limits}
