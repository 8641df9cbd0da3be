"""SSD's anchors (default boxes). They depend only on the size of the image."""

import math

import numpy as np

STRIDES = (16, 32, 64, 128, 256)  # of the first feature maps; the sixth is one cell
# Aspect ratios of each map's anchors, besides 1; each of them wide and tall.
ASPECT_RATIOS = ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,))
MIN_SCALE, MAX_SCALE = 0.1, 1.05  # sides of anchors, as fractions of the image's
# Each cell has two squares, and two anchors for each other ratio.
ANCHORS_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in ASPECT_RATIOS)


def feature_map_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Returns (rows, columns) of an image's six feature maps, the finest map first."""
    sides = ((-(-height // stride), -(-width // stride)) for stride in STRIDES)
    return [*sides, (1, 1)]


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


def anchor_boxes(height: int, width: int) -> np.ndarray:
    """Returns the anchors of an image.

    Args:
        height: height of the image in pixels, at least 1.
        width: width of the image in pixels, at least 1.

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
    anchors = []
    for index, (rows, columns) in enumerate(feature_map_shapes(height, width)):
        sizes = _anchor_sizes(index)  # [k, 2]
        boxes = np.empty((rows, columns, len(sizes), 4))
        boxes[..., 0] = (np.arange(columns)[:, None] + 0.5) / columns
        boxes[..., 1] = (np.arange(rows)[:, None, None] + 0.5) / rows
        boxes[..., 2:] = sizes
        anchors.append(boxes.reshape(-1, 4))
    return np.clip(np.concatenate(anchors), 0.0, 1.0).astype(np.float32)
