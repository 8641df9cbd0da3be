"""The library's SSD loss of a training batch, whose images have weights."""

import tensorflow as tf

from keras_mobilevit.anchors import anchors_of_count
from keras_mobilevit.matching import anchor_targets
from keras_mobilevit.ssd_loss import multibox
from train.config import TrainConfig


def _multibox_of_batch(batch, is_object, outputs, label_smoothing: float) -> tf.Tensor:
    # The images' size is known when the function is traced.
    height, width = batch["image"].shape[1:3]
    anchors = anchors_of_count(height, width, outputs["offsets"].shape[1])
    labels = tf.where(is_object, batch["classes"], -1)
    targets = anchor_targets(batch["boxes"], labels, anchors)
    return multibox(
        outputs["offsets"],
        outputs["logits"],
        targets["offsets"],
        targets["labels"],
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
