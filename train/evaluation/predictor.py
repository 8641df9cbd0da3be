"""Loads the model that an evaluation measures, for any task, from any kind of file."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from keras_mobilevit.files import read_lines
from keras_mobilevit.image_models import to_channels
from keras_mobilevit.litert import LiteRTModel, read_card
from keras_mobilevit.value_range import input_max
from keras_mobilevit.weights.file_formats import load_model_file
from train.config import TrainConfig
from train.data.source import Source
from train.step import as_float32
from train.tasks.task import ModelKind, Task


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Makes the task's predictions of `[batch, size, size, 3]`, values in [0, 255]."""

    size: int
    predict: Callable[[tf.Tensor], dict[str, np.ndarray]]


def load_predictor(task: Task, config: TrainConfig, source: Source) -> Predictor:
    """Loads the model that `config.weights` names, with its head."""
    kind, weights = task.model_kind, config.weights
    if not weights:
        raise ValueError(
            f"An evaluation of a {kind.noun} takes --model: a .keras or .tflite file; "
            f"or --weights: {kind.published}, or a .safetensors, .pt or .weights.h5 "
            "file."
        )
    _check_labels(weights, source)
    if weights.endswith(".tflite"):
        return _file_predictor(kind, weights, source)
    if weights.endswith(".keras"):
        model = load_model_file(weights)
        if not kind.is_one(model):
            shapes = ", ".join(str(tuple(output.shape)) for output in model.outputs)
            raise ValueError(f"{weights} is not a {kind.noun}: it returns {shapes}.")
    else:
        model = kind.build(config, len(source.class_names))
    _check_classes(kind.num_classes(model), weights, source)
    size = _side(model.input_shape, weights) or config.eval_size
    return keras_predictor(task, model, size)


def keras_predictor(task: Task, model: keras.Model, size: int) -> Predictor:
    """Makes the predictor of a Keras model that takes images of `size`."""
    kind = task.model_kind
    make_predictions = kind.keras_predictions
    predictions = make_predictions(model) if make_predictions else task.predictions
    scale = np.float32(input_max(model) / 255)

    @tf.function(autograph=False)
    def run(images):
        outputs = model(images * scale, training=False)
        return predictions(as_float32(outputs), size)

    def predict(images: tf.Tensor) -> dict[str, np.ndarray]:
        given = to_channels(np.asarray(images, np.float32), model.input_shape[-1])
        return _in_numpy(run(tf.constant(given)))

    return Predictor(size, predict)


def _file_predictor(kind: ModelKind, path: str, source: Source) -> Predictor:
    model, card = LiteRTModel(path, num_threads=os.cpu_count() or 1), read_card(path)
    try:
        classes = kind.file_classes(model.outputs)
    except ValueError as error:
        raise ValueError(f"{path} is not a {kind.noun}: {error}") from error
    if classes is None:
        classes = card.get("classes")
    if classes is not None:
        _check_classes(classes, path, source)
    size = _side(model.input_shape, path)
    if "input" not in card:
        logging.warning(
            "%s has no card. Assumed: it takes values in [0, 255], and its classes are "
            "in the order of %s.",
            path,
            source.name,
        )
    scale = np.float32(card.get("input", {}).get("largest_value", 255) / 255)
    channels = model.input_shape[-1]

    def predict(images: tf.Tensor) -> dict[str, np.ndarray]:
        given = to_channels(np.asarray(images, np.float32), channels)
        outputs = model.predict(given * scale)
        return _in_numpy(kind.file_predictions(outputs, size, card))

    return Predictor(size, predict)


def _in_numpy(predictions: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in predictions.items()}


def _labels_of(weights: str) -> tuple[Path, list[str]]:
    """Reads the class names in a converted file, or those beside a model."""
    file = Path(weights).with_name("labels.txt")
    if weights.endswith(".tflite"):
        card = read_card(weights)
        if labels := card.get("class_names") or card.get("labels"):
            return Path(weights), labels
    if weights.endswith((".keras", ".tflite")) and file.exists():
        return file, read_lines(file)
    return file, []


def _check_labels(weights: str, source: Source) -> None:
    file, labels = _labels_of(weights)
    if labels and labels != list(source.class_names):
        differing = sorted(set(labels) ^ set(source.class_names))
        listed = ", ".join(differing[:10]) + ", ..." * (len(differing) > 10)
        what = f"only one of them has {listed}" if differing else "in another order"
        raise ValueError(
            f"{weights} was trained on other classes than {source.name} has, see "
            f"{file}: {what}."
        )


def _check_classes(found: int, weights: str, source: Source) -> None:
    classes = len(source.class_names)
    if found != classes:
        raise ValueError(
            f"{weights} has {found} classes, but {source.name} has {classes}."
        )


def _side(input_shape: tuple, weights: str) -> int:
    """Returns the side of the square images that a model takes; `None` for any."""
    height, width = input_shape[1:3]
    if height != width:
        raise ValueError(
            "Evaluation takes models with square images, but the images of "
            f"{weights} have {height}x{width} pixels."
        )
    return height
