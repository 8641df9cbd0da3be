"""Measures any classifier on any source: whole, and class by class."""

import dataclasses
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from keras_mobilevit.classifier import build_classifier
from keras_mobilevit.configs import get_config
from keras_mobilevit.weights import load_model_file
from train.data import eval_batches, unreadable
from train.litert import LiteRTModel
from train.sources import Source


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
    classes = len(source.class_names)
    if not config.weights:
        raise ValueError(
            "An evaluation takes --weights: imagenet, or a .keras, .safetensors, .pt, "
            ".weights.h5 or .tflite file."
        )
    if config.weights.endswith(".tflite"):
        litert = LiteRTModel(config.weights)
        _check_classes(litert.output["shape"][-1], classes, config.weights)
        return Predictor(litert.input_shape[1], litert.predict)
    if config.weights.endswith(".keras"):
        model = load_model_file(config.weights)
        _check_classes(model.output_shape[-1], classes, config.weights)
    else:
        model = build_classifier(
            get_config(config.model),
            weights=config.weights,
            input_shape=(None, None, 3),
            classes=classes,
        )
    size = model.input_shape[1] or config.eval_size
    return Predictor(size, lambda images: np.asarray(model.predict_on_batch(images)))


def _check_classes(found: int, wanted: int, weights: str) -> None:
    if found != wanted:
        raise ValueError(f"{weights} has {found} classes, the data {wanted}.")


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
        config: a `TrainConfig`; its `batch_size` and `eval_crop` are used.

    Returns:
        A `ClassificationReport`.

    Raises:
        ValueError: if no image can be read.
    """
    classes = len(source.class_names)
    counts, top1, top5 = (np.zeros(classes, np.int64) for _ in range(3))
    skipped = []
    batches = eval_batches(
        source, "validation", predictor.size, config.batch_size, config.eval_crop
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
                best = np.argsort(-predictor.scores(images), axis=-1)[:, :5]
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
