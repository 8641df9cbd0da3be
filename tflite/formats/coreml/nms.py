"""Core ML's model of non-maximum suppression: its specification, and what it does.

By NonMaximumSuppression.proto of coremltools. Apple's own object detectors end in this
model, and Vision knows a detector by it.
"""

import numpy as np

from keras_mobilevit.detection import IOU_THRESHOLD, SCORE_THRESHOLD

CONFIDENCE, COORDINATES = "confidence", "coordinates"  # of the boxes that are kept
# What the model takes is called: of every anchor, and what may be left away.
RAW = {name: f"raw_{name}" for name in (CONFIDENCE, COORDINATES)}
IOU_INPUT, CONFIDENCE_INPUT = "iouThreshold", "confidenceThreshold"
# After an ML Program this model returned wrong boxes for other numbers of columns, 34
# for example; multiples of 80 were right. Seen by others, not here, nor explained:
# https://github.com/apple/coremltools/issues/2445,
# https://github.com/ultralytics/ultralytics/pull/22310.
COLUMNS = 80
CLASS_COUNT = "class_count"  # key of the metadata, since labels fill up the columns


def fill_up(labels) -> list[str]:
    """Adds labels for columns without a class, up to a multiple of `COLUMNS`."""
    filled = list(labels)
    number = 0
    while len(filled) % COLUMNS:
        number += 1
        if f"unused {number}" not in labels:
            filled.append(f"unused {number}")
    return filled


def _describe_outputs(description, given) -> None:
    """Adds the outputs: as many rows as there are boxes left of those given."""
    for taken, name in zip(given, (CONFIDENCE, COORDINATES)):
        array = taken.type.multiArrayType
        kept = description.output.add(name=name).type.multiArrayType
        kept.dataType = array.dataType
        kept.shapeRange.sizeRanges.add(lowerBound=0, upperBound=-1)
        columns = array.shape[1]
        kept.shapeRange.sizeRanges.add(lowerBound=columns, upperBound=columns)


def suppression_model(program, labels):
    """Makes the model of non-maximum suppression, class by class.

    Args:
        program: specification of the model before it, whose outputs are of each
            anchor: confidences `[anchors, columns]` and coordinates `[anchors, 4]`.
        labels: names of the columns.

    Returns:
        A specification too, a `Model_pb2.Model`.
    """
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model(specificationVersion=program.specificationVersion)
    description = model.description
    description.input.extend(program.description.output)
    for name in (IOU_INPUT, CONFIDENCE_INPUT):
        # Core ML takes an optional input of a pipeline alone, not of this model.
        description.input.add(name=name).type.doubleType.SetInParent()
    _describe_outputs(description, program.description.output)
    suppression = model.nonMaximumSuppression
    suppression.pickTop.perClass = True
    suppression.stringClassLabels.vector.extend(labels)
    suppression.iouThreshold = IOU_THRESHOLD
    suppression.confidenceThreshold = SCORE_THRESHOLD
    suppression.confidenceInputFeatureName = RAW[CONFIDENCE]
    suppression.coordinatesInputFeatureName = RAW[COORDINATES]
    suppression.iouThresholdInputFeatureName = IOU_INPUT
    suppression.confidenceThresholdInputFeatureName = CONFIDENCE_INPUT
    suppression.confidenceOutputFeatureName = CONFIDENCE
    suppression.coordinatesOutputFeatureName = COORDINATES
    return model


def add_suppression(program, labels):
    """Makes the pipeline of a program and, after it, its `suppression_model`."""
    from coremltools.proto import Model_pb2

    suppression = suppression_model(program, labels)
    model = Model_pb2.Model(specificationVersion=program.specificationVersion)
    model.pipeline.models.extend([program, suppression])
    model.pipeline.names.extend(["detector", "suppression"])
    description = model.description
    description.input.extend(program.description.input)
    for taken in suppression.description.input[2:]:  # the thresholds
        description.input.add().CopyFrom(taken)
        description.input[-1].type.isOptional = True
    description.output.extend(suppression.description.output)
    return model


# What it does, in NumPy ---------------------------------------------------------------


def to_corners(coordinates) -> np.ndarray:
    """Turns centres and sizes `[..., 4]` into corners `x1, y1, x2, y2`."""
    center, size = coordinates[..., :2], coordinates[..., 2:]
    return np.concatenate([center - size / 2, center + size / 2], axis=-1)


def _overlaps(box, boxes) -> np.ndarray:
    """Returns the intersection over union of corners `[4]` with `[n, 4]`."""
    first = np.maximum(box[:2], boxes[:, :2])
    second = np.minimum(box[2:], boxes[:, 2:])
    intersection = np.prod(np.maximum(second - first, 0), axis=-1)
    area, areas = (np.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (box, boxes))
    return intersection / np.maximum(area + areas - intersection, 1e-12)


def suppress(
    coordinates,
    confidence,
    iou_threshold: float = IOU_THRESHOLD,
    confidence_threshold: float = SCORE_THRESHOLD,
) -> tuple[np.ndarray, np.ndarray]:
    """Does what the model does.

    A box counts once, as its best class, and is dropped if it overlaps a better one of
    that class. `keras_mobilevit.detection.non_max_suppression` takes a box for each of
    its classes instead, and only the best of each class: what is found twice there is
    one box here, with the confidences of both.

    Args:
        coordinates: centres and sizes `[anchors, 4]`.
        confidence: `[anchors, classes]`.
        iou_threshold: a box that overlaps a better one by more is dropped.
        confidence_threshold: so is one whose best class has less.

    Returns:
        Confidences `[boxes, classes]` and coordinates `[boxes, 4]` of those that are
        left, the best first.
    """
    corners = to_corners(coordinates)
    best, labels = confidence.max(-1), confidence.argmax(-1)
    left = np.argsort(-best, kind="stable")
    left = left[best[left] >= confidence_threshold]
    kept = []
    while len(left):
        top, left = left[0], left[1:]
        kept.append(top)
        is_near = _overlaps(corners[top], corners[left]) > iou_threshold
        left = left[~(is_near & (labels[left] == labels[top]))]
    return confidence[kept], coordinates[kept]
