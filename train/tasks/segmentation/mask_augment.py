"""Scales, crops, turns and flips of images with masks, as pure functions of a seed.

Source: https://arxiv.org/abs/1706.05587, section 4.1, data augmentation. keras-cv's
layers for the same draw from generators of their own, which a run that continues could
not restore, and take decoded images: here a crop is chosen before one is decoded.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from train.data import images
from train.data.masks import IGNORE_INDEX


class Placement(NamedTuple):
    """Where an image goes on its crop; int32 tensors.

    Attributes:
        window: `[4]`: top, left, height and width of the part of the image that is
            seen, at least one pixel.
        size: `[2]`: height and width to which that part is resized.
        corner: `[2]`: row and column of the crop at which it begins.
    """

    window: tf.Tensor
    size: tf.Tensor
    corner: tf.Tensor


def random_placement(image_size, size, min_scale: float, seed) -> Placement:
    """Draws the scale of an image, and where a crop of it lies.

    The short side becomes `sqrt(min_scale)` to `1 / sqrt(min_scale)` times the crop's.
    An evaluation squeezes whatever image into a square, so the training has to see that
    too: the aspect is drawn between the image's own and that of a square. Of an image
    that is larger than the crop a random part is taken; one that is smaller goes to a
    random place of it.

    Args:
        image_size: integers `[2]`: height and width.
        size: those of the crop.
        min_scale: in (0, 1], the smallest part of the image's area that the crop has.
        seed: two integers.

    Returns:
        The `Placement`.
    """
    image_size, size = tf.cast(image_size, tf.float32), tf.cast(size, tf.float32)
    seeds = tf.random.experimental.stateless_split(seed, 3)
    factor = min_scale**0.5
    factor = tf.random.stateless_uniform([], seeds[0], factor, 1 / factor)
    own = tf.random.stateless_uniform([], seeds[1])  # 0: square, 1: the own aspect
    sides = (image_size / tf.reduce_min(image_size)) ** own  # of which one is 1
    resized = tf.maximum(tf.round(factor * tf.reduce_min(size) * sides), 1.0)
    free = resized - size  # beyond the crop, or less than 0 for what is missing
    start = tf.floor(tf.random.stateless_uniform([2], seeds[2]) * (tf.abs(free) + 1))
    start = tf.minimum(start, tf.abs(free)) * tf.sign(free)
    first = tf.maximum(start, 0.0)
    last = tf.minimum(start + size, resized)
    # To whole pixels of the image, in which image and mask agree.
    top_left = tf.minimum(tf.floor(first / resized * image_size), image_size - 1)
    bottom_right = tf.minimum(tf.math.ceil(last / resized * image_size), image_size)
    window = [top_left, tf.maximum(bottom_right - top_left, 1.0)]
    numbers = tf.concat(window, axis=0), last - first, tf.maximum(-start, 0.0)
    return Placement(*(tf.cast(number, tf.int32) for number in numbers))


def _pad(values, placement: Placement, size, filler: int):
    """Puts what is resized in its place on the crop: `[height, width, channels]`."""
    before, after = placement.corner, size - placement.corner - placement.size
    paddings = tf.concat([tf.stack([before, after], axis=1), [[0, 0]]], axis=0)
    padded = tf.pad(values, paddings, constant_values=tf.cast(filler, values.dtype))
    return tf.ensure_shape(padded, [None, None, values.shape[-1]])


def place_image(part, placement: Placement, size):
    """Resizes the seen part of an image and puts it on its crop, black elsewhere.

    Args:
        part: `[height, width, 3]`: what is in `placement.window`.
        placement: from `random_placement`.
        size: height and width of the crop.

    Returns:
        uint8 `[*size, 3]`.
    """
    return _pad(images.resize(part, placement.size), placement, size, 0)


def place_mask(mask, placement: Placement, size):
    """Does the same with a mask, ignored elsewhere.

    Args:
        mask: uint8 `[height, width]`, of the whole image.
        placement: from `random_placement`.
        size: height and width of the crop.

    Returns:
        uint8 `[*size]`; no class that the mask does not have, but `IGNORE_INDEX`.
    """
    top, left, height, width = tf.unstack(placement.window)
    part = mask[top : top + height, left : left + width]
    resized = resize_mask(part, placement.size)[..., None]
    return _pad(resized, placement, size, IGNORE_INDEX)[..., 0]


def resize_mask(mask, size):
    """Takes for each pixel the class of the nearest: uint8 `[*size]`."""
    return tf.image.resize(mask[..., None], size, "nearest")[..., 0]


def random_flip(image, mask, seed):
    """Mirrors image and mask, left to right, in half of the cases.

    Args:
        image: `[height, width, 3]`.
        mask: `[height, width]`.
        seed: two integers.

    Returns:
        Both.
    """
    is_mirrored = tf.random.stateless_uniform([], seed) < 0.5
    return tf.cond(
        is_mirrored, lambda: (image[:, ::-1], mask[:, ::-1]), lambda: (image, mask)
    )


def random_rotation(image, mask, degrees: float, seed):
    """Turns image and mask about their centre; what comes in is black and ignored.

    Args:
        image: uint8 `[height, width, 3]`.
        mask: uint8 `[height, width]`.
        degrees: the angle is uniform up to these, to either side.
        seed: two integers.

    Returns:
        Both, of the same size.
    """
    limit = math.radians(degrees)
    angle = tf.random.stateless_uniform([], seed, -limit, limit)
    size = tf.shape(mask)
    y, x = tf.unstack((tf.cast(size, tf.float32) - 1) / 2)  # of the centre
    cos, sin = tf.cos(angle), tf.sin(angle)
    # From a place of the result to that of the original.
    rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, 0.0, 0.0]

    def turned(values, interpolation: str, filler: float):
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(values[None], tf.float32),
            transforms=tf.stack(rows)[None],
            output_shape=size,
            fill_value=filler,
            interpolation=interpolation,
        )[0]

    turned_image = images.to_uint8(turned(image, "BILINEAR", 0.0))
    turned_mask = turned(mask[..., None], "NEAREST", float(IGNORE_INDEX))[..., 0]
    return (
        tf.ensure_shape(turned_image, image.shape),
        tf.ensure_shape(tf.cast(turned_mask, tf.uint8), mask.shape),
    )
