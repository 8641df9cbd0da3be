"""Evaluation metrics, as sums over examples that add up over batches."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

PIXELS_AT_ONCE = 2**20


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
        1.0 or 0.0 for each example, `[batch]`; 0.0 where a logit is no finite number.
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


def _centers(count: int, side: int) -> np.ndarray:
    """Returns for each of `count` pixels the cell, of `side`, with its center."""
    # In integers: (i + 0.5) * side / count has to be exact at the edges.
    return (2 * np.arange(count) + 1) * side // (2 * count)


def classes_at_pixels(class_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Looks up the class of every pixel of an image in the map of a network.

    Args:
        class_map: `[rows, columns]`, of the squeezed image.
        size: height and width of the image.

    Returns:
        `[*size]`: of each pixel the class at the place of the map on which its center
        lies.
    """
    rows, columns = map(_centers, size, class_map.shape)
    return class_map[rows[:, None], columns]


def count_pixels(mask: np.ndarray, class_map: np.ndarray, num_classes: int):
    """Counts the pixels of an image by label and prediction.

    Args:
        mask: uint8 `[height, width]`: labels; what is no class does not count.
        class_map: integers `[rows, columns]`: predictions, as for `classes_at_pixels`.
        num_classes: number of classes.

    Returns:
        int64 `[num_classes, num_classes]`; rows are labels, columns predictions.
    """
    rows, columns = map(_centers, mask.shape, class_map.shape)
    counts = np.zeros(num_classes**2, np.int64)
    # Strip by strip, or the numbers of a large photo's pixels take much memory.
    height = max(1, PIXELS_AT_ONCE // mask.shape[1])
    for top in range(0, mask.shape[0], height):
        labels = mask[top : top + height]
        found = class_map[rows[top : top + height, None], columns]
        is_counted = labels < num_classes
        cells = labels[is_counted].astype(np.int64) * num_classes + found[is_counted]
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(num_classes, num_classes)


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
