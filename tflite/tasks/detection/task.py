"""Detection as a task of conversion: boxes and the probabilities of their classes.

`RAW` files return the box and the probabilities of every anchor. `SUPPRESSED` files
include non-maximum suppression (NMS): they return the results of
`keras_mobilevit.detect` for one image.
"""

import dataclasses

from keras_mobilevit import ssdlite
from keras_mobilevit.class_names import COCO_NAMES
from keras_mobilevit.configs import DETECTOR_SIZE
from keras_mobilevit.detection import IOU_THRESHOLD, MAX_DETECTIONS, SCORE_THRESHOLD
from tflite.tasks.detection.compare import compare_raw, compare_suppressed
from tflite.tasks.detection.postprocess import (
    ANCHORS_KEPT,
    SCOPE,
    decoder,
    detector,
    suppressor,
)
from tflite.tasks.task import (
    CONVERTER_SCOPE,
    Output,
    OutputKind,
    Outputs,
    Task,
    TaskFamily,
)
from train.tasks.detection.postprocess import suppress_file_outputs
from train.tasks.detection.task import DETECTION as TRAINING

AP_TOLERANCE = 0.2  # points: boxes with nearly equal scores may swap ranks
# `agreement` is the fraction of Keras's objects that the file finds too; it needs no
# labels. Trained detectors gave 0.999 in fp16, 0.988 in dynamic and 0.95 in int8-mixed.
# `accuracy` is added to the tolerance: together they allow 1 point.
LIMITS: dict[str, dict] = {
    "fp16": {"agreement": 0.98},
    "dynamic": {"agreement": 0.8},
    "int8-mixed": {"agreement": 0.7, "accuracy": 0.8},
    "int8": {"agreement": 0.7, "float": None},  # the decoding stays float
    "coreml": {"agreement": 0.98},
    "coreml-fp32": {"agreement": 0.999},
    "coreml-int8": {"agreement": 0.9},
    "coreml-palette6": {"agreement": 0.7},
}
_NMS = {
    "score_threshold": SCORE_THRESHOLD,
    "iou_threshold": IOU_THRESHOLD,
    "max_detections": MAX_DETECTIONS,
}
_RAW_OUTPUTS = {
    "boxes": Output(
        "corners x1, y1, x2, y2 of each anchor's box, as fractions of the image"
    ),
    "scores": Output("probabilities of the classes, without the background's"),
}
# The names in the metadata are those that MediaPipe and the Task Library look for.
_SUPPRESSED_OUTPUTS = {
    "boxes": Output(
        "corners x1, y1, x2, y2 as fractions of the image, the best first",
        OutputKind.BOXES,
        "location",
    ),
    "scores": Output("probabilities; 0 in unused places", metadata_name="score"),
    "classes": Output(
        "counted from 0; -1 in unused places", OutputKind.CLASS_INDICES, "category"
    ),
    "count": Output("number of objects", metadata_name="number of detections"),
}


def _average_precision(validation, outputs: Outputs) -> float:
    targets = {f"true_{name}": values for name, values in validation.targets.items()}
    predictions = suppress_file_outputs(outputs) | targets
    return 100 * TRAINING.score(validation.class_names, predictions)["AP"]


RAW = Task(
    name="detection",
    title="Object detector",
    training=TRAINING,
    num_classes=lambda model: model.output["logits"].shape[-1] - 1,
    postprocess=decoder,
    reference=decoder,
    outputs=_RAW_OUTPUTS,
    compare=compare_raw,
    metric="AP",
    score=_average_precision,
    tolerance=lambda images: AP_TOLERANCE,
    excluded_formats=("int8-qat",),
    limits=LIMITS,
    # One scale for the offsets and logits of all maps would be too coarse.
    mixed_float_scopes=("ssd[a-z0-9_]*_(predictions|anchors)/",),
    float_scopes=(
        "ssd_(concat|split_offsets|split_logits)/",
        f"{SCOPE}/",
        CONVERTER_SCOPE,
    ),
    metadata={"nms": {"where": "outside", **_NMS}},
    suffix="raw",
)
SUPPRESSED = dataclasses.replace(
    RAW,
    postprocess=suppressor,
    reference=detector,
    outputs=_SUPPRESSED_OUTPUTS,
    compare=compare_suppressed,
    limits={**LIMITS, "": {"undelegated_ops": None}},  # XNNPACK does not run NMS
    metadata={"nms": {"where": "inside", **_NMS, "anchors_kept": ANCHORS_KEPT}},
    suffix="",
    cpu_part="non-maximum suppression (--nms=none leaves it out)",
)
OUTPUT_VARIANTS = {"builtin": SUPPRESSED, "none": RAW}

DETECTION = TaskFamily(
    matches=ssdlite.is_detector,
    choose=lambda model, variant: OUTPUT_VARIANTS[variant or "none"],
    default_size=DETECTOR_SIZE,
    build_model=ssdlite.SSDLite,
    published_labels=tuple(COCO_NAMES),
)
