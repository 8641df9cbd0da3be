"""Measures any classifier on any source: whole, and class by class."""

import dataclasses

import keras
import numpy as np
from absl import logging
from tqdm import tqdm

from keras_mobilevit.classifier import build_classifier, output_activation
from keras_mobilevit.configs import get_config
from train.data.pipeline import eval_batches, unreadable
from train.data.source import Source
from train.data.unreadable import refuse_nothing_read, with_reason
from train.evaluation.predictor import Kind, LoadedModel

BATCH_SIZE = 64  # what fits in memory: 20 MB an image for MobileViT_S at 256


def _is_classifier(model: keras.Model) -> bool:
    return [len(output.shape) for output in model.outputs] == [2]


def _build(config, classes: int) -> keras.Model:
    return build_classifier(
        get_config(config.model),
        weights=config.weights,
        input_shape=(None, None, 3),
        classes=classes,
    )


def _classes(units: int) -> int:
    """Returns the number of classes that a head tells apart: with one unit two."""
    return max(units, 2)


def _of_two(scores: np.ndarray, are_probabilities: bool) -> np.ndarray:
    """Returns the scores of two classes, where one unit stands for the second.

    So Keras numbers them, when it loads labels of a binary classifier.
    """
    if scores.shape[-1] > 1:
        return scores
    middle = 0.5 if are_probabilities else 0.0
    return np.concatenate([2 * middle - scores, scores], axis=-1)


def _make_run(model: keras.Model, size: int):
    activation = output_activation(model)
    if model.output_shape[-1] == 1:
        logging.info("one output: of two classes the probability of the second")
    elif activation == "sigmoid":
        logging.warning(
            "The model ends in a sigmoid: it gives each class a probability of its "
            "own, and any number of them may be right. The images have one class each; "
            "they count as right where it is the most likely of all."
        )
    are_probabilities = activation != "logits"
    return lambda images: _of_two(
        np.asarray(model.predict_on_batch(images)), are_probabilities
    )


def _file_classes(outputs: dict) -> int:
    shapes = [tuple(map(int, output["shape"])) for output in outputs.values()]
    if [len(shape) for shape in shapes] != [2]:
        raise ValueError(f"it returns {', '.join(map(str, shapes))}.")
    (name,) = outputs
    if shapes[0][-1] == 1 and name not in ("logits", "probabilities"):
        raise ValueError(
            f"it returns one number, {name}, of which nothing says whether it is a "
            "probability or a logit. Expected the name probabilities or logits, as "
            "tflite/convert.py writes them."
        )
    return _classes(shapes[0][-1])


def _scores(outputs: dict, size: int) -> np.ndarray:
    ((name, scores),) = outputs.items()
    return _of_two(scores, name != "logits")


# `run` of a loaded one returns logits or probabilities `[batch, classes]`, of two
# classes where there is one unit.
CLASSIFIER = Kind(
    noun="classifier",
    published="imagenet",
    is_one=_is_classifier,
    num_classes=lambda model: _classes(model.output_shape[-1]),
    build=_build,
    make_run=_make_run,
    file_classes=_file_classes,
    finish=_scores,
)


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
    classifier: LoadedModel, source: Source, config
) -> ClassificationReport:
    """Runs a classifier over the validation split.

    Args:
        classifier: what to evaluate, of the kind `CLASSIFIER`.
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
        source, "validation", classifier.size, BATCH_SIZE, config.eval_crop
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
                scores = classifier.run(images)
                if not np.all(np.isfinite(scores)):
                    raise ValueError("The model's outputs are not finite numbers.")
                # Of equal scores the first, as `train.tasks.metrics.top_k_correct` does.
                best = np.argsort(-scores, axis=-1, kind="stable")[:, :5]
                hits = best == labels[:, None]
                np.add.at(counts, labels, 1)
                np.add.at(top1, labels, hits[:, 0])
                np.add.at(top5, labels, hits.any(axis=1))
            progress.update(len(images))
    if not counts.any():
        refuse_nothing_read(source, "validation", skipped)
    names = source.class_names
    return ClassificationReport(names, counts, top1, top5, skipped, classifier.size)


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
    lines += [
        f"skipped, cannot be read: {with_reason(name)}" for name in report.skipped
    ]
    return "\n".join(lines)
