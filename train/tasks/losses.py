"""Training losses."""

import tensorflow as tf

from train.tasks.detection.matching import hard_negatives


def smoothed_cross_entropy(labels, logits, label_smoothing: float = 0.0):
    """Softmax cross-entropy against smoothed one-hot labels.

    Args:
        labels: class indices `[batch]`.
        logits: `[batch, classes]`.
        label_smoothing: probability that is spread evenly over all classes.

    Returns:
        The loss of each example, `[batch]`.
    """
    classes = logits.shape[-1]
    targets = tf.one_hot(
        labels,
        classes,
        on_value=1.0 - label_smoothing + label_smoothing / classes,
        off_value=label_smoothing / classes,
    )
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def smooth_l1(differences):
    """Half the square of what is below 1, and the absolute value less a half above.

    Source: Fast R-CNN, https://arxiv.org/abs/1504.08083.

    Args:
        differences: of any shape.

    Returns:
        Losses of the same shape.
    """
    absolute = tf.abs(differences)
    return tf.where(absolute < 1.0, 0.5 * differences**2, absolute - 0.5)


def multibox(offsets, logits, target_offsets, labels, weights, label_smoothing=0.0):
    """SSD's loss, of boxes and classes.

    Args:
        offsets: predicted, `[batch, anchors, 4]`.
        logits: `[batch, anchors, classes + 1]`, of which class 0 is the background.
        target_offsets: `[batch, anchors, 4]`, used where an anchor is positive.
        labels: int32 `[batch, anchors]`: 0, or 1 more than the class of an anchor that
            is positive.
        weights: of the examples, `[batch]`, 0 for what does not count.
        label_smoothing: see `smoothed_cross_entropy`.

    Returns:
        The loss of each example, `[batch]`: the sum over its positive anchors and hard
        negatives, times the images that count, divided by their positive anchors.
        So its mean is the published loss: what an image weighs goes by its objects.

    Source: section 2.2 of SSD, https://arxiv.org/abs/1512.02325.
    """
    is_positive = labels > 0
    entropy = smoothed_cross_entropy(labels, logits, label_smoothing)
    background = -tf.nn.log_softmax(logits)[..., 0]
    negatives = hard_negatives(tf.stop_gradient(background), is_positive)
    counted = tf.where(is_positive | negatives, entropy, 0.0)
    distance = tf.reduce_sum(smooth_l1(offsets - target_offsets), axis=-1)
    located = tf.where(is_positive, distance, 0.0)
    total = tf.reduce_sum(counted + located, axis=1)  # [batch]
    positives = tf.reduce_sum(tf.cast(is_positive, tf.float32), axis=1) * weights
    images = tf.reduce_sum(weights)
    return total * images / tf.maximum(tf.reduce_sum(positives), 1.0)


def pixel_cross_entropy(labels, logits, is_counted, weights, label_smoothing=0.0):
    """Softmax cross-entropy of the pixels that count.

    Args:
        labels: int32 `[batch, height, width]`, classes where a pixel counts.
        logits: `[batch, height, width, classes]`.
        is_counted: bool `[batch, height, width]`.
        weights: of the examples, `[batch]`, 0 for what does not count.
        label_smoothing: see `smoothed_cross_entropy`.

    Returns:
        The loss of each example, `[batch]`: the sum over its pixels, times the images
        that count, divided by their counted pixels, or zero where none counts. So
        its mean is that over the batch's pixels: an image weighs as much as there is to
        see on it.
    """
    labels = tf.where(is_counted, labels, 0)
    # Without one-hot labels, which would take as much memory as the logits.
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if label_smoothing:
        even = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
        entropy = (1.0 - label_smoothing) * entropy + label_smoothing * even
    total = tf.reduce_sum(tf.where(is_counted, entropy, 0.0), axis=(1, 2))  # [batch]
    pixels = tf.reduce_sum(tf.cast(is_counted, tf.float32), axis=(1, 2)) * weights
    images = tf.reduce_sum(weights)
    return total * images / tf.maximum(tf.reduce_sum(pixels), 1.0)
