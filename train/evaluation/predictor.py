"""Loads the model that an evaluation measures, of any task, from any kind of file."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from keras_mobilevit.files import read_text
from keras_mobilevit.litert import LiteRTModel, read_card
from keras_mobilevit.preprocessing import largest_value
from keras_mobilevit.weights.load import load_model_file
from train.data.source import Source


@dataclasses.dataclass(frozen=True)
class Kind:
    """The models of a task.

    Attributes:
        noun: what one is called.
        published: the name of its published weights.
        is_one: tells whether a Keras model is one.
        num_classes: from a Keras model to the number of its classes.
        build: from a `TrainConfig` and a number of classes to a model for images of any
            size, with the weights that `config.weights` names.
        make_run: from a Keras model and the side of its images to a function, from
            images to what `LoadedModel.run` returns.
        file_classes: from what LiteRT tells of a file's outputs, by their names, to the
            number of classes, or `None` where only its card may know; raises a
            ValueError if they are not those of such a model.
        finish: from a file's outputs, `{name: [batch, ...]}`, and the side of its
            images to what `LoadedModel.run` returns.
    """

    noun: str
    published: str
    is_one: Callable[[keras.Model], bool]
    num_classes: Callable[[keras.Model], int]
    build: Callable
    make_run: Callable[[keras.Model, int], Callable]
    file_classes: Callable[[dict], int | None]
    finish: Callable[[dict, int], object]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that can be measured.

    Attributes:
        size: side of the images that it takes.
        run: from float32 images `[batch, size, size, 3]`, values in [0, 255], to what
            it says of them, in NumPy; what that is depends on the task.
    """

    size: int
    run: Callable[[np.ndarray], object]


def load(kind: Kind, config, source: Source) -> LoadedModel:
    """Loads the model that `config.weights` names, with its top.

    Args:
        kind: of model.
        config: a `TrainConfig`: `weights` (a published name, a weights file of `model`,
            a `.keras` or a `.tflite` file), what `kind.build` takes, and `eval_size`.
        source: its classes are those that the model must have.

    Returns:
        The `LoadedModel`.

    Raises:
        ValueError: if there are no such weights, or the model has other classes or
            takes images that are not square.
        OSError: if the published weights cannot be downloaded.
    """
    weights = config.weights
    if not weights:
        raise ValueError(
            f"An evaluation of a {kind.noun} takes --model: a .keras or .tflite file; "
            f"or --weights: {kind.published}, or a .safetensors, .pt or .weights.h5 "
            "file."
        )
    _check_labels(weights, source)
    if weights.endswith(".tflite"):
        return _load_file(kind, weights, source)
    if weights.endswith(".keras"):
        model = load_model_file(weights)
        if not kind.is_one(model):
            shapes = ", ".join(str(tuple(output.shape)) for output in model.outputs)
            raise ValueError(f"{weights} is no {kind.noun}: it returns {shapes}.")
    else:
        model = kind.build(config, len(source.class_names))
    _check_classes(kind.num_classes(model), weights, source)
    size = _side(model.input_shape, weights) or config.eval_size
    run, scale = kind.make_run(model, size), np.float32(largest_value(model) / 255)
    return LoadedModel(size, lambda images: run(images * scale))


def _load_file(kind: Kind, path: str, source: Source) -> LoadedModel:
    model, card = LiteRTModel(path, num_threads=os.cpu_count()), read_card(path)
    try:
        classes = kind.file_classes(model.outputs)
    except ValueError as error:
        raise ValueError(f"{path} is no {kind.noun}: {error}") from error
    if classes is None:
        classes = card.get("classes")
    if classes is not None:
        _check_classes(classes, path, source)
    size = _side(model.input_shape, path)
    scale = np.float32(card.get("input", {}).get("largest_value", 255) / 255)
    return LoadedModel(
        size, lambda images: kind.finish(model.predict(images * scale), size)
    )


def _labels_of(weights: str) -> tuple[Path, list[str]]:
    """Reads the class names beside a model: its training's, or a converted file's."""
    file = Path(weights).with_name("labels.txt")
    if weights.endswith((".keras", ".tflite")) and file.exists():
        return file, read_text(file).splitlines()
    card = Path(weights).with_suffix(".json")
    if weights.endswith(".tflite"):
        return card, read_card(weights).get("labels") or []
    return file, []


def _check_labels(weights: str, source: Source) -> None:
    file, labels = _labels_of(weights)
    if labels and labels != list(source.class_names):
        differing = sorted(set(labels) ^ set(source.class_names))
        listed = ", ".join(differing[:10]) + ", ..." * (len(differing) > 10)
        what = f"only one of both has {listed}" if differing else "in another order"
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


def _side(input_shape: tuple, weights: str) -> int | None:
    """Returns the side of the square images that a model takes; `None` for any."""
    height, width = input_shape[1:3]
    if height != width:
        raise ValueError(
            f"Evaluation is of square images, but {weights} takes {height}x{width} "
            "pixels."
        )
    return height
