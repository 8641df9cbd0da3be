"""Resizes images in two passes, over the rows and then over the columns."""

import tensorflow as tf


def resize(image, size, window=None) -> tf.Tensor:
    """Resizes a window of an image to uint8 `[*size, 3]`; its aspect may change.

    It is antialiased where it shrinks. The pixels are those of
    `tf.image.resize(antialias=True)`, which takes twice as long: it handles one pixel
    of three values at a time, and this function whole rows.

    Args:
        image: uint8 `[height, width, 3]`.
        size: (height, width) of the result, in pixels.
        window: top, left, height and width, float32 `[4]` in pixels of the image, which
            need not be whole. Default: the whole image.
    """
    image, size = tf.convert_to_tensor(image), tf.convert_to_tensor(size)
    if window is None:
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        window = tf.concat([tf.zeros(2), sides], axis=0)
    scales = tf.cast(size, tf.float32) / window[2:]
    image = _resize_rows(image, size[0], scales[0], window[0])
    image = tf.transpose(image, [1, 0, 2])  # [image width, height, 3]
    image = _resize_rows(image, size[1], scales[1], window[1])
    image = tf.transpose(image, [1, 0, 2])
    return tf.cast(tf.round(image), tf.uint8)


def _resize_rows(image, count, scale, first) -> tf.Tensor:
    """Resizes the rows of an image to `count` rows, float32.

    `scale` is the number of new rows for each row, and `first` the position at which
    the new ones begin.
    """
    height, width, channels = tf.unstack(tf.shape(image))
    # The values of a row become the channels of an image that is one pixel wide.
    rows = tf.reshape(image, [1, height, 1, width * channels])
    rows = tf.raw_ops.ScaleAndTranslate(
        images=rows,
        size=tf.stack([count, 1]),
        scale=tf.stack([scale, 1.0]),
        translation=tf.stack([-first * scale, 0.0]),
        kernel_type="triangle",
        antialias=True,
    )
    return tf.reshape(rows, [count, width, channels])
