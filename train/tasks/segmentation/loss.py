"""Cross-entropy of the pixels whose class is known."""

import tensorflow as tf

from train.config import TrainConfig
from train.data.masks import IGNORE_INDEX
from train.tasks.segmentation.postprocess import main_logits


def pixel_cross_entropy(
    labels, logits, is_counted, weights, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Computes the cross-entropy of each example over its pixels that count, `[batch]`.

    `labels` are int32 `[batch, height, width]`, and classes wherever a pixel counts.
    The sum over an example's pixels is multiplied by the number of images with a
    weight, and divided by the number of their counted pixels; it is zero if no pixel
    counts. The mean over the examples is then the mean over the pixels of the batch.
    """
    labels = tf.where(is_counted, labels, 0)
    # One-hot labels would take as much memory as the logits.
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if label_smoothing:
        even = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
        entropy = (1.0 - label_smoothing) * entropy + label_smoothing * even
    total = tf.reduce_sum(tf.where(is_counted, entropy, 0.0), axis=(1, 2))  # [batch]
    pixels = tf.reduce_sum(tf.cast(is_counted, tf.float32), axis=(1, 2)) * weights
    images = tf.reduce_sum(weights)
    return total * images / tf.maximum(tf.reduce_sum(pixels), 1.0)


def _loss_of_logits(batch, logits, label_smoothing: float) -> tf.Tensor:
    return pixel_cross_entropy(
        tf.cast(batch["mask"], tf.int32),
        logits,
        batch["mask"] != IGNORE_INDEX,
        batch["weight"],
        label_smoothing,
    )


def loss(config: TrainConfig, batch, outputs) -> tf.Tensor:
    """Computes the training loss of each example, `[batch]`."""
    total = _loss_of_logits(batch, main_logits(outputs), config.label_smoothing)
    if config.auxiliary_weight:
        auxiliary = outputs["auxiliary"]
        auxiliary_loss = _loss_of_logits(batch, auxiliary, config.label_smoothing)
        total += config.auxiliary_weight * auxiliary_loss
    return total


def validation_loss(batch, outputs) -> tf.Tensor:
    """Computes the head's loss of each example, without smoothing."""
    return _loss_of_logits(batch, main_logits(outputs), 0.0)
