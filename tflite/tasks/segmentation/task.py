"""Segmentation as a task of conversion: the class of each pixel of an image.

`LOGITS` files resize the logits to half the size of the image, from where any resizing
gives the same class map but for some pixels at borders. `RAW` files return them at the
output stride, in half a percent of the memory of full-size logits. `CLASS_MAP` files
return the class of each pixel. Logits at the output stride are resized as the model
does it, see `keras_mobilevit.deeplab.aligns_corners`.
"""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit import deeplab
from keras_mobilevit.class_names import VOC_NAMES
from keras_mobilevit.configs import SEGMENTER_SIZE
from keras_mobilevit.deeplab import CLASSIFIER, aligns_corners
from tflite.graph.tf_ops import resize
from tflite.tasks.task import (
    CONVERTER_SCOPE,
    NOT_FOR_PICTURES,
    Output,
    OutputKind,
    Outputs,
    Task,
    TaskFamily,
)
from tflite.validation import parity
from train.tasks.segmentation.postprocess import class_maps
from train.tasks.segmentation.task import SEGMENTATION as TRAINING

SCOPE = "class_map"  # name scope of the postprocessing operations
LOGITS_STRIDE = 2  # pixels of the image for one of the resized logits
MIOU_TOLERANCE = 0.2  # points: pixels at borders may change their class
LIMITS: dict[str, dict] = {
    "fp32": {"agreement": 0.9999},
    "int8-mixed": {"accuracy": 0.8},  # 1 point including the tolerance
    "int8": {"float": 1},  # the resizing
}
# A class map has no PSNR. XNNPACK runs neither argmax nor the cast of its result, so
# two operations are not delegated.
CLASS_MAP_LIMITS: dict[str, dict] = {
    "": {"psnr": None},
    "fp32": {"agreement": 0.9999, "undelegated_ops": 2},
    "fp16": {"agreement": 0.99, "undelegated_ops": 2},
    "dynamic": {"agreement": 0.95, "undelegated_ops": 2},
    "int8-mixed": {"agreement": 0.9, "undelegated_ops": 2, **LIMITS["int8-mixed"]},
    "coreml-int8": {"agreement": 0.95},
    "coreml-palette6": {"agreement": 0.9},
}
MAX_CLASSES = 256  # of a class map of bytes
GPU_CHANNELS = 4  # GPUs compute the channels of a pixel in groups of four


def _raw_logits(model: keras.Model, size: int) -> Callable[[list], dict]:
    return lambda outputs: dict(zip(["logits"], outputs))


