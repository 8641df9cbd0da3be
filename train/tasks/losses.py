"""Losses that several tasks share."""

import tensorflow as tf


def smoothed_cross_entropy(labels, logits, label_smoothing: float = 0.0) -> tf.Tensor:
    """Computes the cross-entropy with smoothed labels, `[batch]`."""
    classes = logits.shape[-1]
    targets = tf.one_hot(
        labels,
        classes,
        on_value=1.0 - label_smoothing + label_smoothing / classes,
        off_value=label_smoothing / classes,
    )
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)
