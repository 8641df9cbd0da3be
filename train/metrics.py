"""Evaluation metrics, as sums over examples that add up over batches."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def top_k_correct(labels, logits, k: int):
    """Tells which examples have their label among the k best.

    Of equal scores the class of the lower index is the better one, as in an argmax:
    a model that gives the same to all classes is not right everywhere.

    Args:
        labels: class indices `[batch]`.
        logits: `[batch, classes]`; with fewer than k classes every one is right. None
            is where a logit is not finite.
        k: how many.

    Returns:
        1.0 or 0.0 for each example, `[batch]`.
    """
    best = tf.math.top_k(
        logits, min(k, logits.shape[-1])
    ).indices  # of equals the first
    is_right = tf.reduce_any(best == tf.cast(labels, best.dtype)[:, None], axis=-1)
    is_finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return tf.cast(is_right & is_finite, tf.float32)


def confusion_matrix(labels, predictions, num_classes: int) -> np.ndarray:
    """Counts predictions by label.

    Args:
        labels: class indices `[examples]`.
        predictions: class indices `[examples]`.
        num_classes: number of classes.

    Returns:
        `[num_classes, num_classes]` integers; rows are labels, columns predictions.
    """
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predictions)), 1)
    return matrix


def classes_at_pixels(class_maps, image_sizes, frame):
    """Looks up the class of every pixel of an image in the map of a network.

    Args:
        class_maps: integers `[batch, rows, columns]`, of squeezed images.
        image_sizes: int32 `[batch, 2]`: their heights and widths.
        frame: (height, width) that holds all of them.

    Returns:
        `[batch, *frame]`: of each pixel the class at the place of the map on which its
        centre lies; beyond an image anything.
    """

    def places(axis: int):
        side, count = tf.shape(class_maps)[axis], image_sizes[:, axis - 1, None]
        # In integers: (i + 0.5) * side / count has to be exact at the edges.
        found = (2 * tf.range(frame[axis - 1])[None] + 1) * side // (2 * count)
        return tf.minimum(found, side - 1)  # [batch, frame's side]

    rows = tf.gather(class_maps, places(1), axis=1, batch_dims=1)
    return tf.gather(rows, places(2), axis=2, batch_dims=1)


def confusion_matrices(labels, predictions, num_classes: int):
    """Counts the pixels of each image by label and prediction.

    Args:
        labels: integers `[batch, height, width]`; what is no class does not count.
        predictions: int32 of the same shape, classes.
        num_classes: number of classes.

    Returns:
        int32 `[batch, num_classes, num_classes]`; rows are labels, columns predictions.
    """
    labels = tf.cast(labels, tf.int32)
    batch, cells = tf.shape(labels)[0], num_classes * num_classes
    image = tf.range(batch)[:, None, None]
    cell = image * cells + labels * num_classes + predictions
    is_counted = (labels >= 0) & (labels < num_classes)
    cell = tf.where(is_counted, cell, -1)  # which is dropped
    counts = tf.math.unsorted_segment_sum(tf.ones_like(cell), cell, batch * cells)
    return tf.reshape(counts, [batch, num_classes, num_classes])


def segmentation_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict:
    """Measures how masks agree.

    Args:
        confusion: integers `[classes, classes]`, as `confusion_matrix` counts pixels.
        class_names: in the order of the classes.

    Returns:
        In [0, 1], or -1 where there is nothing to measure: `mIoU`, the mean over the
        classes that occur, in a mask or a prediction; `pixel_accuracy`, the part of
        the pixels that are right; and `IoU/<class>`, the intersection of a class's
        pixels in mask and prediction over their union.
    """
    confusion = np.asarray(confusion, np.int64)
    right = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    occurs = union > 0
    ious = np.where(occurs, right / np.maximum(union, 1), -1.0)
    pixels = confusion.sum()
    return {
        "mIoU": float(ious[occurs].mean()) if occurs.any() else -1.0,
        "pixel_accuracy": float(right.sum() / pixels) if pixels else -1.0,
        **{f"IoU/{name}": float(iou) for name, iou in zip(class_names, ious)},
    }
