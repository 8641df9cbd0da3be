"""Models that predict for one image, loaded from any kind of file."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mobilevit.anchors import anchors_of_count
from keras_mobilevit.backend import Tensor, resize_bilinear
from keras_mobilevit.classifier import output_activation
from keras_mobilevit.deeplab import is_segmenter, without_auxiliary
from keras_mobilevit.detection import (
    SCORE_THRESHOLD,
    decode_outputs,
    non_max_suppression,
)
from keras_mobilevit.litert import LiteRTModel, read_card
from keras_mobilevit.ssdlite import is_detector
from keras_mobilevit.value_range import input_max

_GRAY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's "L"
CLASSIFIER, DETECTOR, SEGMENTER = "classifier", "detector", "segmenter"


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """A model of one of three kinds.

    Attributes:
        kind: `"classifier"`, `"detector"` or `"segmenter"`.
        sides: height and width of the images that it takes; `None` for any.
        classes: number of classes, `None` if unknown.
        run: takes an image, float32 `[height, width, 3]` with values in [0, 255]. Of a
            classifier it returns `probabilities` `[classes]`; of a detector `boxes`
            `[n, 4]`, `scores` `[n]` and `classes` `[n]`; of a segmenter `logits`
            `[rows, columns, classes]`, or `classes` `[height, width]`.
        is_multi_label: whether an image may have several classes, or none.
    """

    kind: str
    sides: tuple[int | None, int | None]
    classes: int | None
    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    is_multi_label: bool = False


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Converts RGB images `[..., 3]` to the number of channels that a model takes."""
    return np.round(images @ _GRAY)[..., None] if channels == 1 else images


def _first(outputs: dict) -> dict[str, np.ndarray]:
    """Returns the outputs for the first image of a batch."""
    return {name: ops.convert_to_numpy(x)[0] for name, x in outputs.items()}


