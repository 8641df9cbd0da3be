"""Measures any detector on any source by COCO's rules."""

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_mobilevit.preprocessing import largest_value
from keras_mobilevit.ssdlite import SSDLite, is_detector
from keras_mobilevit.weights import load_model_file
from train.coco import METRICS
from train.data import eval_batches, unreadable
from train.evaluation import check_labels
from train.sources import Source

BATCH_SIZE = 16


def load_detector(config, source: Source) -> keras.Model:
    """Loads the detector that `config.weights` names.

    Args:
        config: a `TrainConfig`: `weights` (`coco`, a weights file of a detector on
            `model`, or a `.keras` file) and `model`.
        source: its classes are those that the detector must have.

    Returns:
        The model.

    Raises:
        ValueError: if there are no such weights, or the model has other classes.
        OSError: if the published weights cannot be downloaded.
    """
    weights, classes = config.weights, len(source.class_names)
    if not weights or weights.endswith(".tflite"):
        raise ValueError(
            "An evaluation of detection takes --model: a .keras file; or --weights: "
            f"coco, or a .safetensors, .pt or .weights.h5 file. Received: {weights!r}."
        )
    check_labels(weights, source)
    if not weights.endswith(".keras"):
        shape = (None, None, 3)
        return SSDLite(config.model, classes, weights=weights, input_shape=shape)
    model = load_model_file(weights)
    if not is_detector(model):
        raise ValueError(f"{weights} is no detector, but of another task.")
    found = model.output["logits"].shape[-1] - 1
    if found != classes:
        raise ValueError(
            f"{weights} has {found} classes, but {source.name} has {classes}."
        )
    return model


def evaluate_detector(
    model: keras.Model, source: Source, size: int, task
) -> tuple[dict, list[str]]:
    """Runs a detector over the validation split.

    Args:
        model: what to evaluate.
        source: where the images come from.
        size: side of the images in pixels.
        task: of detection: its examples, predictions and score.

    Returns:
        The metrics of `train.coco.average_precision`, and the names of the images that
        could not be read.

    Raises:
        ValueError: if no image can be read.
    """
    scale = tf.constant(largest_value(model) / 255, tf.float32)
    predict = tf.function(
        lambda batch: task.predictions(
            batch, model(tf.cast(batch["image"], tf.float32) * scale, training=False)
        ),
        autograph=False,
    )
    batches = eval_batches(
        source, "validation", size, BATCH_SIZE, 1.0, load=task.eval_example
    )
    rows, skipped = [], []
    count = source.num_examples["validation"]
    with tqdm(total=count, unit="img", disable=None, leave=False) as progress:
        for batch in batches:
            skipped += unreadable(batch)
            real = batch.pop("weight").numpy() > 0
            del batch["id"]
            found = {name: x.numpy()[real] for name, x in predict(batch).items()}
            rows.append(found)
            progress.update(int(real.sum()))
    joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    if not len(joined["boxes"]):
        raise ValueError(f"None of the validation images of {source.name} can be read.")
    return task.score(source, joined), skipped


def format_metrics(metrics: dict, class_names, size: int, skipped: list[str]) -> str:
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
