"""Segmentation as a task of conversion: the classes of an image's pixels.

`LOGITS` files return the logits of every cell at the output stride, for an application
to resize: half a percent of what they would be at the image's size. `CLASS_MAP` files
resize them and return the class of every pixel.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit.deeplab import CLASSIFIER
from tflite.tasks.task import FORMATS_OF_PICTURES, Task
from tflite.validation import parity
from train.tasks.segmentation.postprocess import class_maps
from train.tasks.segmentation.task import SEGMENTATION as TRAINING

FINISH = "class_map"  # scope of the operations that `finish` adds
MIOU_TOLERANCE = 0.2  # points: pixels at borders may change sides
LIMITS = {
    "fp32": {"agreement": 0.9999},
    "int8-mixed": {"accuracy": 0.8},  # points beyond these: one in all
}
# Of a class map there is no noise, but a part of the pixels may change sides; and
# XNNPACK has no argmax, nor a cast of what it returns.
CLASS_MAP_LIMITS = {
    "": {"psnr": None},
    "fp32": {"agreement": 0.9999, "outside": 2},
    "fp16": {"agreement": 0.99, "outside": 2},
    "dynamic": {"agreement": 0.95, "outside": 2},
    "int8-mixed": {"agreement": 0.9, "outside": 2, **LIMITS["int8-mixed"]},
    "coreml-int8": {"agreement": 0.95},
    "coreml-palette6": {"agreement": 0.9},
}
MOST_CLASSES = 256  # of a map of bytes
GPU_CHANNELS = 4  # that lie together, and are computed together


def _logits(model: keras.Model, size: int):
    return lambda outputs: dict(zip(["logits"], outputs))


def _class_map(model: keras.Model, size: int):
    return lambda outputs: {"classes": class_maps(outputs[0], size)}


def _class_map_on_a_phone(model: keras.Model, size: int):
    classes = _num_classes(model)

    def class_map(outputs) -> dict:
        _refuse_many(classes)
        (logits,) = outputs
        with tf.name_scope(FINISH):
            # A GPU fills up the channels of a pixel with zeros, and took one of these
            # where all logits were negative (LiteRT 2.3, WebGPU). These never win.
            missing = -classes % GPU_CHANNELS
            if missing:
                filling = [logits[..., :1] - 1.0] * missing
                logits = tf.concat([logits, *filling], axis=-1)
            return {"classes": tf.cast(class_maps(logits, size), tf.uint8)}

    return class_map


def _refuse_many(classes: int) -> None:
    if classes > MOST_CLASSES:
        raise ValueError(
            f"A class map has bytes, for {MOST_CLASSES} classes at most; the model has "
            f"{classes}. Take --output=logits."
        )


def _num_classes(model: keras.Model) -> int:
    return model.get_layer(CLASSIFIER).output.shape[-1]


def _same_pixels(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.mean(first == second))


def _class_maps_of(outputs: dict, size: int):
    """Returns the class maps that a file's outputs stand for, at the images' size."""
    if "classes" in outputs:
        return outputs["classes"]
    return class_maps(outputs["logits"], size)


def _compare_logits(reference: dict, outputs: dict) -> dict:
    logits = (x["logits"] for x in (reference, outputs))
    found = parity.compare(*(x.reshape(-1, x.shape[-1]) for x in logits))
    return {**found, "agreement": found.pop("top1_agreement")}


def _compare_class_maps(reference: dict, outputs: dict) -> dict:
    same = _same_pixels(reference["classes"], outputs["classes"])
    # The part of the pixels that differ stands for the difference of the outputs.
    return {"max_abs": 1 - same, "max_abs_reference": 1.0, "agreement": same}


def _mean_iou(validation, outputs: dict) -> float:
    classes = len(validation.class_names)
    size = validation.images.shape[1]
    confusion = np.zeros((classes, classes), np.int64)
    # Image by image, since class maps are larger than logits.
    for index, mask in enumerate(validation.targets["full_mask"]):
        of_image = {name: x[index : index + 1] for name, x in outputs.items()}
        class_map = np.asarray(_class_maps_of(of_image, size))
        counts = TRAINING.statistics(
            validation.class_names, {"class_map": class_map}, {"full_mask": [mask]}
        )
        confusion += counts["confusion"]
    metrics = TRAINING.score(validation.class_names, {"confusion": confusion})
    return 100 * metrics["mIoU"]


LOGITS = Task(
    name="segmentation",
    training=TRAINING,
    num_classes=_num_classes,
    finish=_logits,
    reference=_logits,
    meanings={
        "logits": "one for each class in each cell, a pixel of the output stride"
    },
    compare=_compare_logits,
    metric="mIoU",
    score=_mean_iou,
    tolerance=lambda images: MIOU_TOLERANCE,
    formats=FORMATS_OF_PICTURES,
    limits=LIMITS,
)
CLASS_MAP = dataclasses.replace(
    LOGITS,
    finish=_class_map_on_a_phone,
    reference=_class_map,
    meanings={"classes": "the class of each pixel, counted from 0"},
    compare=_compare_class_maps,
    limits=CLASS_MAP_LIMITS,
    float_scopes=(f"{FINISH}/", "(Stateful)?PartitionedCall"),
    suffix="classmap",
)
BY_OUTPUT = {"logits": LOGITS, "classmap": CLASS_MAP}
