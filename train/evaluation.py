"""Measures any classifier on any source: whole, and class by class."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from keras_mobilevit.classifier import build_classifier
from keras_mobilevit.configs import get_config
from keras_mobilevit.preprocessing import largest_value
from keras_mobilevit.weights import load_model_file
from train.data import eval_batches, unreadable
from train.litert import LiteRTModel, read_card
from train.sources import Source

BATCH_SIZE = 64  # what fits in memory: 20 MB an image for MobileViT_S at 256


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model of any kind.

    Attributes:
        size: side of the images that it takes.
        scores: from float32 images `[batch, size, size, 3]`, values in [0, 255], to
            logits or probabilities `[batch, classes]`.
    """

    size: int
    scores: Callable[[np.ndarray], np.ndarray]


def load_predictor(config, source: Source) -> Predictor:
    """Loads the classifier that `config.weights` names, with its top.

    Args:
        config: a `TrainConfig`: `weights` (`imagenet`, a weights file of `model`, a
            `.keras` or a `.tflite` file), `model` and `eval_size`.
        source: its classes are those that the model must have.

    Returns:
        The `Predictor`.

    Raises:
        ValueError: if there are no such weights, or the model has other classes.
        OSError: if the published weights cannot be downloaded.
    """
    if not config.weights:
        raise ValueError(
            "An evaluation takes --model: a .keras or .tflite file; or --weights: "
            "imagenet, or a .safetensors, .pt or .weights.h5 file."
        )
    check_labels(config.weights, source)
    if config.weights.endswith(".tflite"):
        litert = LiteRTModel(config.weights, num_threads=os.cpu_count())
        shapes = [tuple(map(int, x["shape"])) for x in litert.outputs.values()]
        _check_output(shapes, source, config.weights)
        largest = read_card(config.weights).get("input", {}).get("largest_value", 255)

        def litert_scores(images: np.ndarray) -> np.ndarray:
            (scores,) = litert.predict(images * np.float32(largest / 255)).values()
            return scores

        return Predictor(_side(litert.input_shape, config), litert_scores)
    if config.weights.endswith(".keras"):
        model = load_model_file(config.weights)
        shapes = [tuple(output.shape) for output in model.outputs]
        _check_output(shapes, source, config.weights)
    else:
        model = build_classifier(
            get_config(config.model),
            weights=config.weights,
            input_shape=(None, None, 3),
            classes=len(source.class_names),
        )
    scale = largest_value(model) / 255

    def scores(images: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict_on_batch(images * np.float32(scale)))

    return Predictor(_side(model.input_shape, config), scores)


def _labels_of(weights: str) -> tuple[Path, list[str]]:
    """Reads the class names beside a model: its training's, or a converted file's."""
    file = Path(weights).with_name("labels.txt")
    if weights.endswith((".keras", ".tflite")) and file.exists():
        return file, file.read_text().splitlines()
    card = Path(weights).with_suffix(".json")
    if weights.endswith(".tflite"):
        return card, read_card(weights).get("labels") or []
    return file, []


def check_labels(weights: str, source: Source) -> None:
    """Compares the class names that were left beside a model with a source's.

    Raises:
        ValueError: if they differ.
    """
    file, labels = _labels_of(weights)
    if labels and labels != list(source.class_names):
        differing = sorted(set(labels) ^ set(source.class_names))
        raise ValueError(
            f"{weights} was trained on other classes than {source.name} has, see "
            f"{file}: {', '.join(differing[:10]) or 'the same in another order'}."
        )


def _check_output(shapes: list[tuple], source: Source, weights: str) -> None:
    classes = len(source.class_names)
    if [(len(shape), shape[-1]) for shape in shapes] != [(2, classes)]:
        raise ValueError(
            f"{weights} gives outputs of the shape {' and '.join(map(str, shapes))}, "
            f"but {source.name} has {classes} classes. Expected (batch, {classes})."
        )


def _side(input_shape: tuple, config) -> int:
    """Returns the side of the square images that a model takes."""
    height, width = input_shape[1:3]
    if height != width:
        raise ValueError(
            "Evaluation is of square images, but the model takes "
            f"{height}x{width} pixels."
        )
    return int(height or config.eval_size)


@dataclasses.dataclass(frozen=True)
class ClassificationReport:
    """What an evaluation found.

    Attributes:
        class_names: in the order of the labels.
        counts: images by class, `[classes]`.
        top1: images whose best class is right, `[classes]`.
        top5: images whose five best classes have the right one, `[classes]`.
        skipped: names of the images that could not be read.
        size: side of the images.
    """

    class_names: tuple[str, ...]
    counts: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    skipped: list[str]
    size: int


def evaluate_classifier(
    predictor: Predictor, source: Source, config
) -> ClassificationReport:
    """Runs a classifier over the validation split.

    Args:
        predictor: what to evaluate.
        source: where the images come from.
        config: a `TrainConfig`; its `eval_crop` is used.

    Returns:
        A `ClassificationReport`.

    Raises:
        ValueError: if no image can be read, or the scores are not finite.
    """
    classes = len(source.class_names)
    counts, top1, top5 = (np.zeros(classes, np.int64) for _ in range(3))
    skipped = []
    batches = eval_batches(
        source, "validation", predictor.size, BATCH_SIZE, config.eval_crop
    )
    with tqdm(
        total=source.num_examples["validation"], unit="img", disable=None, leave=False
    ) as progress:
        for batch in batches:
            skipped += unreadable(batch)
            real = batch["weight"].numpy() > 0
            labels = batch["label"].numpy()[real]
            images = batch["image"].numpy()[real].astype(np.float32)
            if len(images):
                scores = predictor.scores(images)
                if not np.all(np.isfinite(scores)):
                    raise ValueError("The model's outputs are not finite numbers.")
                best = np.argsort(-scores, axis=-1)[:, :5]
                hits = best == labels[:, None]
                np.add.at(counts, labels, 1)
                np.add.at(top1, labels, hits[:, 0])
                np.add.at(top5, labels, hits.any(axis=1))
            progress.update(len(images))
    if not counts.any():
        raise ValueError(f"None of the validation images of {source.name} can be read.")
    names = source.class_names
    return ClassificationReport(names, counts, top1, top5, skipped, predictor.size)


def format_report(report: ClassificationReport) -> str:
    """Lays a report out as text: a line for each class, then all of them."""
    width = max(len(name) for name in (*report.class_names, "class"))
    lines = [f"{'class':<{width}}  images   top-1   top-5"]
    rows = zip(report.class_names, report.counts, report.top1, report.top5)
    total = ("all", report.counts.sum(), report.top1.sum(), report.top5.sum())
    for name, count, top1, top5 in (*rows, total):
        parts = [f"{100 * hits / count:.2f}" if count else "-" for hits in (top1, top5)]
        lines.append(f"{name:<{width}}  {count:>6}  {parts[0]:>6}  {parts[1]:>6}")
    lines.append(f"at {report.size}x{report.size} pixels, in percent")
    lines += [f"skipped, cannot be read: {name}" for name in report.skipped]
    return "\n".join(lines)
