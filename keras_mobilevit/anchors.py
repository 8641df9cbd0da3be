"""SSD's anchors (default boxes). They depend on the sizes of image and feature maps."""

import math
import operator

import numpy as np

from keras_mobilevit.configs import VARIANTS, get_variant

STRIDES = (16, 32, 64, 128, 256)  # of the first feature maps; the sixth is one cell
ROUNDED_STRIDES = (8, 16, 32)  # of the backbone's stages 3, 4 and 5
# Aspect ratios of each map's anchors, besides 1; each of them wide and tall.
ASPECT_RATIOS = ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,))
MIN_SCALE, MAX_SCALE = 0.1, 1.05  # sides of anchors, as fractions of the image's
# Each cell has two squares, and two anchors for each other ratio.
ANCHORS_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in ASPECT_RATIOS)


def _map_sides(side: int, multiple: int) -> list[int]:
    """Returns the side of the feature map at each of `STRIDES`."""
    sides, stride = [], 1
    while stride < STRIDES[-1]:
        side, stride = -(-side // 2), 2 * stride
        if stride in ROUNDED_STRIDES:
            side = -(-side // multiple) * multiple
        if stride in STRIDES:
            sides.append(side)
    return sides


def feature_map_shapes(
    height: int, width: int, map_multiple: int = 1
) -> list[tuple[int, int]]:
    """Returns (rows, columns) of an image's six feature maps, the finest map first.

    `map_multiple` is that of the backbone's `keras_mobilevit.configs.Family`.
    """
    sides = (_map_sides(side, map_multiple) for side in (height, width))
    return [*zip(*sides), (1, 1)]


def _anchor_sizes(index: int) -> np.ndarray:
    """Returns (w, h) of the anchors in each cell of a feature map, `[anchors, 2]`."""
    scales = np.linspace(MIN_SCALE, MAX_SCALE, len(ASPECT_RATIOS) + 1)
    scale, next_scale = scales[index : index + 2]
    between = math.sqrt(scale * next_scale)
    sizes = [(scale, scale), (between, between)]
    for ratio in ASPECT_RATIOS[index]:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        sizes += [(long, short), (short, long)]
    return np.array(sizes)


def _anchors(shapes: list[tuple[int, int]]) -> np.ndarray:
    anchors = []
    for index, (rows, columns) in enumerate(shapes):
        sizes = _anchor_sizes(index)  # [k, 2]
        boxes = np.empty((rows, columns, len(sizes), 4))
        boxes[..., 0] = (np.arange(columns)[:, None] + 0.5) / columns
        boxes[..., 1] = (np.arange(rows)[:, None, None] + 0.5) / rows
        boxes[..., 2:] = sizes
        anchors.append(boxes.reshape(-1, 4))
    return np.clip(np.concatenate(anchors), 0.0, 1.0).astype(np.float32)


def anchor_boxes(height: int, width: int, backbone: str = "mobilevit_s") -> np.ndarray:
    """Returns the anchors of an image.

    Args:
        height: height of the image in pixels, at least 1.
        width: width of the image in pixels, at least 1.
        backbone: name of the detector's backbone. Only if a side of the image is not a
            multiple of 64, MobileViTv2 has other anchors than MobileViT.

    Returns:
        float32 `[anchors, 4]`: centers and sizes `(cx, cy, w, h)` as fractions of the
        image, each in [0, 1]. Anchors have the order of the network's outputs: the
        finest map first, each map row by row, and the anchors of a cell together. At
        320x320 there are 3,232.

    Source: section 2.2 of SSD, https://arxiv.org/abs/1512.02325, with the scales of the
    published MobileViT detectors.

    Example:
    >>> anchor_boxes(320, 320).shape
    (3232, 4)
    """
    for name, side in (("height", height), ("width", width)):
        if side < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={side}.")
    multiple = get_variant(backbone).family.map_multiple
    return _anchors(feature_map_shapes(height, width, multiple))


def anchors_of_count(height: int, width: int, count: int) -> np.ndarray:
    """Returns the anchors of an image for a network that predicts `count` boxes.

    A larger multiple makes no map smaller. So if two families have the same number of
    anchors, they have the same maps.
    """
    counts = {}
    for multiple in sorted({x.family.map_multiple for x in VARIANTS.values()}):
        shapes = feature_map_shapes(height, width, multiple)
        cells = (rows * columns for rows, columns in shapes)
        found = sum(map(operator.mul, cells, ANCHORS_PER_CELL))
        if found == count:
            return _anchors(shapes)
        counts[found] = multiple
    raise ValueError(
        f"A detector has {' or '.join(map(str, counts))} anchors at {height}x{width} "
        f"pixels, but the outputs have {count}. Do they belong to such an image?"
    )
