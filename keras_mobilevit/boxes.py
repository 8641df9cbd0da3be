"""Boxes on an image: their coding relative to anchors, their overlap, their clipping.

There is one convention. A box is its two corners `(x1, y1, x2, y2)` as fractions of the
image's width and height: `(0, 0, 1, 1)` is the whole image, and a box keeps its numbers
when the image is resized. An anchor is its centre and size `(cx, cy, w, h)`, as
fractions too, because offsets are relative to these.
"""

from keras import ops

# Offsets are divided by these, which makes their spread about 1 (SSD's "variances",
# https://arxiv.org/abs/1512.02325).
CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


def cxcywh_to_xyxy(centers):
    """Turns `(cx, cy, w, h)` into `(x1, y1, x2, y2)`, both in the last axis.

    Args:
        centers: `[..., 4]`.

    Returns:
        Corners of the same shape.
    """
    center, size = centers[..., :2], centers[..., 2:]
    return ops.concatenate([center - size / 2, center + size / 2], axis=-1)


def xyxy_to_cxcywh(corners):
    """Turns `(x1, y1, x2, y2)` into `(cx, cy, w, h)`: the inverse of `cxcywh_to_xyxy`.

    Args:
        corners: `[..., 4]`.

    Returns:
        Centres and sizes of the same shape.
    """
    first, second = corners[..., :2], corners[..., 2:]
    return ops.concatenate([(first + second) / 2, second - first], axis=-1)


def encode(boxes, anchors):
    """Expresses boxes as offsets from anchors, which is what the network learns.

    Args:
        boxes: corners `[..., 4]`, wider and higher than 0.
        anchors: centres and sizes `[..., 4]`.

    Returns:
        Offsets `[..., 4]`: of the centre in units of the anchor's size, and logarithms
        of the ratios of the sizes, both divided by their variance.

    Source: section 2.2 of SSD, https://arxiv.org/abs/1512.02325.
    """
    boxes = xyxy_to_cxcywh(boxes)
    center = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    size = ops.log(boxes[..., 2:] / anchors[..., 2:])
    return ops.concatenate([center / CENTER_VARIANCE, size / SIZE_VARIANCE], axis=-1)


def decode(offsets, anchors):
    """Turns offsets from anchors into boxes: the inverse of `encode`.

    Args:
        offsets: `[..., 4]`.
        anchors: centres and sizes `[..., 4]`.

    Returns:
        Corners `[..., 4]`, which may reach beyond the image; see `clip`.
    """
    sizes = anchors[..., 2:]
    center = anchors[..., :2] + offsets[..., :2] * (CENTER_VARIANCE * sizes)
    size = sizes * ops.exp(offsets[..., 2:] * SIZE_VARIANCE)
    return cxcywh_to_xyxy(ops.concatenate([center, size], axis=-1))


def clip(boxes):
    """Cuts off what lies beyond the image.

    Args:
        boxes: corners `[..., 4]`.

    Returns:
        Corners in [0, 1].
    """
    return ops.clip(boxes, 0.0, 1.0)


def area(boxes):
    """Returns the areas of boxes; 0 for one whose corners are swapped.

    Args:
        boxes: corners `[..., 4]`.

    Returns:
        `[...]`, as fractions of the image's area.
    """
    size = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return size[..., 0] * size[..., 1]


def iou(boxes, others):
    """Returns how much boxes overlap: intersection over union, in [0, 1].

    Args:
        boxes: corners `[..., 4]`.
        others: corners `[..., 4]`, broadcast against `boxes`. For all pairs of two
            lists give `boxes[:, None]` and `others[None]`.

    Returns:
        `[...]`; 0 where both have no area.
    """
    first = ops.maximum(boxes[..., :2], others[..., :2])
    second = ops.minimum(boxes[..., 2:], others[..., 2:])
    size = ops.maximum(second - first, 0.0)
    intersection = size[..., 0] * size[..., 1]
    union = area(boxes) + area(others) - intersection
    return intersection / ops.maximum(union, 1e-12)
