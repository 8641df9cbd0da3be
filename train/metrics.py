"""Evaluation metrics, as sums over examples that add up over batches."""

import numpy as np
import tensorflow as tf


def top_k_correct(labels, logits, k: int):
    """Tells which examples have their label among the k best.

    Args:
        labels: class indices `[batch]`.
        logits: `[batch, classes]`; with fewer than k classes every one is right.
        k: how many.

    Returns:
        1.0 or 0.0 for each example, `[batch]`.
    """
    correct = tf.math.in_top_k(labels, logits, min(k, logits.shape[-1]))
    return tf.cast(correct, tf.float32)


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
