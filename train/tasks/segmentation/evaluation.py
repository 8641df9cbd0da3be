"""Measures any segmenter on any source: whole, and class by class."""

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_mobilevit.deeplab import (
    CLASSIFIER,
    DeepLabV3,
    is_segmenter,
    without_auxiliary,
)
from train.data.pipeline import eval_batches, unreadable
from train.data.source import Source
from train.data.unreadable import refuse_nothing_read, with_reason
from train.evaluation.predictor import Kind, LoadedModel
from train.tasks import metrics

BATCH_SIZE = 8  # logits of 21 classes at 512x512 take 22 MB an image


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


def _build(config, classes: int) -> keras.Model:
    return DeepLabV3(
        config.model,
        classes,
        weights=config.weights,
        input_shape=(None, None, 3),
        output_stride=config.output_stride,
    )


def _make_run(model: keras.Model, size: int):
    model = without_auxiliary(model)
    run = tf.function(
        lambda images: class_maps(model(images, training=False), size),
        autograph=False,
        reduce_retracing=True,  # the last batch is smaller
    )
    return lambda images: run(tf.constant(images)).numpy()


def _file_classes(outputs: dict) -> int | None:
    ranks = {name: len(output["shape"]) for name, output in outputs.items()}
    if ranks not in ({"logits": 4}, {"classes": 3}):
        raise ValueError(
            f"it returns {', '.join(outputs)}. Expected logits or classes, as "
            "tflite/convert.py writes them."
        )
    if "classes" in ranks:
        return None
    return int(outputs["logits"]["shape"][-1])


def _finish(outputs: dict, size: int) -> np.ndarray:
    if "logits" in outputs:
        return class_maps(outputs["logits"], size).numpy()
    return outputs["classes"].astype(np.int32)


# `run` of a loaded one returns the class of each pixel, int32 `[batch, size, size]`.
SEGMENTER = Kind(
    noun="segmenter",
    published="voc",
    is_one=is_segmenter,
    num_classes=lambda model: model.get_layer(CLASSIFIER).output.shape[-1],
    build=_build,
    make_run=_make_run,
    file_classes=_file_classes,
    finish=_finish,
)


def evaluate_segmenter(
    segmenter: LoadedModel, source: Source, task
) -> tuple[np.ndarray, list[str]]:
    """Runs a segmenter over the validation split.

    Args:
        segmenter: what to evaluate, of the kind `SEGMENTER`.
        source: where the images come from.
        task: of segmentation: its examples, and how their pixels are counted.

    Returns:
        The pixels that count, int64 `[classes, classes]`: rows are masks, columns
        predictions; and the names of the images that could not be read.

    Raises:
        ValueError: if no image can be read, or the segmenter has other classes.
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
                found = segmenter.run(images)
                if found.max() >= classes:
                    raise ValueError(
                        f"The model finds the class {found.max()}, but "
                        f"{source.name} has {classes}: 0 to {classes - 1}."
                    )
                masks = batch["full_mask"].numpy()[real]
                examples = {"full_mask": masks, "class_map": found}
                confusion += task.count(source.class_names, examples)["confusion"]
            seen += len(images)
            progress.update(len(images))
    if not seen:
        refuse_nothing_read(source, "validation", skipped)
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
        *(f"skipped, cannot be read: {with_reason(x)}" for x in skipped),
    ]
    return "\n".join(lines)
