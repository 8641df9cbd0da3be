"""The classifier: how it is built, and how classifiers in files are read."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from keras_mobilevit.classifier import build_classifier, output_activation
from keras_mobilevit.configs import get_variant
from train.config import TrainConfig
from train.data.source import Source
from train.tasks.classification.metric import best_classes
from train.tasks.task import ModelKind


def build(config: TrainConfig, source: Source) -> keras.Model:
    """Builds the classifier to train; see `train.tasks.task.Task.build_model`."""
    return build_classifier(
        get_variant(config.model),
        input_shape=(None, None, 3),
        classes=len(source.class_names),
        classifier_activation=None,
    )


def _build_with_weights(config: TrainConfig, classes: int) -> keras.Model:
    return build_classifier(
        get_variant(config.model),
        weights=config.weights,
        input_shape=(None, None, 3),
        classes=classes,
    )


def _num_classes(units: int) -> int:
    """Returns the number of classes of a head: one unit tells two classes apart."""
    return max(units, 2)


def _two_scores(scores: tf.Tensor, are_probabilities: bool) -> tf.Tensor:
    """Adds the score of the first class if one unit scores only the second class.

    Keras numbers the classes of a binary classifier in this order.
    """
    if scores.shape[-1] > 1:
        return scores
    middle = 0.5 if are_probabilities else 0.0
    return tf.concat([2 * middle - scores, scores], axis=-1)


def _keras_predictions(model: keras.Model) -> Callable:
    activation = output_activation(model)
    if model.output_shape[-1] == 1:
        logging.info("one output: the probability of the second of two classes")
    elif activation == "sigmoid":
        logging.warning(
            "The model ends in a sigmoid, which gives each class a probability of its "
            "own. Each image has one class here: the prediction counts as correct if "
            "that class has the highest probability."
        )
    are_probabilities = activation != "logits"

    def predictions(outputs, size) -> dict:
        return {"best": best_classes(_two_scores(outputs, are_probabilities))}

    return predictions


def _file_classes(outputs: dict) -> int:
    shapes = [tuple(map(int, output["shape"])) for output in outputs.values()]
    if [len(shape) for shape in shapes] != [2]:
        raise ValueError(f"it returns {', '.join(map(str, shapes))}.")
    (name,) = outputs
    if shapes[0][-1] == 1 and name not in ("logits", "probabilities"):
        raise ValueError(
            f"it returns one number, {name}, which may be a probability or a logit. "
            "Expected the name probabilities or logits, as tflite/convert.py writes "
            "them."
        )
    return _num_classes(shapes[0][-1])


def _file_predictions(outputs: dict[str, np.ndarray], size: int, card: dict) -> dict:
    ((name, scores),) = outputs.items()
    return {"best": best_classes(_two_scores(tf.constant(scores), name != "logits"))}


def _check(predictions: dict[str, np.ndarray], source: Source) -> None:
    if (predictions["best"] < 0).any():
        raise ValueError("The model's outputs are not finite numbers.")


CLASSIFIER = ModelKind(
    noun="classifier",
    published="imagenet",
    batch_size=64,  # 20 MB an image for MobileViT_S at 256
    is_one=lambda model: [len(output.shape) for output in model.outputs] == [2],
    num_classes=lambda model: _num_classes(model.output_shape[-1]),
    build=_build_with_weights,
    file_classes=_file_classes,
    file_predictions=_file_predictions,
    keras_predictions=_keras_predictions,
    check=_check,
)
