"""Measures any detector on any source by COCO's rules."""

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.detection import detect, non_max_suppression
from keras_mobilevit.ssdlite import SSDLite, is_detector
from train.data.pipeline import eval_batches, unreadable
from train.data.source import Source
from train.data.unreadable import refuse_nothing_read, with_reason
from train.evaluation.predictor import Kind, LoadedModel
from train.tasks.detection.average_precision import METRICS

BATCH_SIZE = 16


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


def _build(config, classes: int) -> keras.Model:
    shape = (None, None, 3)
    return SSDLite(config.model, classes, weights=config.weights, input_shape=shape)


def _make_run(model: keras.Model, size: int):
    anchors = anchor_boxes(size, size)
    run = tf.function(
        lambda images: detect(model(images, training=False), anchors),
        autograph=False,
        reduce_retracing=True,  # the last batch is smaller
    )
    return lambda images: _in_numpy(run(tf.constant(images)))


def _file_classes(outputs: dict) -> int | None:
    if not {"boxes", "scores"} <= set(outputs):
        raise ValueError(
            f"it returns {', '.join(outputs)}. Expected boxes and scores, as "
            "tflite/convert.py writes them."
        )
    if "classes" in outputs:  # with suppression inside
        return None
    return int(outputs["scores"]["shape"][-1])


# `run` of a loaded one returns what `keras_mobilevit.detect` does.
DETECTOR = Kind(
    noun="detector",
    published="coco",
    is_one=is_detector,
    num_classes=lambda model: model.output["logits"].shape[-1] - 1,
    build=_build,
    make_run=_make_run,
    file_classes=_file_classes,
    finish=lambda outputs, size: suppressed(outputs),
)


def evaluate_detector(
    detector: LoadedModel, source: Source, task
) -> tuple[dict, list[str]]:
    """Runs a detector over the validation split.

    Args:
        detector: what to evaluate, of the kind `DETECTOR`.
        source: where the images come from.
        task: of detection: its examples and score.

    Returns:
        The metrics of `train.tasks.detection.average_precision.average_precision`, and the names of the images that
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
                targets = {f"true_{name}": x for name, x in task.unpad(batch).items()}
                rows.append(detector.run(images) | targets)
            progress.update(len(images))
    if not rows:
        refuse_nothing_read(source, "validation", skipped)
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
    return "\n".join(
        [*lines, *(f"skipped, cannot be read: {with_reason(x)}" for x in skipped)]
    )
