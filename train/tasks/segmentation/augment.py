"""Scales, crops and flips of images with masks, as pure functions of a seed.

Source: https://arxiv.org/abs/1706.05587, section 4.1, data augmentation. The layers of
keras-cv draw from their own generators, whose state a resumed run could not restore,
and take decoded images; here a crop is chosen before the image is decoded.
"""

from typing import NamedTuple

import tensorflow as tf

from train.data import images
from train.data.masks import IGNORE_INDEX


class Placement(NamedTuple):
    """A part of an image, and its place on the crop; int32 tensors."""

    window: tf.Tensor  # top, left, height and width of the part, at least one pixel
    size: tf.Tensor  # height and width of the resized part
    corner: tf.Tensor  # row and column of the crop at which the part begins


def random_placement(image_size, size, min_scale: float, seed) -> Placement:
    """Draws the scale of an image, and the position of its crop.

    The short side becomes `sqrt(min_scale)` to `1 / sqrt(min_scale)` times the crop's.
    The aspect is drawn between the image's own and a square's, since an evaluation
    resizes every image to a square. If the image is larger than the crop, a random part
    of it is kept; if it is smaller, it is placed at random on the crop.
    """
    image_size, size = tf.cast(image_size, tf.float32), tf.cast(size, tf.float32)
    seeds = tf.random.experimental.stateless_split(seed, 3)
    factor = min_scale**0.5
    factor = tf.random.stateless_uniform([], seeds[0], factor, 1 / factor)
    own = tf.random.stateless_uniform([], seeds[1])  # 0: a square, 1: its own aspect
    sides = (image_size / tf.reduce_min(image_size)) ** own  # one is 1
    resized = tf.maximum(tf.round(factor * tf.reduce_min(size) * sides), 1.0)
    free = resized - size  # negative where the image is smaller
    start = tf.floor(tf.random.stateless_uniform([2], seeds[2]) * (tf.abs(free) + 1))
    start = tf.minimum(start, tf.abs(free)) * tf.sign(free)
    first = tf.maximum(start, 0.0)
    last = tf.minimum(start + size, resized)
    # Rounded to whole pixels, so that image and mask agree.
    top_left = tf.minimum(tf.floor(first / resized * image_size), image_size - 1)
    bottom_right = tf.minimum(tf.math.ceil(last / resized * image_size), image_size)
    window = [top_left, tf.maximum(bottom_right - top_left, 1.0)]
    numbers = tf.concat(window, axis=0), last - first, tf.maximum(-start, 0.0)
    return Placement(*(tf.cast(number, tf.int32) for number in numbers))


def _pad(values, placement: Placement, size, filler: int) -> tf.Tensor:
    """Pads a resized part to its crop: `[height, width, channels]`."""
    before, after = placement.corner, size - placement.corner - placement.size
    paddings = tf.concat([tf.stack([before, after], axis=1), [[0, 0]]], axis=0)
    padded = tf.pad(values, paddings, constant_values=tf.cast(filler, values.dtype))
    return tf.ensure_shape(padded, [None, None, values.shape[-1]])


def place_image(picture: images.Picture, placement: Placement, size) -> tf.Tensor:
    """Decodes a part of an image and places it on its crop; the rest is black."""
    part = images.crop_and_resize(
        picture, placement.window, placement.size, images.TRAINING_GAP
    )
    return _pad(part, placement, size, 0)


def place_mask(mask, placement: Placement, size) -> tf.Tensor:
    """Places a part of a whole mask on its crop, which is `IGNORE_INDEX` elsewhere."""
    top, left, height, width = tf.unstack(placement.window)
    part = mask[top : top + height, left : left + width]
    resized = resize_mask(part, placement.size)[..., None]
    return _pad(resized, placement, size, IGNORE_INDEX)[..., 0]


def resize_mask(mask, size) -> tf.Tensor:
    """Resizes a mask to uint8 `[*size]`, with the class of the nearest pixel."""
    return tf.image.resize(mask[..., None], size, "nearest")[..., 0]


def random_flip(image, mask, seed) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors image and mask, left to right, in half of the cases."""
    is_mirrored = tf.random.stateless_uniform([], seed) < 0.5
    return tf.cond(
        is_mirrored, lambda: (image[:, ::-1], mask[:, ::-1]), lambda: (image, mask)
    )