def _logits(model: keras.Model, size: int) -> Callable[[list], dict]:
    side, align_corners = -(-size // LOGITS_STRIDE), aligns_corners(model)

    def logits(outputs: list) -> dict:
        with tf.name_scope(SCOPE):
            return {"logits": resize(outputs[0], side, side, align_corners)}

    return logits


def _class_map(model: keras.Model, size: int) -> Callable[[list], dict]:
    align_corners = aligns_corners(model)
    return lambda outputs: {"classes": class_maps(outputs[0], size, align_corners)}


def _class_map_in_bytes(model: keras.Model, size: int) -> Callable[[list], dict]:
    classes, align_corners = _num_classes(model), aligns_corners(model)

    def class_map(outputs: list) -> dict:
        if classes > MAX_CLASSES:
            raise ValueError(
                f"A class map has bytes, for {MAX_CLASSES} classes at most; the model "
                f"has {classes}. Use --output=logits."
            )
        (logits,) = outputs  # [1, rows, columns, classes]
        with tf.name_scope(SCOPE):
            # A GPU pads the channels of a pixel with zeros to a multiple of four, and
            # argmax chose such a zero where all logits were negative (LiteRT 2.3,
            # WebGPU). Channels that never win fill these places instead.
            missing = -classes % GPU_CHANNELS
            if missing:
                padding = [logits[..., :1] - 1.0] * missing
                logits = tf.concat([logits, *padding], axis=-1)
            found = class_maps(logits, size, align_corners)
            return {"classes": tf.cast(found, tf.uint8)}

    return class_map


def _num_classes(model: keras.Model) -> int:
    return model.get_layer(CLASSIFIER).output.shape[-1]


def _full_class_maps(outputs: Outputs, size: int, align_corners: bool) -> np.ndarray:
    """Returns the class maps of a file's outputs, `[images, size, size]`."""
    if "classes" in outputs:
        return outputs["classes"]
    return np.asarray(class_maps(outputs["logits"], size, align_corners))


def _compare_logits(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    expected, actual = (  # [pixels, classes]
        x["logits"].reshape(-1, x["logits"].shape[-1]) for x in (reference, outputs)
    )
    found = parity.compare(expected, actual)
    return {**found, "agreement": found.pop("top1_agreement")}


def _compare_class_maps(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    same = float(np.mean(reference["classes"] == outputs["classes"]))
    # The largest difference of a class map is its fraction of different pixels.
    return {"max_abs": 1 - same, "max_abs_reference": 1.0, "agreement": same}


def _mean_iou(validation, outputs: Outputs, align_corners: bool = False) -> float:
    classes = len(validation.class_names)
    size = validation.images.shape[1]
    confusion = np.zeros((classes, classes), np.int64)
    # One image at a time, since class maps are larger than logits.
    for index, mask in enumerate(validation.targets["full_mask"]):
        of_image = {name: x[index : index + 1] for name, x in outputs.items()}
        class_map = _full_class_maps(of_image, size, align_corners)
        counts = TRAINING.statistics(
            validation.class_names, {"class_map": class_map}, {"full_mask": [mask]}
        )
        confusion += counts["confusion"]
    metrics = TRAINING.score(validation.class_names, {"confusion": confusion})
    return 100 * metrics["mIoU"]


_FLOAT_SCOPES = (f"{SCOPE}/", CONVERTER_SCOPE)
RAW = Task(
    name="segmentation",
    title="Image segmenter",
    training=TRAINING,
    num_classes=_num_classes,
    postprocess=_raw_logits,
    reference=_raw_logits,
    outputs={
        "logits": Output(
            "one for each class in each cell, a pixel of the output stride",
            OutputKind.PIXEL_SCORES,
        )
    },
    compare=_compare_logits,
    metric="mIoU",
    score=_mean_iou,
    tolerance=lambda images: MIOU_TOLERANCE,
    excluded_formats=("int8-qat",),
    limits=LIMITS,
    suffix="raw",
)
LOGITS = dataclasses.replace(
    RAW,
    postprocess=_logits,
    reference=_logits,
    outputs={
        "logits": Output(
            f"one for each class in each square of {LOGITS_STRIDE}x{LOGITS_STRIDE} "
            "pixels",
            OutputKind.PIXEL_SCORES,
        )
    },
    float_scopes=_FLOAT_SCOPES,
    suffix="",
)
CLASS_MAP = dataclasses.replace(
    RAW,
    postprocess=_class_map_in_bytes,
    reference=_class_map,
    outputs={
        "classes": Output("the class of each pixel, from 0", OutputKind.CLASS_MAP)
    },
    compare=_compare_class_maps,
    # MediaPipe takes any file with uint8 images, and would read the rows of a class map
    # as channels.
    excluded_formats=NOT_FOR_PICTURES,
    limits=CLASS_MAP_LIMITS,
    float_scopes=_FLOAT_SCOPES,
    suffix="classmap",
)
OUTPUT_VARIANTS = {"logits": LOGITS, "raw": RAW, "classmap": CLASS_MAP}


def _choose(model: keras.Model, variant: str) -> Task:
    task = OUTPUT_VARIANTS[variant or "raw"]
    if task is not RAW or not aligns_corners(model):
        return task
    # The others end in the model's own resizing. After this one, who runs the file must
    # know how to resize.
    return dataclasses.replace(
        RAW,
        score=functools.partial(_mean_iou, align_corners=True),
        metadata={"align_corners": True},
    )


SEGMENTATION = TaskFamily(
    matches=deeplab.is_segmenter,
    choose=_choose,
    default_size=SEGMENTER_SIZE,
    build_model=deeplab.DeepLabV3,
    published_labels=tuple(VOC_NAMES),
)
