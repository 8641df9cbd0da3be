"""Classification as a task of conversion: a number for each class."""

import dataclasses

import keras
import numpy as np

from keras_mobilevit.classifier import output_activation
from tflite.tasks.task import Task
from tflite.validation import parity
from train.tasks.classification.task import CLASSIFICATION as TRAINING


def output_name(model: keras.Model) -> str:
    """Returns `"logits"`, or `"probabilities"` after a softmax or a sigmoid."""
    return "logits" if output_activation(model) == "logits" else "probabilities"


def _named(model: keras.Model, size: int):
    name = output_name(model)
    return lambda outputs: dict(zip([name], outputs))


def _compare(reference: dict, outputs: dict) -> dict:
    (name,) = reference
    return parity.compare(reference[name], outputs[name], name == "probabilities")


def _compare_labels(reference: dict, outputs: dict) -> dict:
    """Compares which classes are more likely than not, in place of the best."""
    found = _compare(reference, outputs)
    del found["top1_agreement"]
    ours, theirs = (x["probabilities"] > 0.5 for x in (reference, outputs))
    return {**found, "label_agreement": float(np.mean(ours == theirs))}


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

# After a sigmoid each class is there or not by itself: there is no best one, and the
# data has but one for each image.
MULTI_LABEL = dataclasses.replace(
    CLASSIFICATION,
    meanings={
        "probabilities": "the probability of each class by itself; they do not sum to 1"
    },
    compare=_compare_labels,
    metric="",
    formats=tuple(name for name in CLASSIFICATION.formats if name != "int8-qat"),
)
ONE_CLASS = dataclasses.replace(
    MULTI_LABEL, meanings={"probabilities": "the probability of the only class"}
)


def classification_of(model: keras.Model) -> Task:
    """Returns the task of a classifier, by what it returns."""
    if output_activation(model) != "sigmoid":
        return CLASSIFICATION
    return ONE_CLASS if model.output_shape[-1] == 1 else MULTI_LABEL
