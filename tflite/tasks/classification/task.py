"""Classification as a task of conversion: a number for each class."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from keras_mobilevit import classifier
from keras_mobilevit.classifier import output_activation
from keras_mobilevit.configs import CLASSIFIER_SIZE, get_variant
from tflite.tasks.outputs import returned_structure
from tflite.tasks.task import Outputs, Task, TaskFamily
from tflite.validation import parity
from train.tasks.classification.task import CLASSIFICATION as TRAINING


def output_name(model: keras.Model) -> str:
    """Returns `"logits"`, or `"probabilities"` after a softmax or a sigmoid."""
    return "logits" if output_activation(model) == "logits" else "probabilities"


def _postprocess(model: keras.Model, size: int) -> Callable[[list], dict]:
    name = output_name(model)
    return lambda outputs: dict(zip([name], outputs))


def _compare(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    (name,) = reference
    return parity.compare(reference[name], outputs[name], name == "probabilities")


def _compare_multi_label(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    """Compares which classes have a probability above one half."""
    found = _compare(reference, outputs)
    del found["top1_agreement"]
    expected, actual = (x["probabilities"] > 0.5 for x in (reference, outputs))
    return {**found, "label_agreement": float(np.mean(expected == actual))}


def _top1(validation, outputs: Outputs) -> float:
    (scores,) = outputs.values()
    return float(100 * np.mean(scores.argmax(-1) == validation.targets["label"]))


SINGLE_LABEL = Task(
    name="classification",
    training=TRAINING,
    num_classes=lambda model: model.output_shape[-1],
    postprocess=_postprocess,
    reference=_postprocess,
    meanings=dict.fromkeys(("logits", "probabilities"), "one for each class"),
    compare=_compare,
    metric="top1",
    score=_top1,
    tolerance=lambda images: 100 / images,  # one image
    crops=True,
)

# After a sigmoid any number of classes may be right, so there is no top-1 accuracy.
MULTI_LABEL = dataclasses.replace(
    SINGLE_LABEL,
    meanings={
        "probabilities": "the probability of each class by itself; they do not sum to 1"
    },
    compare=_compare_multi_label,
    metric="",
    excluded_formats=("int8-qat",),
)
ONE_CLASS = dataclasses.replace(
    MULTI_LABEL, meanings={"probabilities": "the probability of the only class"}
)


def _is_classifier(model: keras.Model) -> bool:
    returned = returned_structure(model)
    return keras.utils.is_keras_tensor(returned) and len(returned.shape) == 2


def _choose(model: keras.Model, variant: str) -> Task:
    if output_activation(model) != "sigmoid":
        return SINGLE_LABEL
    return ONE_CLASS if model.output_shape[-1] == 1 else MULTI_LABEL


def _build_model(backbone: str, weights, input_shape) -> keras.Model:
    return classifier.build_classifier(
        get_variant(backbone),
        weights=weights,
        input_shape=input_shape,
        classifier_activation=None,
    )


CLASSIFICATION = TaskFamily(
    matches=_is_classifier,
    choose=_choose,
    default_size=CLASSIFIER_SIZE,
    build_model=_build_model,
)
