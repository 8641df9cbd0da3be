"""Measures any segmenter on any source: whole, and class by class."""

import dataclasses
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_mobilevit.deeplab import DeepLabV3, is_segmenter, without_auxiliary
from keras_mobilevit.preprocessing import largest_value
from keras_mobilevit.weights import load_model_file
from train import metrics
from train.data import eval_batches, unreadable
from train.evaluation import check_labels
from train.litert import LiteRTModel, read_card
from train.sources import Source

BATCH_SIZE = 8  # logits of 21 classes at 512x512 take 22 MB an image


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A model of any kind.

    Attributes:
        size: side of the images that it takes.
        class_maps: from float32 images `[batch, size, size, 3]`, values in [0, 255], to
            the class of each pixel, int32 `[batch, size, size]`.
    """

    size: int
    class_maps: Callable[[np.ndarray], np.ndarray]


def load_segmenter(config, source: Source) -> Segmenter:
    """Loads the segmenter that `config.weights` names.

    Args:
        config: a `TrainConfig`: `weights` (`voc`, a weights file of a segmenter on
            `model`, a `.keras` or a `.tflite` file), `model`, `output_stride` and
            `eval_size`.
        source: its classes are those that the segmenter must have.

    Returns:
        The `Segmenter`.

    Raises:
        ValueError: if there are no such weights, or the model has other classes.
        OSError: if the published weights cannot be downloaded.
    """
    weights, classes = config.weights, len(source.class_names)
    if not weights:
        raise ValueError(
            "An evaluation of segmentation takes --model: a .keras or .tflite file; or "
            "--weights: voc, or a .safetensors, .pt or .weights.h5 file."
        )
    check_labels(weights, source)
    if weights.endswith(".tflite"):
        return _converted_segmenter(weights, source)
    if weights.endswith(".keras"):
        model = load_model_file(weights)
        if not is_segmenter(model):
            raise ValueError(f"{weights} is no segmenter, but of another task.")
        model = without_auxiliary(model)
    else:
        model = DeepLabV3(
            config.model,
            classes,
            weights=weights,
            input_shape=(None, None, 3),
            output_stride=config.output_stride,
        )
    _check_classes(model.output.shape[-1], weights, source)
    return _keras_segmenter(model, model.input_shape[1] or config.eval_size)


def _check_classes(found: int, weights: str, source: Source) -> None:
    classes = len(source.class_names)
    if found != classes:
        raise ValueError(
            f"{weights} has {found} classes, but {source.name} has {classes}."
        )


def class_maps(logits, size: int):
    """Finds the class of every pixel from logits of any resolution.

    Args:
        logits: `[batch, rows, columns, classes]`.
        size: side of the images in pixels, to which the logits are resized bilinearly.

    Returns:
        int32 `[batch, size, size]`.
    """
    resized = tf.image.resize(logits, (size, size))
    return tf.argmax(resized, axis=-1, output_type=tf.int32)


def _converted_segmenter(path: str, source: Source) -> Segmenter:
    model, card = LiteRTModel(path, num_threads=os.cpu_count()), read_card(path)
    ranks = {name: len(output["shape"]) for name, output in model.outputs.items()}
    if ranks not in ({"logits": 4}, {"classes": 3}):
        raise ValueError(
            f"{path} returns {', '.join(model.outputs)}. Expected a segmenter's logits "
            "or classes, as tflite/convert.py writes them."
        )
    if "logits" in ranks:  # of a class map the card alone knows
        _check_classes(int(model.outputs["logits"]["shape"][-1]), path, source)
    size = model.input_shape[1]
    scale = np.float32(card.get("input", {}).get("largest_value", 255) / 255)

    def found(images: np.ndarray) -> np.ndarray:
        outputs = model.predict(images * scale)
        if "logits" in outputs:
            return class_maps(outputs["logits"], size).numpy()
        return outputs["classes"].astype(np.int32)

    return Segmenter(size, found)


def _keras_segmenter(model: keras.Model, size: int) -> Segmenter:
    scale = tf.constant(largest_value(model) / 255, tf.float32)
    run = tf.function(
        lambda images: tf.argmax(
            model(images * scale, training=False), axis=-1, output_type=tf.int32
        ),
        autograph=False,
        reduce_retracing=True,  # the last batch is smaller
    )
    return Segmenter(size, lambda images: run(images).numpy())


def evaluate_segmenter(
    segmenter: Segmenter, source: Source, task
) -> tuple[np.ndarray, list[str]]:
    """Runs a segmenter over the validation split.

    Args:
        segmenter: what to evaluate.
        source: where the images come from.
        task: of segmentation: its examples.

    Returns:
        The pixels that count, int64 `[classes, classes]`: rows are masks, columns
        predictions; and the names of the images that could not be read.

    Raises:
        ValueError: if no image can be read.
    """
    batches = eval_batches(
        source, "validation", segmenter.size, BATCH_SIZE, 1.0, load=task.eval_example
    )
    classes, skipped = len(source.class_names), []
    confusion, seen = np.zeros((classes, classes), np.int64), 0
    count = source.num_examples["validation"]
    with tqdm(total=count, unit="img", disable=None, leave=False) as progress:
        for batch in batches:
            skipped += unreadable(batch)
            real = batch["weight"].numpy() > 0
            images = batch["image"].numpy()[real].astype(np.float32)
            if len(images):
                masks, sizes = (batch[k][real] for k in ("full_mask", "image_size"))
                found = metrics.classes_at_pixels(
                    segmenter.class_maps(images), sizes, masks.shape[1:]
                )
                counts = metrics.confusion_matrices(masks, found, classes)
                confusion += counts.numpy().sum(axis=0, dtype=np.int64)
            seen += len(images)
            progress.update(len(images))
    if not seen:
        raise ValueError(f"None of the validation images of {source.name} can be read.")
    return confusion, skipped


def format_metrics(
    confusion: np.ndarray, skipped: list[str], class_names, size: int
) -> str:
    """Lays the metrics out as text: a line for each class, then all of them."""
    found = metrics.segmentation_metrics(confusion, class_names)
    pixels, right = confusion.sum(axis=1), np.diag(confusion)
    width = max(len(name) for name in (*class_names, "class"))

    def line(name: str, count: int, part: float, iou: float) -> str:
        recall = f"{100 * part:.2f}" if count else "-"
        overlap = f"{100 * iou:.2f}" if iou >= 0 else "-"
        return f"{name:<{width}}  {count:>11}  {recall:>6}  {overlap:>6}"

    lines = [f"{'class':<{width}}       pixels   right     IoU"]
    lines += [
        line(name, pixels[i], right[i] / max(pixels[i], 1), found[f"IoU/{name}"])
        for i, name in enumerate(class_names)
    ]
    lines += [
        line("all", pixels.sum(), found["pixel_accuracy"], found["mIoU"]),
        f"at {size}x{size} pixels, in percent of the masks' own; IoU of all: the mean "
        "of the classes that occur",
        *(f"skipped, cannot be read: {name}" for name in skipped),
    ]
    return "\n".join(lines)
