"""Measures any detector on any source by COCO's rules."""

import dataclasses
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.detection import detect, non_max_suppression
from keras_mobilevit.preprocessing import largest_value
from keras_mobilevit.ssdlite import SSDLite, is_detector
from keras_mobilevit.weights import load_model_file
from train.coco import METRICS
from train.data import eval_batches, unreadable
from train.evaluation import check_labels
from train.litert import LiteRTModel, read_card
from train.sources import Source

BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Detector:
    """A model of any kind.

    Attributes:
        size: side of the images that it takes.
        detect: from float32 images `[batch, size, size, 3]`, values in [0, 255], to
            what `keras_mobilevit.detect` returns, in NumPy.
    """

    size: int
    detect: Callable[[np.ndarray], dict[str, np.ndarray]]


def _in_numpy(found: dict) -> dict[str, np.ndarray]:
    return {name: keras.ops.convert_to_numpy(x) for name, x in found.items()}


# A thousand small steps an image, which are slow one by one.
_suppress = tf.function(non_max_suppression, autograph=False, reduce_retracing=True)


def suppressed(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the objects that a converted file found.

    Args:
        outputs: `{name: [images, ...]}`: `boxes` and `scores` of every anchor; or what
            this function returns, of a file that holds the suppression.

    Returns:
        What `keras_mobilevit.detect` returns, in NumPy.
    """
    if "classes" in outputs:
        return outputs
    # Image by image: a batch's candidates of 80 classes take much memory.
    rows = [
        _in_numpy(_suppress(tf.constant(boxes[None]), tf.constant(scores[None])))
        for boxes, scores in zip(outputs["boxes"], outputs["scores"])
    ]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def load_detector(config, source: Source) -> Detector:
    """Loads the detector that `config.weights` names.

    Args:
        config: a `TrainConfig`: `weights` (`coco`, a weights file of a detector on
            `model`, a `.keras` or a `.tflite` file), `model` and `eval_size`.
        source: its classes are those that the detector must have.

    Returns:
        The `Detector`.

    Raises:
        ValueError: if there are no such weights, or the model has other classes.
        OSError: if the published weights cannot be downloaded.
    """
    weights, classes = config.weights, len(source.class_names)
    if not weights:
        raise ValueError(
            "An evaluation of detection takes --model: a .keras or .tflite file; or "
            "--weights: coco, or a .safetensors, .pt or .weights.h5 file."
        )
    check_labels(weights, source)
    if weights.endswith(".tflite"):
        return _converted_detector(weights, source)
    if weights.endswith(".keras"):
        model = load_model_file(weights)
        if not is_detector(model):
            raise ValueError(f"{weights} is no detector, but of another task.")
        _check_classes(model.output["logits"].shape[-1] - 1, weights, source)
    else:
        shape = (None, None, 3)
        model = SSDLite(config.model, classes, weights=weights, input_shape=shape)
    height, width = model.input_shape[1:3]
    if height != width:
        raise ValueError(
            f"Evaluation is of square images, but {weights} takes {height}x{width} "
            "pixels."
        )
    return _keras_detector(model, height or config.eval_size)


def _check_classes(found: int, weights: str, source: Source) -> None:
    classes = len(source.class_names)
    if found != classes:
        raise ValueError(
            f"{weights} has {found} classes, but {source.name} has {classes}."
        )


def _keras_detector(model: keras.Model, size: int) -> Detector:
    anchors = anchor_boxes(size, size)
    scale = tf.constant(largest_value(model) / 255, tf.float32)
    run = tf.function(
        lambda images: detect(model(images * scale, training=False), anchors),
        autograph=False,
        reduce_retracing=True,  # the last batch is smaller
    )
    return Detector(size, lambda images: _in_numpy(run(images)))


def _converted_detector(path: str, source: Source) -> Detector:
    model, card = LiteRTModel(path, num_threads=os.cpu_count()), read_card(path)
    if not {"boxes", "scores"} <= set(model.outputs):
        raise ValueError(
            f"{path} returns {', '.join(model.outputs)}. Expected a detector's boxes "
            "and scores, as tflite/convert.py writes them."
        )
    if "classes" not in model.outputs:  # with suppression inside the card alone knows
        _check_classes(int(model.outputs["scores"]["shape"][-1]), path, source)
    scale = np.float32(card.get("input", {}).get("largest_value", 255) / 255)
    return Detector(
        model.input_shape[1], lambda images: suppressed(model.predict(images * scale))
    )


def evaluate_detector(
    detector: Detector, source: Source, task
) -> tuple[dict, list[str]]:
    """Runs a detector over the validation split.

    Args:
        detector: what to evaluate.
        source: where the images come from.
        task: of detection: its examples and score.

    Returns:
        The metrics of `train.coco.average_precision`, and the names of the images that
        could not be read.

    Raises:
        ValueError: if no image can be read.
    """
    batches = eval_batches(
        source, "validation", detector.size, BATCH_SIZE, 1.0, load=task.eval_example
    )
    rows, skipped = [], []
    count = source.num_examples["validation"]
    with tqdm(total=count, unit="img", disable=None, leave=False) as progress:
        for batch in batches:
            skipped += unreadable(batch)
            del batch["id"]
            real = batch.pop("weight").numpy() > 0
            batch = {name: x.numpy()[real] for name, x in batch.items()}
            images = batch.pop("image").astype(np.float32)
            if len(images):
                targets = {f"true_{name}": x for name, x in batch.items()}
                rows.append(detector.detect(images) | targets)
            progress.update(len(images))
    if not rows:
        raise ValueError(f"None of the validation images of {source.name} can be read.")
    joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return task.score(source.class_names, joined), skipped


def format_metrics(metrics: dict, skipped: list[str], class_names, size: int) -> str:
    """Lays metrics out as text: a line for each class, then all of them."""

    def percent(name: str) -> str:
        value = metrics[name]
        return f"{100 * value:.2f}" if value >= 0 else "-"

    width = max(len(name) for name in (*class_names, "class"))
    lines = [f"{'class':<{width}}      AP    AP50"]
    rows = [(name, f"AP/{name}", f"AP50/{name}") for name in class_names]
    for name, *columns in (*rows, ("all", "AP", "AP50")):
        lines.append(
            f"{name:<{width}}  " + "  ".join(f"{percent(x):>6}" for x in columns)
        )
    others = ", ".join(f"{x} {percent(x)}" for x in METRICS if x not in ("AP", "AP50"))
    lines += [others, f"at {size}x{size} pixels, in percent, by COCO's rules"]
    return "\n".join([*lines, *(f"skipped, cannot be read: {x}" for x in skipped)])
