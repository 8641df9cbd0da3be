"""SSD's loss of boxes and classes: https://arxiv.org/abs/1512.02325, section 2.2."""

import tensorflow as tf

from keras_mobilevit import boxes as box_math
from keras_mobilevit.anchors import anchors_of_count
from train.config import TrainConfig
from train.tasks.detection.matching import hard_negatives, match
from train.tasks.losses import smoothed_cross_entropy


def smooth_l1(differences) -> tf.Tensor:
    """Computes x² / 2 where |x| < 1, else |x| - 1/2 (arxiv.org/abs/1504.08083)."""
    absolute = tf.abs(differences)
    return tf.where(absolute < 1.0, 0.5 * differences**2, absolute - 0.5)


def multibox(
    offsets, logits, target_offsets, labels, weights, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Computes SSD's loss of each example, `[batch]`, from predictions and targets.

    Offsets are `[batch, anchors, 4]`, logits `[batch, anchors, classes + 1]`. `labels`
    are 0 for the background, else the class of a positive anchor plus 1.

    The sum over the positive anchors and hard negatives of an example is multiplied by
    the number of images with a weight, and divided by the number of their positive
    anchors. The mean over the examples is then the published loss, in which an image
    with more objects weighs more.
    """
    is_positive = labels > 0
    entropy = smoothed_cross_entropy(labels, logits, label_smoothing)
    background = -tf.nn.log_softmax(logits)[..., 0]
    negatives = hard_negatives(tf.stop_gradient(background), is_positive)
    class_loss = tf.where(is_positive | negatives, entropy, 0.0)
    distance = tf.reduce_sum(smooth_l1(offsets - target_offsets), axis=-1)
    box_loss = tf.where(is_positive, distance, 0.0)
    total = tf.reduce_sum(class_loss + box_loss, axis=1)  # [batch]
    positives = tf.reduce_sum(tf.cast(is_positive, tf.float32), axis=1) * weights
    images = tf.reduce_sum(weights)
    return total * images / tf.maximum(tf.reduce_sum(positives), 1.0)


def _multibox_of_batch(batch, is_object, outputs, label_smoothing: float) -> tf.Tensor:
    # The images' size is known when the function is traced.
    height, width = batch["image"].shape[1:3]
    count = outputs["offsets"].shape[1]
    anchors = tf.constant(anchors_of_count(height, width, count))
    matched_index, is_positive = match(batch["boxes"], is_object, anchors)
    boxes = tf.gather(batch["boxes"], matched_index, batch_dims=1)
    classes = tf.gather(batch["classes"], matched_index, batch_dims=1)
    # [batch, anchors, 4]. An anchor without an object may have matched padding of size
    # zero, which has no logarithm.
    boxes = tf.where(is_positive[..., None], boxes, box_math.cxcywh_to_xyxy(anchors))
    return multibox(
        outputs["offsets"],
        outputs["logits"],
        box_math.encode(boxes, anchors),
        tf.where(is_positive, classes + 1, 0),
        batch["weight"],
        label_smoothing,
    )


def loss(config: TrainConfig, batch, outputs) -> tf.Tensor:
    """Computes the training loss of each example, `[batch]`."""
    is_object = batch["classes"] >= 0
    return _multibox_of_batch(batch, is_object, outputs, config.label_smoothing)


def validation_loss(batch, outputs) -> tf.Tensor:
    """Computes the loss of each example without smoothing and without crowds."""
    is_object = (batch["classes"] >= 0) & ~batch["is_crowd"]
    return _multibox_of_batch(batch, is_object, outputs, 0.0)
