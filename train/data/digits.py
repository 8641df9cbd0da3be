"""scikit-learn's handwritten digits: alone, or in scenes with exact boxes and masks.

The 1,797 digits are split once: classification and the training scenes take four
fifths of each class, and the validation scenes take the rest. The index of a scene is
the seed of all that is random in it.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train.data.box_annotations import Objects, box_areas, object_source
from train.data.masks import encode_mask
from train.data.source import SPLITS, Source, indexed_source

CLASS_NAMES = tuple(map(str, range(10)))
SIDE = 128  # of a scene, in pixels
SCENES = {"train": 1600, "validation": 200}
MAX_DIGITS = 6
DIGIT_SIDES = (24, 64)  # in pixels, of the enlarged image of 8x8 pixels
TRIES = 20  # to find a position where a digit hides no other
MAX_OVERLAP = 0.1  # of two boxes: intersection over the smaller area
FOREGROUND = 0.15  # a pixel above it belongs to the digit


def digits_source(argument: str = "", cache: bool = False) -> Source:
    """Opens the single digits, images of 8x8 pixels; a fifth of each is held out."""
    images, labels, parts = _load_digits()
    pixels = np.round(images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    encoded = [tf.io.encode_png(image[..., None]).numpy() for image in pixels]
    columns = {
        split: {
            "encoded": [encoded[i] for i in indices],
            "label": labels[indices].astype(np.int32),
            "id": [f"digits/{i}" for i in indices],
        }
        for split, indices in parts.items()
    }
    return indexed_source("digits", CLASS_NAMES, columns)


def box_scene_source(
    argument: str = "", cache: bool = False, counts: Mapping[str, int] = SCENES
) -> Source:
    """Opens scenes of digits with boxes, `counts` of them by split."""
    splits, images = {}, {}
    for split, count in counts.items():
        scenes = make_scenes(split, count)
        splits[split] = [scene.objects for scene in scenes]
        images[split] = _image_columns(scenes)
    return object_source("digits", CLASS_NAMES, splits, images)


def mask_scene_source(
    argument: str = "", cache: bool = False, counts: Mapping[str, int] = SCENES
) -> Source:
    """Opens scenes of digits with masks, whose class 0 is the background."""
    columns = {}
    for split, count in counts.items():
        scenes = make_scenes(split, count)
        masks = [encode_mask(scene.mask) for scene in scenes]
        columns[split] = _image_columns(scenes) | {"mask": masks}
    return indexed_source("digits", ("background", *CLASS_NAMES), columns)


class Scene(NamedTuple):
    """An image of several digits, a PNG, with its boxes and its mask.

    The `path` of `objects` is the name of the scene. The mask, uint8 `[height, width]`,
    is 0 for the background, and the digit plus 1 where a digit was drawn; a later digit
    covers an earlier one.
    """

    encoded: bytes
    objects: Objects
    mask: np.ndarray


def _image_columns(scenes: list[Scene]) -> dict[str, list]:
    return {
        "encoded": [scene.encoded for scene in scenes],
        "id": [scene.objects.path for scene in scenes],
    }


@functools.cache
def _load_digits() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Returns digits `[1797, 8, 8]` in [0, 16], labels, and indices by split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    ids = np.arange(len(digits.images))
    parts = train_test_split(ids, test_size=0.2, random_state=0, stratify=digits.target)
    return digits.images, digits.target, dict(zip(SPLITS, parts))


def _enlarge(digit: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a digit `[8, 8]` bilinearly, in NumPy, since there are thousands."""
    for side in (height, width):
        positions = np.clip((np.arange(side) + 0.5) * len(digit) / side - 0.5, 0, 7)
        low = np.minimum(positions.astype(int), 6)
        weight = (positions - low)[:, None]
        digit = (digit[low] * (1 - weight) + digit[low + 1] * weight).T
    return digit


def _foreground_box(digit: np.ndarray) -> np.ndarray:
    """Returns the corners of the foreground, in pixels."""
    rows = np.flatnonzero((digit > FOREGROUND).any(axis=1))
    columns = np.flatnonzero((digit > FOREGROUND).any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _hides_another(box: np.ndarray, others: list[np.ndarray]) -> bool:
    for other in others:
        size = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        smaller = min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))
        if np.prod(np.maximum(size, 0)) > MAX_OVERLAP * smaller:
            return True
    return False


def _make_scene(name: str, images: np.ndarray, labels: np.ndarray, rng) -> Scene:
    """Draws one to six digits in random colors on a noisy background."""
    background = rng.uniform(0, 110, 3)
    scene = background + rng.normal(0, 8, (SIDE, SIDE, 3))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    boxes: list[np.ndarray] = []
    classes = []
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        index = rng.integers(len(images))
        height = rng.integers(*DIGIT_SIDES, endpoint=True)
        width = int(height * rng.uniform(0.7, 1.0))
        digit = _enlarge(images[index], height, width)
        box = _foreground_box(digit)
        for _ in range(TRIES):
            left, top = rng.integers(0, SIDE - width), rng.integers(0, SIDE - height)
            moved = box + np.array([left, top, left, top])
            if not _hides_another(moved, boxes):
                break
        else:
            continue  # no room
        color = rng.uniform(150, 255, 3)
        window = scene[top : top + height, left : left + width]
        window += digit[..., None] * (color - window)
        covered = mask[top : top + height, left : left + width]
        covered[digit > FOREGROUND] = labels[index] + 1
        boxes.append(moved)
        classes.append(labels[index])
    pixels = np.clip(np.round(scene), 0, 255).astype(np.uint8)
    corners = np.asarray(boxes, np.float32) / SIDE  # [digits, 4]
    labels, is_crowd = np.asarray(classes, np.int32), np.zeros(len(boxes), bool)
    objects = Objects(name, corners, labels, is_crowd, box_areas(corners))
    return Scene(tf.io.encode_png(pixels).numpy(), objects, mask)


def make_scenes(split: str, count: int) -> list[Scene]:
    """Makes the first scenes of a split, 128x128 pixels each."""
    images, labels, parts = _load_digits()
    indices = parts[split]
    images, labels = images[indices] / 16, labels[indices]
    scenes = []
    for index in range(count):
        rng = np.random.default_rng((SPLITS.index(split), index))
        scenes.append(_make_scene(f"digits/{split}/{index}", images, labels, rng))
    return scenes
