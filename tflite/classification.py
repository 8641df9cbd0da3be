"""Classification as a task of conversion: a number for each class."""

import keras
import numpy as np

from keras_mobilevit.classifier import returns_probabilities
from tflite import parity
from tflite.task import Task
from train.classification import CLASSIFICATION as TRAINING


def output_name(model: keras.Model) -> str:
    """Returns `"probabilities"` if the model ends in a softmax, else `"logits"`."""
    return "probabilities" if returns_probabilities(model) else "logits"


def _named(model: keras.Model, size: int):
    name = output_name(model)
    return lambda outputs: dict(zip([name], outputs))


def _compare(reference: dict, outputs: dict) -> dict:
    (name,) = reference
    return parity.compare(reference[name], outputs[name], name == "probabilities")


def _top1(validation, outputs: dict) -> float:
    (scores,) = outputs.values()
    return float(100 * np.mean(scores.argmax(-1) == validation.targets["label"]))


CLASSIFICATION = Task(
    name="classification",
    training=TRAINING,
    num_classes=lambda model: model.output_shape[-1],
    finish=_named,
    reference=_named,
    meanings=dict.fromkeys(("logits", "probabilities"), "one for each class"),
    compare=_compare,
    metric="top1",
    score=_top1,
    tolerance=lambda images: 100 / images,  # one of them
    crops=True,
    formats=(
        "fp32",
        "fp16",
        "dynamic",
        "int8-mixed",
        "int8",
        "int8-qat",
        "coreml",
        "coreml-fp32",
        "coreml-int8",
        "coreml-palette6",
    ),
)
