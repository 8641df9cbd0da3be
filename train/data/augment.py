"""Random crops, flips, colors and erasing of images, as pure functions of a seed.

All random choices depend only on the seed, so an example is augmented in the same way
whatever thread does it, and in whatever order.
"""

import functools
import math

import tensorflow as tf

ASPECT_RATIOS = (3 / 4, 4 / 3)
TRIES = 10
CONTRAST, BRIGHTNESS, SATURATION, HUE = 0.5, 0.2, 0.5, 0.05
# Of the erased rectangle: area as a fraction of the image's, and height to width.
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)


def random_crop_window(height, width, min_scale: float, seed) -> tf.Tensor:
    """Draws the window of a random resized crop: top, left, height, width, int32 `[4]`.

    The area is uniform in [min_scale, 1] of the image's area, and the logarithm of the
    aspect ratio is uniform between log(3/4) and log(4/3). The first of ten draws that
    fits in the image is taken; if none fits, the largest central window whose aspect
    ratio is in this range.
    """
    size = tf.cast([height, width], tf.float32)
    seeds = tf.random.experimental.stateless_split(seed, 3)
    area = tf.random.stateless_uniform([TRIES], seeds[0], min_scale, 1.0)
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = tf.exp(tf.random.stateless_uniform([TRIES], seeds[1], low, high))
    area *= size[0] * size[1]
    tries = tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)], axis=1)
    tries = tf.round(tries)  # [TRIES, 2] heights and widths
    fits = tf.reduce_all((tries >= 1) & (tries <= size), axis=1)

    aspect = tf.clip_by_value(size[1] / size[0], *ASPECT_RATIOS)
    central = tf.round([size[1] / aspect, size[0] * aspect])
    central = tf.clip_by_value(central, 1.0, size)

    # The central window follows the ten tries, and always fits.
    first = tf.argmax(tf.concat([fits, [True]], axis=0))
    window = tf.concat([tries, [central]], axis=0)[first]
    offset = tf.random.stateless_uniform([2], seeds[2])
    offset = tf.where(first < TRIES, offset, [0.5, 0.5])
    corner = tf.floor(offset * (size - window + 1))
    return tf.cast(tf.concat([corner, window], axis=0), tf.int32)


def random_flip(image, seed) -> tf.Tensor:
    """Mirrors an image left to right with probability 1/2."""
    return tf.image.stateless_random_flip_left_right(image, seed)


def random_colors(image, seed) -> tf.Tensor:
    """Changes contrast, brightness, saturation and hue, each with probability 1/2.

    The image is uint8 `[height, width, 3]`.
    """
    seeds = tf.random.experimental.stateless_split(seed, 5)
    is_changed = tf.random.stateless_uniform([4], seeds[4]) < 0.5
    changes = (
        (tf.image.stateless_random_contrast, (1 - CONTRAST, 1 + CONTRAST)),
        (tf.image.stateless_random_brightness, (BRIGHTNESS,)),
        (tf.image.stateless_random_saturation, (1 - SATURATION, 1 + SATURATION)),
        (tf.image.stateless_random_hue, (HUE,)),
    )
    image = tf.image.convert_image_dtype(image, tf.float32)
    for index, (change, limits) in enumerate(changes):
        make = functools.partial(change, image, *limits, seeds[index])
        image = tf.cond(
            is_changed[index],
            lambda make=make: tf.clip_by_value(make(), 0.0, 1.0),
            lambda image=image: image,
        )
    return tf.image.convert_image_dtype(image, tf.uint8, saturate=True)


def random_erasing(image, probability: float, seed) -> tf.Tensor:
    """Makes a rectangle of an image black, with a probability.

    The area of the rectangle is uniform in `ERASED_AREA`, and the logarithm of its
    aspect ratio between those of `ERASED_RATIO`. The first of ten draws that fits in
    the image is taken; if none fits, the image stays as it is.

    Source: [Random erasing](https://arxiv.org/abs/1708.04896).
    """
    seeds = tf.random.experimental.stateless_split(seed, 4)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    area = tf.random.stateless_uniform([TRIES], seeds[0], *ERASED_AREA)
    low, high = map(math.log, ERASED_RATIO)
    ratio = tf.exp(tf.random.stateless_uniform([TRIES], seeds[1], low, high))
    area *= height * width
    tries = tf.round(tf.stack([tf.sqrt(area * ratio), tf.sqrt(area / ratio)], axis=1))
    fits = tf.reduce_all(tries < [height, width], axis=1)  # [TRIES]
    sides = tries[tf.argmax(fits)]
    offset = tf.random.stateless_uniform([2], seeds[2])
    corner = tf.floor(offset * ([height, width] - sides + 1))
    is_drawn = tf.random.stateless_uniform([], seeds[3]) < probability
    is_kept = ~inside(tf.shape(image), corner, corner + sides)
    return tf.cond(
        is_drawn & tf.reduce_any(fits),
        lambda: image * tf.cast(is_kept, image.dtype),
        lambda: image,
    )


def inside(shape, first, last) -> tf.Tensor:
    """Tells which values of an image `[height, width, channels]` are in a rectangle.

    `first` and `last` are (row, column), float32, whole; `last` is outside.
    """
    row, column = (tf.range(tf.cast(shape[axis], tf.float32)) for axis in (0, 1))
    is_row = (row >= first[0]) & (row < last[0])
    # Channels repeat within a row: TensorFlow is slow at an axis of length 3.
    is_column = tf.repeat((column >= first[1]) & (column < last[1]), shape[2])
    return tf.reshape(is_row[:, None] & is_column, shape)
