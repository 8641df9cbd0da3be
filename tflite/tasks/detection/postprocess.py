"""The steps after a detector's network: decoding of boxes and suppression (NMS)."""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit import boxes as box_math
from keras_mobilevit.anchors import anchors_of_count
from keras_mobilevit.detection import (
    IOU_THRESHOLD,
    MAX_DETECTIONS,
    SCORE_THRESHOLD,
    decode_outputs,
    detect,
)

SCOPE = "decode"  # name scope of the postprocessing operations
# NMS sees only the anchors of an image whose best class scores highest. This bounds its
# work; in a trained network far fewer anchors score above the threshold.
ANCHORS_KEPT = 1000


def _named(tensors: list) -> dict:
    return dict(zip(("offsets", "logits"), tensors))


def decoder(model: keras.Model, size: int) -> Callable[[list], dict]:
    """Makes a function that decodes offsets and logits to boxes and scores."""

    def decode(tensors: list) -> dict:
        anchors = anchors_of_count(size, size, tensors[0].shape[1])
        with tf.name_scope(SCOPE):
            boxes, scores = decode_outputs(_named(tensors), anchors)
        return {"boxes": boxes, "scores": scores}

    return decode


def suppressor(model: keras.Model, size: int) -> Callable[[list], dict]:
    """Makes a function that converts offsets and logits to the objects on one image."""
    decode = decoder(model, size)

    def decode_and_suppress(tensors: list) -> dict:
        found = decode(tensors)
        with tf.name_scope(SCOPE):
            return suppress(found["boxes"], found["scores"])

    return decode_and_suppress


def detector(model: keras.Model, size: int) -> Callable[[list], dict]:
    """Makes a function that converts offsets and logits to the objects Keras finds."""

    def find(tensors: list) -> dict:
        found = detect(_named(tensors), (size, size))
        found["count"] = found.pop("number")  # the name of the file's output
        return found

    # Compiled, because NMS runs a thousand small operations.
    return tf.function(find, autograph=False, reduce_retracing=True)


def _separate_classes(boxes: tf.Tensor, classes: int) -> tf.Tensor:
    """Moves the boxes of each class into a cell of its own on a grid.

    Boxes of different classes then never overlap, so one NMS serves all classes. The
    cells are near the origin, where floats are precise. Corners `[anchors, 4]` in [0,
    1] become `[anchors * classes, 4]`.
    """
    columns = math.ceil(math.sqrt(classes))
    cells = np.array([divmod(label, columns) for label in range(classes)], np.float32)
    moved = boxes[:, None] + np.tile(cells, 2)  # [anchors, classes, 4]
    return tf.reshape(moved, (-1, 4))


def suppress(boxes: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
    """Suppresses non-maxima of one image with TFLite's operation.

    Gives the results of `keras_mobilevit.detection.non_max_suppression`. Takes corners
    `[1, anchors, 4]` and scores `[1, anchors, classes]`; returns `boxes` `[1, 200, 4]`,
    `scores` `[1, 200]`, `classes` `[1, 200]` and `count` `[1]`, all in floats, as
    MediaPipe takes them. Unused places have the class -1 and zeros.
    """
    _, anchors, classes = scores.shape
    boxes, scores = (tf.reshape(x, x.shape[1:]) for x in (boxes, scores))
    scores *= tf.cast(box_math.area(boxes) > 0, tf.float32)[:, None]
    best = tf.reduce_max(scores, axis=-1)  # [anchors]
    _, kept = tf.math.top_k(best, min(ANCHORS_KEPT, anchors))
    boxes, scores = tf.gather(boxes, kept), tf.gather(scores, kept)
    flat = tf.reshape(scores, (-1,))  # [anchors * classes]
    indices, count = tf.raw_ops.NonMaxSuppressionV4(
        boxes=_separate_classes(boxes, classes),
        scores=flat,
        max_output_size=MAX_DETECTIONS,
        # TFLite also drops a box whose overlap equals the threshold; Keras keeps it.
        iou_threshold=np.nextafter(np.float32(IOU_THRESHOLD), np.float32(1)),
        score_threshold=SCORE_THRESHOLD,
        pad_to_max_output_size=True,
    )
    indices = tf.ensure_shape(indices, (MAX_DETECTIONS,))
    is_found = tf.range(MAX_DETECTIONS) < count
    number = tf.cast(is_found, tf.float32)
    found = {
        "boxes": tf.gather(boxes, indices // classes) * number[:, None],
        "scores": tf.gather(flat, indices) * number,
        "classes": tf.cast(tf.where(is_found, indices % classes, -1), tf.float32),
        "count": tf.cast(count, tf.float32),
    }
    return {name: x[None] for name, x in found.items()}
