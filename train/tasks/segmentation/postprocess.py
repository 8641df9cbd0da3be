"""From logits to the class of every pixel."""

import tensorflow as tf


def main_logits(outputs) -> tf.Tensor:
    """Returns the head's logits, without those of an auxiliary head."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def class_maps(logits, size: int) -> tf.Tensor:
    """Resizes logits of any size; returns classes, int32 `[batch, size, size]`."""
    resized = tf.image.resize(logits, (size, size))
    return tf.argmax(resized, axis=-1, output_type=tf.int32)
