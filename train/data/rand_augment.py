"""RandAugment: random operations on an image, as a pure function of a seed.

The 14 operations and their strength are those of torchvision's `RandAugment` with
magnitude 9 of 31 levels, which the published recipe uses. Pixels are those of Pillow,
except at the edges of what is sheared or rotated.

`keras.layers.RandAugment` is not used. Its seed can be replaced by the example's, but
it computes all of its operations and keeps one: 50 ms on one core for an image that
takes 2.1 ms to read and crop. This function takes 1.1 ms. The layer's operations also
differ: it draws the strength of each, and rotates images by up to 108 degrees, where
the recipe rotates them by 9.

Source: [RandAugment](https://arxiv.org/abs/1909.13719).
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

# Each strength is the largest one times the level: 9 of 0 to 30.
LEVEL = 9 / 30
SHEAR = LEVEL * 0.3  # pixels for each row or column
TRANSLATION = LEVEL * 150 / 331  # of the side
ROTATION = LEVEL * math.radians(30)
CHANGE = LEVEL * 0.9  # of brightness, color, contrast and sharpness, from 1
POSTERIZED = 0xFE  # of 8 bits the first 7
SOLARIZED = 255 * (1 - LEVEL)  # brighter values are inverted
GRAY = (0.299, 0.587, 0.114)  # weights of red, green and blue


def rand_augment(image, operations: int, seed) -> tf.Tensor:
    """Applies random operations of `OPERATIONS`, one after the other.

    Args:
        image: uint8 `[height, width, 3]`.
        operations: how many; each is drawn anew.
        seed: two integers, which determine the operations and their directions.
    """
    draws = tf.random.stateless_uniform([operations, 2], seed)
    indices = tf.cast(draws[:, 0] * len(OPERATIONS), tf.int32)
    signs = tf.where(draws[:, 1] < 0.5, -1.0, 1.0)
    result = image
    for i in range(operations):
        result = _apply(indices[i], result, signs[i])
    return tf.ensure_shape(result, image.shape)


# Traced once: each epoch has a pipeline of its own.
@functools.partial(
    tf.function,
    autograph=False,
    input_signature=[
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([], tf.float32),
    ],
)
def _apply(index, image, sign) -> tf.Tensor:
    """Calls one of the operations."""
    branches = [functools.partial(operation, image, sign) for operation in OPERATIONS]
    return tf.switch_case(index, branches)


def _as_rows(image) -> tf.Tensor:
    """Joins the columns and channels: TensorFlow is slow where an axis has length 3."""
    return tf.reshape(image, [tf.shape(image)[0], -1])


def identity(image, sign) -> tf.Tensor:
    """Returns the image."""
    del sign
    return tf.identity(image)


def shear_x(image, sign) -> tf.Tensor:
    """Shifts each row, the first one least.

    It interpolates linearly, as `rotate`, and takes half of its time.
    """
    height, width, _ = tf.unstack(tf.shape(image))
    centers = tf.range(tf.cast(height, tf.float32)) + 0.5
    shifts = sign * SHEAR * centers
    whole = tf.floor(shifts)
    most = tf.cast(tf.math.ceil(SHEAR * tf.cast(height, tf.float32)), tf.int32)
    black = tf.pad(image, [[0, 0], [most, most + 1], [0, 0]])
    starts = tf.range(height) * tf.shape(black)[1] + most + tf.cast(whole, tf.int32)
    # One pixel more than is wide, and the values of a row in one axis.
    indices = starts[:, None] + tf.range(width + 1)
    pixels = tf.gather(tf.reshape(black, [-1, 3]), indices)
    rows = tf.cast(tf.reshape(pixels, [height, -1]), tf.float32)
    left, right = rows[:, :-3], rows[:, 3:]
    sheared = left + (shifts - whole)[:, None] * (right - left)
    return tf.reshape(tf.cast(sheared, tf.uint8), tf.shape(image))


def shear_y(image, sign) -> tf.Tensor:
    """Shifts each column, the first one least."""
    turned = tf.transpose(image, [1, 0, 2])
    return tf.transpose(shear_x(turned, sign), [1, 0, 2])


def rotate(image, sign) -> tf.Tensor:
    """Turns the image around its center; what was outside is black."""
    cosine, sine = math.cos(ROTATION), sign * math.sin(ROTATION)
    # TensorFlow counts from the center of the first pixel, not from its corner.
    height, width, _ = tf.unstack(tf.cast(tf.shape(image), tf.float32))
    x, y = (width - 1) / 2, (height - 1) / 2
    by_row = cosine, sine, x - cosine * x - sine * y
    by_column = -sine, cosine, y + sine * x - cosine * y
    rotated = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],
        transforms=tf.stack([*by_row, *by_column, 0.0, 0.0])[None],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.cast(rotated[0], tf.uint8)


def translate_x(image, sign) -> tf.Tensor:
    """Shifts the image by columns."""
    return _translate(image, sign, axis=1)


def translate_y(image, sign) -> tf.Tensor:
    """Shifts the image by rows."""
    return _translate(image, sign, axis=0)


def _translate(image, sign, axis: int) -> tf.Tensor:
    size = tf.shape(image)
    steps = tf.cast(tf.cast(size[axis], tf.float32) * TRANSLATION, tf.int32)
    is_shifted = tf.one_hot(axis, 3, dtype=tf.int32)
    black = tf.pad(image, (steps * is_shifted)[:, None] * [[1, 1]])
    return tf.slice(black, (1 + tf.cast(sign, tf.int32)) * steps * is_shifted, size)


def brightness(image, sign) -> tf.Tensor:
    """Makes the image darker or brighter."""
    return _blend(0.0, tf.cast(image, tf.float32), sign)


def color(image, sign) -> tf.Tensor:
    """Makes the image grayer or more colorful."""
    factor = 1 + sign * CHANGE
    # Of a pixel [3] to `factor` times itself and the rest times its gray.
    matrix = factor * tf.eye(3) + (1 - factor) * tf.constant(GRAY)[:, None]
    pixels = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    changed = tf.saturate_cast(tf.matmul(pixels, matrix), tf.uint8)
    return tf.reshape(changed, tf.shape(image))


def contrast(image, sign) -> tf.Tensor:
    """Moves the values to or from the mean gray."""
    values = tf.cast(image, tf.float32)
    means = tf.reduce_mean(tf.reduce_mean(values, axis=0), axis=0)
    return _blend(tf.round(tf.reduce_sum(means * GRAY)), values, sign)


def sharpness(image, sign) -> tf.Tensor:
    """Blurs or sharpens the image, except for its outermost pixels."""
    values = tf.cast(image, tf.float32)
    sums = values[:-2] + values[1:-1] + values[2:]
    sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
    inner = values[1:-1, 1:-1]
    blurred = _blend(tf.round((sums + 4 * inner) / 13), inner, sign)
    middle = tf.concat([image[1:-1, :1], blurred, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], middle, image[-1:]], axis=0)


def _blend(start, values, sign) -> tf.Tensor:
    """Goes from `start` to the values, and not as far or farther."""
    blended = start + (1 + sign * CHANGE) * (values - start)
    return tf.saturate_cast(blended, tf.uint8)


def posterize(image, sign) -> tf.Tensor:
    """Drops the last bit."""
    del sign
    return tf.bitwise.bitwise_and(image, tf.constant(POSTERIZED, tf.uint8))


def solarize(image, sign) -> tf.Tensor:
    """Inverts bright values."""
    del sign
    is_bright = tf.cast(image >= math.ceil(SOLARIZED), tf.uint8)
    return tf.bitwise.bitwise_xor(image, 255 * is_bright)  # 255 - image


def auto_contrast(image, sign) -> tf.Tensor:
    """Spreads the values of each channel from 0 to 255."""
    del sign
    low = tf.cast(tf.reduce_min(tf.reduce_min(image, axis=0), axis=0), tf.float32)
    high = tf.cast(tf.reduce_max(tf.reduce_max(image, axis=0), axis=0), tf.float32)
    is_flat = low == high
    scale = 255 / tf.where(is_flat, 255.0, high - low)
    offset = tf.where(is_flat, 0.0, -low * scale)
    width = tf.shape(image)[1]
    rows = tf.cast(_as_rows(image), tf.float32)
    spread = rows * tf.tile(scale, [width]) + tf.tile(offset, [width])
    return tf.reshape(tf.saturate_cast(spread, tf.uint8), tf.shape(image))


def equalize(image, sign) -> tf.Tensor:
    """Makes the values of each channel about equally frequent."""
    del sign
    # Numbers of the values of all channels, 256 of each.
    channels = tf.tile(256 * tf.range(3), [tf.shape(image)[1]])
    numbers = tf.cast(_as_rows(image), tf.int32) + channels
    counts = tf.math.bincount(tf.reshape(numbers, [-1]), minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    below = tf.cumsum(counts, axis=1, exclusive=True)
    # The pixels with the highest value do not count.
    highest = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1)
    last = tf.gather(counts, highest[:, None], batch_dims=1)
    step = (tf.reduce_sum(counts, axis=1, keepdims=True) - last) // 255
    table = (below + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    table = tf.reshape(tf.cast(table, tf.uint8), [-1])
    return tf.reshape(tf.gather(table, numbers), tf.shape(image))


OPERATIONS: tuple[Callable, ...] = (
    identity,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
    brightness,
    color,
    contrast,
    sharpness,
    posterize,
    solarize,
    auto_contrast,
    equalize,
)
