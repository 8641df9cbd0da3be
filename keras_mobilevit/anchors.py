"""SSD's anchors (default boxes), from the size of the image alone."""

import math

import numpy as np

STRIDES = (16, 32, 64, 128, 256)  # of the feature maps; the last one is a single cell
# Aspect ratios other than 1 of each map's anchors, each upright and lying.
ASPECT_RATIOS = ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,))
MIN_SCALE, MAX_SCALE = 0.1, 1.05  # sides of anchors, as fractions of the image's
# A cell has for each map: two squares, and two of each other ratio.
ANCHORS_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in ASPECT_RATIOS)


def feature_map_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Returns the (height, width) of each of the six feature maps of an image.

    Args:
        height: of the image, in pixels.
        width: likewise.
    """
    sides = ((-(-height // stride), -(-width // stride)) for stride in STRIDES)
    return [*sides, (1, 1)]


def _shapes(index: int) -> np.ndarray:
    """Returns (w, h) of the anchors in a cell of one map, `[anchors, 2]`."""
    scales = np.linspace(MIN_SCALE, MAX_SCALE, len(ASPECT_RATIOS) + 1)
    scale, next_scale = scales[index : index + 2]
    between = math.sqrt(scale * next_scale)
    shapes = [(scale, scale), (between, between)]
    for ratio in ASPECT_RATIOS[index]:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return np.array(shapes)


def anchor_boxes(height: int, width: int) -> np.ndarray:
    """Returns the anchors of an image.

    Args:
        height: of the image, in pixels; at least 1.
        width: likewise.

    Returns:
        float32 `[anchors, 4]`: centres and sizes `(cx, cy, w, h)` as fractions of the
        image, each in [0, 1]. Map by map from the finest, row by row, the anchors of a
        cell one after the other: the order of the network's outputs. 3,232 of them at
        320x320.

    Source: section 2.2 of SSD, https://arxiv.org/abs/1512.02325, with the scales of the
    published MobileViT detectors.

    Example:
    >>> anchor_boxes(320, 320).shape
    (3232, 4)
    """
    anchors = []
    for index, (rows, columns) in enumerate(feature_map_shapes(height, width)):
        shapes = _shapes(index)  # [k, 2]
        cy, cx = np.meshgrid(
            (np.arange(rows) + 0.5) / rows,
            (np.arange(columns) + 0.5) / columns,
            indexing="ij",
        )
        centers = np.stack([cx, cy], axis=-1)[:, :, None]  # [rows, columns, 1, 2]
        grid = (rows, columns, len(shapes), 2)
        cells = [np.broadcast_to(part, grid) for part in (centers, shapes)]
        anchors.append(np.concatenate(cells, axis=-1).reshape(-1, 4))
    return np.clip(np.concatenate(anchors), 0.0, 1.0).astype(np.float32)
