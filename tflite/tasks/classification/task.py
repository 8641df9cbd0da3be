"""Classification as a task of conversion: a number for each class."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit import classifier
from keras_mobilevit.classifier import output_activation
from keras_mobilevit.configs import CLASSIFIER_SIZE, get_variant
from tflite.tasks.outputs import returned_structure
from tflite.tasks.task import (
    CONVERTER_SCOPE,
    Output,
    OutputKind,
    Outputs,
    Task,
    TaskFamily,
)
from tflite.validation import parity
from train.tasks.classification.task import CLASSIFICATION as TRAINING

SCOPE = "probabilities"  # name scope of the added function


def output_name(model: keras.Model) -> str:
    """Returns `"logits"`, or `"probabilities"` after a softmax or a sigmoid."""
    return "logits" if output_activation(model) == "logits" else "probabilities"


def _postprocess(model: keras.Model, size: int) -> Callable[[list], dict]:
    name = output_name(model)
    return lambda outputs: dict(zip([name], outputs))


def _to_probabilities(model: keras.Model, size: int) -> Callable[[list], dict]:
    """Makes a function that converts logits to probabilities."""
    apply = tf.sigmoid if model.output_shape[-1] == 1 else tf.nn.softmax

    def to_probabilities(outputs: list) -> dict:
        (logits,) = outputs
        with tf.name_scope(SCOPE):
            return {"probabilities": apply(logits)}

    return to_probabilities


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


def _one_for_each_class(meaning: str) -> Output:
    return Output(meaning, OutputKind.CLASS_SCORES)


# These files return what the network returns.
SINGLE_LABEL = Task(
    name="classification",
    title="Image classifier",
    training=TRAINING,
    num_classes=lambda model: model.output_shape[-1],
    postprocess=_postprocess,
    reference=_postprocess,
    outputs={
        "logits": _one_for_each_class("one for each class"),
        "probabilities": _one_for_each_class("one for each class; they sum to 1"),
    },
    compare=_compare,
    metric="top1",
    score=_top1,
    tolerance=lambda images: 100 / images,  # one image
    limits={"int8": {"float": 1}},  # the last softmax or sigmoid
    crops=True,
)

# After a sigmoid any number of classes may be right, so there is no top-1 accuracy.
MULTI_LABEL = dataclasses.replace(
    SINGLE_LABEL,
    outputs={
        "probabilities": _one_for_each_class(
            "the probability of each class by itself (sigmoid); they do not sum to 1"
        )
    },
    compare=_compare_multi_label,
    metric="",
    excluded_formats=("int8-qat",),
)
ONE_CLASS = dataclasses.replace(
    MULTI_LABEL,
    outputs={
        "probabilities": _one_for_each_class(
            "the probability of the only class (sigmoid)"
        )
    },
)

# The last function is added to a network that returns logits. It stays in floats, see
# `quantize.integer_recipe`.
SOFTMAX_ADDED = dataclasses.replace(
    SINGLE_LABEL,
    postprocess=_to_probabilities,
    reference=_to_probabilities,
    float_scopes=(f"{SCOPE}/", CONVERTER_SCOPE),
)
SIGMOID_ADDED = dataclasses.replace(
    ONE_CLASS,
    postprocess=_to_probabilities,
    reference=_to_probabilities,
    float_scopes=(f"{SCOPE}/", CONVERTER_SCOPE),
)


def _is_classifier(model: keras.Model) -> bool:
    returned = returned_structure(model)
    return keras.utils.is_keras_tensor(returned) and len(returned.shape) == 2


def _choose(model: keras.Model, variant: str) -> Task:
    activation, classes = output_activation(model), model.output_shape[-1]
    if activation == "sigmoid":
        as_it_is = ONE_CLASS if classes == 1 else MULTI_LABEL
    else:
        as_it_is = SINGLE_LABEL
    if variant == "probabilities" and activation == "logits":
        return SIGMOID_ADDED if classes == 1 else SOFTMAX_ADDED
    if variant == "logits" and activation != "logits":
        raise ValueError(
            f"{model.name} ends in a {activation}, so its files return probabilities. "
            "Remove --output=logits, or build the model without its last activation."
        )
    return as_it_is


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
