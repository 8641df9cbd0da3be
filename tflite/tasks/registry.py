"""The table of the tasks of conversion. Importing it loads no Keras or TensorFlow.

To add a task, add a folder that defines a `TaskFamily`, and a row here.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from tflite.tasks.task import Task, TaskFamily


@dataclasses.dataclass(frozen=True)
class OutputFlag:
    """The flag of `tflite/convert.py` that chooses between a task's output variants.

    Several tasks may share a flag's name.

    Attributes:
        models: the models that it is for, in the plural.
        choices: names of the variants, the default first.
        in_package: the variant of a Core ML package; "" for the network's own outputs.
        in_raw_package: the variant of a Core ML package with `--raw_outputs`.
    """

    name: str
    models: str
    choices: tuple[str, ...]
    help_text: str
    in_package: str
    in_raw_package: str


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """One task.

    Attributes:
        location: `module:attribute` of its `TaskFamily`.
        model_prefix: beginning of the names of its models, before the backbone's name;
            `None` if it has no named models.
        published_weights: name of the published weights of these models.
        output_flag: `None` if there is only one output variant.
    """

    name: str
    location: str
    model_prefix: str | None = None
    published_weights: str = ""
    output_flag: OutputFlag | None = None

    def load(self) -> TaskFamily:
        """Imports the task's module."""
        module, _, attribute = self.location.partition(":")
        return getattr(importlib.import_module(module), attribute)


# The first row whose `matches` accepts a model is the model's task.
TASKS = [
    TaskRow(
        "detection",
        "tflite.tasks.detection.task:DETECTION",
        model_prefix="ssdlite_",
        published_weights="coco",
        output_flag=OutputFlag(
            "nms",
            models="detectors",
            choices=("builtin", "none"),
            help_text="Detectors, .tflite only. builtin: the file returns the detected "
            "objects; TFLite's own non-maximum suppression (NMS) is part of the file "
            "and runs on the CPU. none: the file returns the box and the scores of "
            "each anchor, and the application runs NMS. Default: builtin.",
            in_package="none",  # Core ML adds its own NMS after the network
            in_raw_package="none",
        ),
    ),
    TaskRow(
        "segmentation",
        "tflite.tasks.segmentation.task:SEGMENTATION",
        model_prefix="deeplabv3_",
        published_weights="voc",
        output_flag=OutputFlag(
            "output",
            models="segmenters",
            choices=("logits", "raw", "classmap"),
            help_text="Segmenters: logits at half the size of the image, which "
            "MediaPipe takes (logits, the default); logits at the output stride "
            "(raw); or the class of each pixel as a byte (classmap).",
            in_package="classmap",
            in_raw_package="raw",
        ),
    ),
    TaskRow(
        "classification",
        "tflite.tasks.classification.task:CLASSIFICATION",
        model_prefix="",
        published_weights="imagenet",
        output_flag=OutputFlag(
            "output",
            models="classifiers",
            choices=("probabilities", "logits"),
            help_text="Classifiers: probabilities (the default), which MediaPipe "
            "takes, or logits.",
            in_package="",  # Core ML adds its own softmax after the network
            in_raw_package="",
        ),
    ),
    TaskRow("outputs", "tflite.tasks.outputs:OUTPUTS"),
]


def output_flags() -> list[OutputFlag]:
    """Returns the flags that choose between output variants."""
    return [row.output_flag for row in TASKS if row.output_flag]


def split_name(model: str) -> tuple[TaskRow, str]:
    """Splits a model's name into its task's row and the name of the backbone."""
    prefixes = {row.model_prefix: row for row in TASKS if row.model_prefix is not None}
    prefix = max(filter(model.startswith, prefixes), key=len)
    return prefixes[prefix], model.removeprefix(prefix)


def row_of(model: keras.Model) -> TaskRow:
    """Returns the row of a model's task."""
    return next(row for row in TASKS if row.load().matches(model))


def task_of(model: keras.Model, variant: str = "") -> Task:
    """Returns the task of a model with an output variant.

    "" is the variant with the network's own outputs. It need not be the default of the
    flag.
    """
    return row_of(model).load().choose(model, variant)
