"""Crops and flips of images with boxes, as pure functions of a seed.

Source: section 2.2 of SSD, https://arxiv.org/abs/1512.02325. The layers of keras-cv
draw from their own generators, whose state a resumed run could not restore, and take
decoded images; here a crop is chosen before the image is decoded.
"""

import tensorflow as tf

from keras_mobilevit import boxes as box_math

TRIES = 40  # windows that are drawn for a crop
# One of these is drawn for each crop. If it is `UNREACHABLE_IOU`, no window fits, and
# the whole image is kept.
MIN_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
UNREACHABLE_IOU = 2.0
ASPECT_RATIOS = (0.5, 2.0)


def random_crop(boxes, is_object, aspect, min_side: float, seed) -> tf.Tensor:
    """Draws the window of SSD's crop, corners `[4]` as fractions of the image.

    In one of seven cases the whole image is kept. In the others the crop is the first
    of 40 random windows that contains the center of an object and overlaps the object
    by at least 0, 0.1, 0.3, 0.5, 0.7 or 0.9 (intersection over union). If no window
    does, the whole image is kept. Sides are uniform from `min_side` to 1; with 1 the
    whole image is always kept. `aspect` is the image's width over its height.
    """
    seeds = tf.random.experimental.stateless_split(seed, 3)
    sides = tf.random.stateless_uniform([TRIES, 2], seeds[0], min_side, 1.0)  # w, h
    first = tf.random.stateless_uniform([TRIES, 2], seeds[1]) * (1 - sides)
    windows = tf.concat([first, first + sides], axis=1)  # [tries, 4]
    ratios = aspect * sides[:, 0] / sides[:, 1]
    mode = tf.random.stateless_uniform([], seeds[2], 0, len(MIN_IOUS) + 1, tf.int32)
    min_iou = tf.gather(tf.constant([*MIN_IOUS, UNREACHABLE_IOU]), mode)
    overlaps = box_math.iou(windows[:, None], boxes[None])  # [tries, objects]
    overlaps = tf.where(is_object & _has_center(windows[:, None], boxes), overlaps, -1)
    fits = tf.reduce_any(overlaps >= min_iou, axis=1)
    fits &= (ratios >= ASPECT_RATIOS[0]) & (ratios <= ASPECT_RATIOS[1])
    # The whole image comes last, as the window that always fits.
    chosen = tf.argmax(tf.concat([fits, [True]], axis=0))
    return tf.concat([windows, [[0.0, 0.0, 1.0, 1.0]]], axis=0)[chosen]


def _has_center(windows, boxes) -> tf.Tensor:
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = (centers > windows[..., :2]) & (centers < windows[..., 2:])
    return tf.reduce_all(inside, axis=-1)


def crop_boxes(boxes, is_object, window) -> tuple[tf.Tensor, tf.Tensor]:
    """Expresses boxes as fractions of a window, and clips them to it.

    Also returns which boxes are objects: those with their center inside the window.
    """
    is_object &= _has_center(window, boxes)
    size = window[2:] - window[:2]
    moved = (boxes - tf.tile(window[:2], [2])) / tf.tile(size, [2])
    return box_math.clip(moved), is_object


def random_flip(image, boxes, seed) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors image and corners, left to right, in half of the cases."""
    is_mirrored = tf.random.stateless_uniform([], seed) < 0.5
    x1, y1, x2, y2 = tf.unstack(boxes, axis=1)
    mirrored = tf.stack([1 - x2, y1, 1 - x1, y2], axis=1)
    image = tf.cond(is_mirrored, lambda: image[:, ::-1], lambda: image)
    return image, tf.where(is_mirrored, mirrored, boxes)
