"""Models that predict for one image, loaded from any kind of file."""

import dataclasses
import os
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.classifier import output_activation
from keras_mobilevit.deeplab import is_segmenter, without_auxiliary
from keras_mobilevit.detection import decode_outputs, non_max_suppression
from keras_mobilevit.litert import LiteRTModel, read_card
from keras_mobilevit.ssdlite import is_detector
from keras_mobilevit.value_range import input_max

CLASSIFIER, DETECTOR, SEGMENTER = "classifier", "detector", "segmenter"


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model of one of three kinds.

    Attributes:
        kind: `"classifier"`, `"detector"` or `"segmenter"`.
        sides: height and width of the images that it takes; `None` for any.
        classes: number of classes, `None` if unknown.
        is_multi_label: whether an image may have several classes, or none.
        run: takes an image, float32 `[height, width, 3]` with values in [0, 255]. Of a
            classifier it returns `probabilities` `[classes]`; of a detector `boxes`
            `[n, 4]`, `scores` `[n]` and `classes` `[n]`; of a segmenter `logits`
            `[rows, columns, classes]`, or `classes` `[height, width]`.
    """

    kind: str
    sides: tuple[int | None, int | None]
    classes: int | None
    is_multi_label: bool
    run: Callable[[np.ndarray], dict[str, np.ndarray]]


def _first(outputs: dict) -> dict[str, np.ndarray]:
    """Returns the outputs for the first image of a batch."""
    return {name: ops.convert_to_numpy(x)[0] for name, x in outputs.items()}


def _suppress(boxes, scores) -> dict[str, np.ndarray]:
    """Returns the objects on the only image of a batch."""
    found = _first(non_max_suppression(boxes, scores))
    return {name: x[found["classes"] >= 0] for name, x in found.items()}


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Converts logits `[1, classes]`; a single one to the probability of its class."""
    apply = ops.sigmoid if logits.shape[-1] == 1 else ops.softmax
    return ops.convert_to_numpy(apply(logits))


# Keras models -------------------------------------------------------------------------


def keras_predictor(model: keras.Model, name: str) -> Predictor:
    """Makes the predictor of a Keras model; `name` is used in messages.

    Raises a ValueError if it is not a classifier, a detector or a segmenter.
    """
    if is_segmenter(model):
        model = without_auxiliary(model)
    scale = np.float32(input_max(model) / 255)

    def outputs_of(image: np.ndarray):
        return model.predict(image[None] * scale, verbose=0)

    def find_objects(image: np.ndarray) -> dict[str, np.ndarray]:
        anchors = anchor_boxes(*image.shape[:2])
        return _suppress(*decode_outputs(outputs_of(image), anchors))

    def classify(image: np.ndarray) -> dict[str, np.ndarray]:
        scores = outputs_of(image)
        if output_activation(model) == "logits":
            scores = _probabilities(scores)
        return {"probabilities": scores[0]}

    def segment(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": outputs_of(image)[0]}

    is_multi_label = False
    if is_detector(model):
        kind, run = DETECTOR, find_objects
        classes = model.output["logits"].shape[-1] - 1
    elif is_segmenter(model):
        kind, run, classes = SEGMENTER, segment, model.output_shape[-1]
    else:
        _check_classifier(model, name)
        kind, run, classes = CLASSIFIER, classify, model.output_shape[-1]
        is_multi_label = classes > 1 and output_activation(model) == "sigmoid"
    return Predictor(kind, model.input_shape[1:3], classes, is_multi_label, run)


def _check_classifier(model: keras.Model, name: str) -> None:
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(
            f"{name} is not a classifier, a detector or a segmenter. Expected the "
            f"output shape (None, classes). Received: {shape}."
        )


# Files of LiteRT ----------------------------------------------------------------------


def file_predictor(path: str) -> Predictor:
    """Makes the predictor of a `.tflite` file that `tflite/convert.py` wrote.

    Raises a ValueError if its outputs are those of no classifier, detector or segmenter
    of this project.
    """
    model, card = LiteRTModel(path, os.cpu_count() or 1), read_card(path)
    scale = np.float32(card.get("input", {}).get("largest_value", 255) / 255)
    shapes = {name: tuple(map(int, x["shape"])) for name, x in model.outputs.items()}
    ranks = {name: len(shape) for name, shape in shapes.items()}

    def outputs_of(image: np.ndarray) -> dict[str, np.ndarray]:
        return model.predict(image[None] * scale)

    def classify(image: np.ndarray) -> dict[str, np.ndarray]:
        ((name, scores),) = outputs_of(image).items()
        return _first(
            {"probabilities": _probabilities(scores)}
            if name == "logits"
            else {name: scores}
        )

    def find_objects(image: np.ndarray) -> dict[str, np.ndarray]:
        found = outputs_of(image)
        if "classes" not in found:
            return _suppress(found["boxes"], found["scores"])
        found = _first({name: found[name] for name in ("boxes", "scores", "classes")})
        found["classes"] = found["classes"].astype(np.int32)
        return {name: x[found["classes"] >= 0] for name, x in found.items()}

    def segment(image: np.ndarray) -> dict[str, np.ndarray]:
        return _first(outputs_of(image))

    _, height, width, _ = model.input_shape
    classes = card.get("classes")
    if ranks in ({"logits": 2}, {"probabilities": 2}):
        (shape,) = shapes.values()
        is_multi_label = shape[-1] > 1 and card.get("activation") == "sigmoid"
        return Predictor(
            CLASSIFIER, (height, width), shape[-1], is_multi_label, classify
        )
    if {"boxes", "scores"} <= set(ranks):
        if ranks["scores"] == 3:
            classes = shapes["scores"][-1]
        return Predictor(DETECTOR, (height, width), classes, False, find_objects)
    if ranks in ({"logits": 4}, {"classes": 3}):
        if "logits" in shapes:
            classes = shapes["logits"][-1]
        return Predictor(SEGMENTER, (height, width), classes, False, segment)
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(
        f"{path} returns {found}. Expected a file of tflite/convert.py: a classifier "
        "with logits or probabilities, a detector with boxes and scores, or a "
        "segmenter with logits or classes."
    )
