"""Core ML's model of non-maximum suppression (NMS), which follows a detector's network.

The names are those of NonMaximumSuppression.proto in coremltools. Apple's own object
detectors end in this model, and Vision recognizes a detector by it.

Core ML keeps a box once, under its best class, and drops it if it overlaps a better box
of that class. `keras_mobilevit.detection.non_max_suppression` may keep a box once for
each of its classes: two objects there can be one box here, with both confidences.
"""

from typing import TYPE_CHECKING

from keras_mobilevit.detection import IOU_THRESHOLD, SCORE_THRESHOLD

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model

CONFIDENCE, COORDINATES = "confidence", "coordinates"  # outputs: the kept boxes
# Inputs: the network's outputs for every anchor, then the optional thresholds.
RAW = {name: f"raw_{name}" for name in (CONFIDENCE, COORDINATES)}
IOU_INPUT, CONFIDENCE_INPUT = "iouThreshold", "confidenceThreshold"
# After an ML Program this model returned wrong boxes for some numbers of columns, 34
# for example; multiples of 80 were right. Others reported this; it was neither
# reproduced here nor explained: https://github.com/apple/coremltools/issues/2445,
# https://github.com/ultralytics/ultralytics/pull/22310.
COLUMNS = 80


def pad_labels(labels) -> list[str]:
    """Adds labels for empty columns, up to a multiple of `COLUMNS`."""
    padded = list(labels)
    number = 0
    while len(padded) % COLUMNS:
        number += 1
        if f"unused {number}" not in labels:
            padded.append(f"unused {number}")
    return padded


def _describe_outputs(description, raw_outputs) -> None:
    """Adds the outputs: a row for each kept box, the columns of `raw_outputs`."""
    for raw, name in zip(raw_outputs, (CONFIDENCE, COORDINATES)):
        array = raw.type.multiArrayType
        kept = description.output.add(name=name).type.multiArrayType
        kept.dataType = array.dataType
        kept.shapeRange.sizeRanges.add(lowerBound=0, upperBound=-1)
        columns = array.shape[1]
        kept.shapeRange.sizeRanges.add(lowerBound=columns, upperBound=columns)


def add_nms(network: "Model", labels) -> "Model":
    """Makes the pipeline of a network and non-maximum suppression, class by class.

    The network returns confidences `[anchors, columns]` and coordinates `[anchors, 4]`.
    `labels` are the names of the columns.
    """
    from coremltools.proto import Model_pb2

    pipeline, suppression = (
        Model_pb2.Model(specificationVersion=network.specificationVersion)
        for _ in range(2)
    )
    description = suppression.description
    description.input.extend(network.description.output)
    for name in (IOU_INPUT, CONFIDENCE_INPUT):
        # Only a pipeline's inputs may be optional, not those of this model.
        description.input.add(name=name).type.doubleType.SetInParent()
    _describe_outputs(description, network.description.output)
    nms = suppression.nonMaximumSuppression
    nms.pickTop.perClass = True
    nms.stringClassLabels.vector.extend(labels)
    nms.iouThreshold = IOU_THRESHOLD
    nms.confidenceThreshold = SCORE_THRESHOLD
    nms.confidenceInputFeatureName = RAW[CONFIDENCE]
    nms.coordinatesInputFeatureName = RAW[COORDINATES]
    nms.iouThresholdInputFeatureName = IOU_INPUT
    nms.confidenceThresholdInputFeatureName = CONFIDENCE_INPUT
    nms.confidenceOutputFeatureName = CONFIDENCE
    nms.coordinatesOutputFeatureName = COORDINATES
    pipeline.pipeline.models.extend([network, suppression])
    pipeline.pipeline.names.extend(["detector", "suppression"])
    pipeline.description.input.extend(network.description.input)
    for threshold in description.input[2:]:
        pipeline.description.input.add().CopyFrom(threshold)
        pipeline.description.input[-1].type.isOptional = True
    pipeline.description.output.extend(description.output)
    return pipeline