def _suppress(boxes: Tensor, scores: Tensor, min_score: float) -> dict[str, np.ndarray]:
    """Returns the objects on the only image of a batch."""
    found = _first(non_max_suppression(boxes, scores, score_threshold=min_score))
    return {name: x[found["classes"] >= 0] for name, x in found.items()}


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Converts logits `[1, classes]`; a single one to the probability of its class."""
    apply = ops.sigmoid if logits.shape[-1] == 1 else ops.softmax
    return ops.convert_to_numpy(apply(logits))


# Keras models -------------------------------------------------------------------------


def image_model_from_keras(
    model: keras.Model, name: str, min_score: float = SCORE_THRESHOLD
) -> ImageModel:
    """Makes the `ImageModel` of a Keras model.

    Args:
        model: a classifier, a detector or a segmenter.
        name: name of the model in messages.
        min_score: score that an object must exceed, in [0, 1].

    Raises:
        ValueError: if it is another kind of model.
    """
    if is_segmenter(model):
        model = without_auxiliary(model)
    channels = model.input_shape[-1]
    scale = np.float32(input_max(model) / 255)

    def outputs_of(image: np.ndarray) -> Any:
        return model.predict(to_channels(image, channels)[None] * scale, verbose=0)

    if is_detector(model):
        return _keras_detector(model, outputs_of, min_score)
    if is_segmenter(model):
        return ImageModel(
            SEGMENTER,
            model.input_shape[1:3],
            model.output_shape[-1],
            lambda image: {"logits": outputs_of(image)[0]},
        )
    return _keras_classifier(model, outputs_of, name)


def _keras_detector(
    model: keras.Model, outputs_of: Callable, min_score: float
) -> ImageModel:
    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        outputs = outputs_of(image)
        height, width = image.shape[:2]
        anchors = anchors_of_count(height, width, outputs["offsets"].shape[1])
        return _suppress(*decode_outputs(outputs, anchors), min_score)

    classes = model.output["logits"].shape[-1] - 1
    return ImageModel(DETECTOR, model.input_shape[1:3], classes, run)


def _keras_classifier(
    model: keras.Model, outputs_of: Callable, name: str
) -> ImageModel:
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(
            f"{name} is not a classifier, a detector or a segmenter. Expected the "
            f"output shape (None, classes). Received: {shape}."
        )
    activation, classes = output_activation(model), shape[-1]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        scores = outputs_of(image)
        scores = _probabilities(scores) if activation == "logits" else scores
        return {"probabilities": scores[0]}

    is_multi_label = classes > 1 and activation == "sigmoid"
    return ImageModel(CLASSIFIER, model.input_shape[1:3], classes, run, is_multi_label)


# Files of LiteRT ----------------------------------------------------------------------


def image_model_from_file(path: str, min_score: float = SCORE_THRESHOLD) -> ImageModel:
    """Makes the `ImageModel` of a `.tflite` file that `tflite/convert.py` wrote.

    Args:
        path: path of the file.
        min_score: score that an object must exceed, in [0, 1].

    Raises:
        ValueError: if its outputs are not those of a classifier, a detector or a
            segmenter of this project.
    """
    model, card = LiteRTModel(path, os.cpu_count() or 1), read_card(path)
    if len(model.input_shape) != 4 or model.input_shape[-1] not in (1, 3):
        raise ValueError(
            f"{path} takes {model.input_shape}. Expected one image: (1, height, width, "
            "3), or 1 channel for a gray one."
        )
    _, height, width, channels = model.input_shape
    scale = np.float32(card.get("input", {}).get("largest_value", 255) / 255)

    def outputs_of(image: np.ndarray) -> dict[str, np.ndarray]:
        return model.predict(to_channels(image, channels)[None] * scale)

    shapes = {name: tuple(map(int, x["shape"])) for name, x in model.outputs.items()}
    ranks = {name: len(shape) for name, shape in shapes.items()}
    sides, classes = (height, width), card.get("classes")
    if ranks in ({"logits": 2}, {"probabilities": 2}):
        return _classifier_of_file(outputs_of, sides, shapes, card)
    if {"boxes", "scores"} <= set(ranks):
        return _detector_of_file(outputs_of, sides, shapes, classes, min_score)
    if ranks in ({"logits": 4}, {"classes": 3}):
        if "logits" in shapes:
            classes = shapes["logits"][-1]
        return _segmenter_of_file(outputs_of, sides, classes, card)
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(
        f"{path} returns {found}. Expected a file of tflite/convert.py: a classifier "
        "with logits or probabilities, a detector with boxes and scores, or a "
        "segmenter with logits or classes."
    )


def _classifier_of_file(
    outputs_of: Callable, sides: tuple, shapes: dict, card: dict
) -> ImageModel:
    ((name, (_, classes)),) = shapes.items()

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        scores = outputs_of(image)[name]
        scores = _probabilities(scores) if name == "logits" else scores
        return {"probabilities": scores[0]}

    is_multi_label = classes > 1 and card.get("activation") == "sigmoid"
    return ImageModel(CLASSIFIER, sides, classes, run, is_multi_label)


def _segmenter_of_file(
    outputs_of: Callable, sides: tuple, classes: int | None, card: dict
) -> ImageModel:
    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        found = outputs_of(image)
        # As the network would resize them.
        if "logits" in found and card.get("align_corners"):
            height, width = sides
            found["logits"] = resize_bilinear(found["logits"], height, width, True)
        return _first(found)

    return ImageModel(SEGMENTER, sides, classes, run)


def _detector_of_file(
    outputs_of: Callable,
    sides: tuple,
    shapes: dict,
    classes: int | None,
    min_score: float,
) -> ImageModel:
    if "classes" not in shapes:  # every anchor is returned

        def run(image: np.ndarray) -> dict[str, np.ndarray]:
            found = outputs_of(image)
            return _suppress(found["boxes"], found["scores"], min_score)

        return ImageModel(DETECTOR, sides, shapes["scores"][-1], run)
    if min_score < SCORE_THRESHOLD:
        raise ValueError(
            f"The file returns objects that score more than {SCORE_THRESHOLD}. "
            f"Received: a lowest score of {min_score}. Files of --nms=none have all."
        )

    def run_listed(image: np.ndarray) -> dict[str, np.ndarray]:
        found = _first(outputs_of(image))
        labels, scores = found["classes"].astype(np.int32), found["scores"]
        is_found = (labels >= 0) & (scores > min_score)
        listed = {"boxes": found["boxes"], "scores": scores, "classes": labels}
        return {name: x[is_found] for name, x in listed.items()}

    return ImageModel(DETECTOR, sides, classes, run_listed)
