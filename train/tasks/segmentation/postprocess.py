"""From logits to the class of every pixel."""

import tensorflow as tf

from keras_mobilevit.backend import resize_bilinear


def main_logits(outputs) -> tf.Tensor:
    """Returns the head's logits, without those of an auxiliary head."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def class_maps(logits, size: int, align_corners: bool = False) -> tf.Tensor:
    """Resizes logits of any size; returns classes, int32 `[batch, size, size]`.

    With `align_corners`, the centers of the corner pixels stay in place, as in the
    networks of which `keras_mobilevit.deeplab.aligns_corners` is true.
    """
    logits = resize_bilinear(tf.convert_to_tensor(logits), size, size, align_corners)
    return tf.argmax(logits, axis=-1, output_type=tf.int32)
