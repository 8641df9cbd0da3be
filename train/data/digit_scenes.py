"""Scenes composed of scikit-learn's handwritten digits, with exact boxes and masks.

The digits of the training scenes are those that classification trains on, and those of
the validation scenes the others. A scene is a function of its number.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train.data.annotations import Objects
from train.data.sources import SPLITS

SIDE = 128  # of a scene, in pixels
SCENES = {"train": 1600, "validation": 200}
MAX_DIGITS = 6
DIGIT_SIDES = (24, 64)  # in pixels, the frame of 8x8 cells
TRIES = 20  # to find a place where a digit covers no other
MAX_OVERLAP = 0.1  # of two boxes: intersection over the smaller area
FOREGROUND = 0.15  # above which a digit's pixel counts as ink


class Scene(NamedTuple):
    """A picture and what is on it.

    Attributes:
        encoded: a PNG.
        objects: the digits, whose `path` is a name.
        mask: uint8 `[height, width]`: 0 on the ground, and 1 more than the digit whose
            ink covers a pixel; of two, that of the one drawn last.
    """

    encoded: bytes
    objects: Objects
    mask: np.ndarray


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a split's digits, `[count, 8, 8]` in [0, 1], and their classes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    ids = np.arange(len(digits.images))
    parts = train_test_split(ids, test_size=0.2, random_state=0, stratify=digits.target)
    chosen = dict(zip(SPLITS, parts))[split]
    return digits.images[chosen] / 16, digits.target[chosen]


def _enlarge(digit: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a digit smoothly, in NumPy: thousands of them are made at once."""
    for side in (height, width):
        places = np.clip((np.arange(side) + 0.5) * len(digit) / side - 0.5, 0, 7)
        low = np.minimum(places.astype(int), 6)
        part = (places - low)[:, None]
        digit = (digit[low] * (1 - part) + digit[low + 1] * part).T
    return digit


def _ink_box(ink: np.ndarray) -> np.ndarray:
    """Returns the corners of what is above the background, in pixels."""
    rows = np.flatnonzero((ink > FOREGROUND).any(axis=1))
    columns = np.flatnonzero((ink > FOREGROUND).any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _covers(box: np.ndarray, others: list) -> bool:
    for other in others:
        size = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        smaller = min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))
        if np.prod(np.maximum(size, 0)) > MAX_OVERLAP * smaller:
            return True
    return False


def _make_scene(name: str, images, labels, rng) -> Scene:
    """Draws one to six digits in colours of their own on a noisy ground."""
    ground = rng.uniform(0, 110, 3)
    scene = ground + rng.normal(0, 8, (SIDE, SIDE, 3))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    boxes, classes = [], []
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        index = rng.integers(len(images))
        height = rng.integers(*DIGIT_SIDES, endpoint=True)
        width = int(height * rng.uniform(0.7, 1.0))
        ink = _enlarge(images[index], height, width)
        box = _ink_box(ink)
        for _ in range(TRIES):
            left, top = rng.integers(0, SIDE - width), rng.integers(0, SIDE - height)
            placed = box + np.array([left, top, left, top])
            if not _covers(placed, boxes):
                break
        else:
            continue  # no room
        color = rng.uniform(150, 255, 3)
        window = scene[top : top + height, left : left + width]
        window += ink[..., None] * (color - window)
        covered = mask[top : top + height, left : left + width]
        covered[ink > FOREGROUND] = labels[index] + 1
        boxes.append(placed)
        classes.append(labels[index])
    pixels = np.clip(np.round(scene), 0, 255).astype(np.uint8)
    corners = np.float32(boxes) / SIDE
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    objects = Objects(
        name, corners, np.int32(classes), np.zeros(len(boxes), bool), areas
    )
    return Scene(tf.io.encode_png(pixels).numpy(), objects, mask)


def make_scenes(split: str, count: int) -> list[Scene]:
    """Makes a split's scenes.

    Args:
        split: `"train"` or `"validation"`.
        count: of scenes.

    Returns:
        The first so many of the split's scenes, 128x128 pixels.
    """
    images, labels = _digits(split)
    return [
        _make_scene(
            f"digits/{split}/{number}",
            images,
            labels,
            np.random.default_rng((SPLITS.index(split), number)),
        )
        for number in range(count)
    ]
