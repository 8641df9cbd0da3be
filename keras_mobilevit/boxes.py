"""Boxes on an image: conversion, encoding relative to anchors, overlap and clipping.

All boxes follow one convention. A box is two corners `(x1, y1, x2, y2)`, as fractions
of the image's width and height: `(0, 0, 1, 1)` is the whole image. Resizing the image
does not change its boxes. An anchor is a center and a size `(cx, cy, w, h)`, as
fractions too, because box deltas are relative to center and size.
"""

from keras import ops

from keras_mobilevit.backend import Tensor

# Box deltas are divided by these, so that their spread is about 1 (SSD's "variances",
# https://arxiv.org/abs/1512.02325).
CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


def cxcywh_to_xyxy(centers: Tensor) -> Tensor:
    """Converts centers and sizes `[..., 4]` to corners `[..., 4]`."""
    center, size = centers[..., :2], centers[..., 2:]
    return ops.concatenate([center - size / 2, center + size / 2], axis=-1)


def xyxy_to_cxcywh(corners: Tensor) -> Tensor:
    """Converts corners `[..., 4]` to centers and sizes `[..., 4]`."""
    first, second = corners[..., :2], corners[..., 2:]
    return ops.concatenate([(first + second) / 2, second - first], axis=-1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Expresses boxes (corners `[..., 4]`) relative to anchors `[..., 4]`.

    The network learns these box deltas (section 2.2 of SSD): the distance of the
    centers, in units of the anchor's size, and the logarithm of the ratio of the sizes.
    Both are divided by their variance. Boxes must have a width and a height above 0.
    """
    boxes = xyxy_to_cxcywh(boxes)
    center = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    size = ops.log(boxes[..., 2:] / anchors[..., 2:])
    return ops.concatenate([center / CENTER_VARIANCE, size / SIZE_VARIANCE], axis=-1)


def decode(box_deltas: Tensor, anchors: Tensor) -> Tensor:
    """Converts box deltas to corners, as `encode` made them; see also `clip`."""
    sizes = anchors[..., 2:]
    center = anchors[..., :2] + box_deltas[..., :2] * (CENTER_VARIANCE * sizes)
    size = sizes * ops.exp(box_deltas[..., 2:] * SIZE_VARIANCE)
    return cxcywh_to_xyxy(ops.concatenate([center, size], axis=-1))


def clip(boxes: Tensor) -> Tensor:
    """Clips the corners `[..., 4]` of boxes to the image."""
    return ops.clip(boxes, 0.0, 1.0)


def area(boxes: Tensor) -> Tensor:
    """Returns the areas `[...]` of boxes `[..., 4]`; 0 if the corners are swapped."""
    size = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return size[..., 0] * size[..., 1]


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the overlap of boxes: intersection over union `[...]`, in [0, 1].

    Both arguments are corners `[..., 4]` and are broadcast:
    `iou(boxes[:, None], others[None])` compares all pairs. The overlap of boxes without
    area is 0.
    """
    first = ops.maximum(boxes[..., :2], others[..., :2])
    second = ops.minimum(boxes[..., 2:], others[..., 2:])
    size = ops.maximum(second - first, 0.0)
    intersection = size[..., 0] * size[..., 1]
    union = area(boxes) + area(others) - intersection
    return intersection / ops.maximum(union, 1e-12)
