"""Detection as a task of conversion: boxes and the probabilities of their classes.

`RAW` files return those of every anchor. `SUPPRESSED` files hold non-maximum
suppression too and return what `keras_mobilevit.detect` does, of one image.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit import boxes as box_math
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.detection import (
    IOU_THRESHOLD,
    MAX_DETECTIONS,
    SCORE_THRESHOLD,
    decode_outputs,
    detect,
)
from tflite.tasks.task import FORMATS_OF_PICTURES, Task
from tflite.validation import parity
from train.tasks.detection.postprocess import suppress_file_outputs
from train.tasks.detection.task import DETECTION as TRAINING

DECODE = "decode"  # scope of the operations that `finish` adds
# Of an image, by their best class; the others are not looked at. It bounds the work
# where every score is above the threshold, as few are in a trained network.
ANCHORS_KEPT = 1000
COMPARED_SCORE = 0.05  # lower ones are not compared one by one
SAME_BOX = 0.9  # intersection over union above which two boxes are one
AP_TOLERANCE = 0.2  # points: a box that scores a little less may trade places
# Boxes are compared in every format, also without labels: the part of Keras's objects
# that the file finds too. Trained detectors gave 0.999 in fp16, 0.988 in dynamic and
# 0.95 in int8-mixed. Points of accuracy are those beyond the tolerance: one in all.
LIMITS = {
    "fp16": {"agreement": 0.98},
    "dynamic": {"agreement": 0.8},
    "int8-mixed": {"agreement": 0.7, "accuracy": 0.8},
    "coreml": {"agreement": 0.98},
    "coreml-fp32": {"agreement": 0.999},
    "coreml-int8": {"agreement": 0.9},
    "coreml-palette6": {"agreement": 0.7},
}


def _outputs(tensors) -> dict:
    return dict(zip(("offsets", "logits"), tensors))


def _decoder(model: keras.Model, size: int):
    """Makes the function from offsets and logits to boxes and scores."""
    anchors = anchor_boxes(size, size)

    def decoded(tensors) -> dict:
        with tf.name_scope(DECODE):
            boxes, scores = decode_outputs(_outputs(tensors), anchors)
        return {"boxes": boxes, "scores": scores}

    return decoded


def _suppressor(model: keras.Model, size: int):
    """Makes the function from offsets and logits to what is on one image."""
    decoded = _decoder(model, size)

    def decoded_and_suppressed(tensors) -> dict:
        found = decoded(tensors)
        with tf.name_scope(DECODE):
            return suppress(found["boxes"], found["scores"])

    return decoded_and_suppressed


def _detector(model: keras.Model, size: int):
    """Makes the function by which Keras finds objects on a batch of images."""
    anchors = anchor_boxes(size, size)
    # Compiled, since suppression has a thousand small steps.
    return tf.function(
        lambda tensors: detect(_outputs(tensors), anchors),
        autograph=False,
        reduce_retracing=True,
    )


def _apart(boxes, classes: int):
    """Moves boxes, for each class, into a cell of a grid of its own.

    So no two classes overlap, and one suppression does for all. The cells are near the
    origin, where floats are fine.

    Args:
        boxes: corners in [0, 1], `[anchors, 4]`.
        classes: how many.

    Returns:
        Corners `[anchors * classes, 4]`.
    """
    columns = math.ceil(math.sqrt(classes))
    cells = np.array([divmod(label, columns) for label in range(classes)], np.float32)
    moved = boxes[:, None] + np.tile(cells, 2)  # [anchors, classes, 4]
    return tf.reshape(moved, (-1, 4))


def suppress(boxes, scores) -> dict:
    """Does what `keras_mobilevit.detection.non_max_suppression` does, by TFLite's op.

    Args:
        boxes: corners `[1, anchors, 4]`.
        scores: `[1, anchors, classes]`.

    Returns:
        `boxes` `[1, 200, 4]`, `scores` `[1, 200]` and `classes` int32 `[1, 200]`; -1
        and zeros where there is nothing more.
    """
    _, anchors, classes = scores.shape
    boxes, scores = (tf.reshape(x, x.shape[1:]) for x in (boxes, scores))
    scores *= tf.cast(box_math.area(boxes) > 0, tf.float32)[:, None]
    best = tf.reduce_max(scores, axis=-1)  # [anchors]
    _, kept = tf.math.top_k(best, min(ANCHORS_KEPT, anchors))
    boxes, scores = tf.gather(boxes, kept), tf.gather(scores, kept)
    flat = tf.reshape(scores, (-1,))  # [anchors * classes]
    indices, count = tf.raw_ops.NonMaxSuppressionV4(
        boxes=_apart(boxes, classes),
        scores=flat,
        max_output_size=MAX_DETECTIONS,
        # TFLite drops boxes that overlap by just as much, Keras those that do by more.
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
        "classes": tf.where(is_found, indices % classes, -1),
    }
    return {name: x[None] for name, x in found.items()}


def matched_scores(reference: dict, found: dict) -> tuple[np.ndarray, int]:
    """Finds each of an image's objects again among others.

    Args:
        reference: `boxes` `[n, 4]`, `scores` and `classes` `[n]` of one image.
        found: likewise.

    Returns:
        Differences of the scores of those that were found again, and the number of
        those that were not: no box of the class that overlaps by 0.9.
    """
    boxes = np.float32(reference["boxes"])[:, None]
    overlaps = np.asarray(box_math.iou(boxes, np.float32(found["boxes"])[None]))
    is_same = reference["classes"][:, None] == found["classes"][None]
    overlaps = np.where(is_same, overlaps, 0.0)
    differences, missing = [], 0
    for row, score in zip(overlaps, reference["scores"]):
        if not len(row) or row.max() < SAME_BOX:
            missing += 1
        else:
            differences.append(abs(found["scores"][row.argmax()] - score))
    return np.array(differences), missing


def agreement(reference: dict, found: dict) -> tuple[np.ndarray, float]:
    """Compares the objects on many images that score at least `COMPARED_SCORE`.

    Args:
        reference: of `train.tasks.detection.postprocess.suppress_file_outputs`.
        found: likewise.

    Returns:
        The differences of the scores of objects that both have, and the part, in
        [0, 1], of the reference's objects that the other has too.
    """
    differences, missing = [np.zeros(0)], 0
    for index, scores in enumerate(reference["scores"]):
        counts = scores >= COMPARED_SCORE
        of_image = {name: x[index] for name, x in found.items()}
        wanted = {name: x[index][counts] for name, x in reference.items()}
        some, lost = matched_scores(wanted, of_image)
        differences.append(some)
        missing += lost
    differences = np.concatenate(differences)
    objects = len(differences) + missing
    return differences, 1.0 if not objects else len(differences) / objects


def _compare_raw(reference: dict, outputs: dict) -> dict:
    found = [parity.compare(reference[n], outputs[n]) for n in ("boxes", "scores")]
    worst = {key: max(part[key] for part in found) for key in ("max_abs", "mean_abs")}
    _, part = agreement(
        suppress_file_outputs(reference), suppress_file_outputs(outputs)
    )
    return {
        **worst,
        "max_abs_reference": 1.0,  # of fractions and probabilities
        "psnr_db": min(part["psnr_db"] for part in found),
        "agreement": part,
    }


def _compare_suppressed(reference: dict, outputs: dict) -> dict:
    differences, part = agreement(reference, outputs)
    of_scores = parity.compare(reference["scores"], outputs["scores"])
    return {
        "max_abs": float(differences.max(initial=0.0)),
        "mean_abs": float(differences.mean()) if len(differences) else 0.0,
        "max_abs_reference": 1.0,
        "psnr_db": of_scores["psnr_db"],
        "agreement": part,
    }


def _average_precision(validation, outputs: dict) -> float:
    targets = {f"true_{name}": values for name, values in validation.targets.items()}
    predictions = suppress_file_outputs(outputs) | targets
    return 100 * TRAINING.score(validation.class_names, predictions)["AP"]


_NMS = {
    "score_threshold": SCORE_THRESHOLD,
    "iou_threshold": IOU_THRESHOLD,
    "max_detections": MAX_DETECTIONS,
}
_RAW_MEANINGS = {
    "boxes": "corners x1, y1, x2, y2 of each anchor's box, as fractions of the image",
    "scores": "probabilities of the classes, without the background's",
}
_MEANINGS = {
    "boxes": "corners x1, y1, x2, y2 as fractions of the image, the best first",
    "scores": "probabilities; 0 where there is nothing more",
    "classes": "counted from 0; -1 where there is nothing more",
}

RAW = Task(
    name="detection",
    training=TRAINING,
    num_classes=lambda model: model.output["logits"].shape[-1] - 1,
    finish=_decoder,
    reference=_decoder,
    meanings=_RAW_MEANINGS,
    compare=_compare_raw,
    metric="AP",
    score=_average_precision,
    tolerance=lambda images: AP_TOLERANCE,
    formats=FORMATS_OF_PICTURES,
    limits=LIMITS,
    # One scale for the offsets and logits of all maps would round both too much.
    float_scopes=(
        "ssd[a-z0-9_]*_(predictions|anchors)/",
        "ssd_(concat|split_offsets|split_logits)/",
        f"{DECODE}/",
        "(Stateful)?PartitionedCall",  # what the converter calls the outputs
    ),
    facts={"nms": {"where": "outside", **_NMS}},
)
SUPPRESSED = dataclasses.replace(
    RAW,
    finish=_suppressor,
    reference=_detector,
    meanings=_MEANINGS,
    compare=_compare_suppressed,
    formats=("fp32", "fp16", "dynamic", "int8-mixed"),
    limits={**LIMITS, "": {"outside": None}},  # XNNPACK has no suppression
    facts={"nms": {"where": "inside", **_NMS, "anchors_kept": ANCHORS_KEPT}},
    suffix="nms",
    cpu_part="non-maximum suppression (--nms=none leaves it out)",
)
BY_NMS = {"none": RAW, "builtin": SUPPRESSED}
