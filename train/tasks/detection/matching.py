"""Chooses the anchors that learn each object, and those that learn the background.

Source: section 2.2 of SSD, https://arxiv.org/abs/1512.02325. All images of a batch are
padded to the same number of objects, so that shapes are static.
"""

import tensorflow as tf

from keras_mobilevit import boxes as box_math

POSITIVE_IOU = 0.5
NEGATIVES_PER_POSITIVE = 3


def match(boxes, is_object, anchors) -> tuple[tf.Tensor, tf.Tensor]:
    """Matches each anchor with the object that it overlaps most.

    An anchor is positive if their intersection over union is at least 0.5. The best
    anchor of an object is always positive for it, so that every object has an anchor.
    If several objects have the same best anchor, the last object is matched.

    Boxes are corners `[batch, objects, 4]`, anchors centers and sizes `[anchors, 4]`.
    Returns the index of each anchor's object, int32 `[batch, anchors]`, and whether the
    anchor is positive. Ignore the index if it is not.
    """
    corners = box_math.cxcywh_to_xyxy(anchors)
    overlaps = box_math.iou(boxes[:, :, None], corners)  # [batch, objects, anchors]
    overlaps = tf.where(is_object[..., None], overlaps, -1.0)
    # [batch, anchors]
    matched_index = tf.argmax(overlaps, axis=1, output_type=tf.int32)
    is_positive = tf.reduce_max(overlaps, axis=1) >= POSITIVE_IOU

    best = tf.argmax(overlaps, axis=2, output_type=tf.int32)  # [batch, objects]
    is_best = tf.one_hot(best, tf.shape(anchors)[0], dtype=tf.int32)
    # Number, from 1, of the last object whose best anchor this is; 0 for none.
    numbers = tf.range(1, tf.shape(boxes)[1] + 1) * tf.cast(is_object, tf.int32)
    forced = tf.reduce_max(is_best * numbers[..., None], axis=1)  # [batch, anchors]
    matched_index = tf.where(forced > 0, forced - 1, matched_index)
    return matched_index, is_positive | (forced > 0)


def hard_negatives(losses, is_positive) -> tf.Tensor:
    """Chooses the background anchors with the highest losses, bool `[batch, anchors]`.

    For each positive anchor of an image, three background anchors are kept, and any
    that tie with the last one.
    """
    losses = tf.where(is_positive, -1.0, losses)
    ranked = tf.sort(losses, axis=1, direction="DESCENDING")
    count = NEGATIVES_PER_POSITIVE * tf.reduce_sum(tf.cast(is_positive, tf.int32), 1)
    last = tf.clip_by_value(count, 1, tf.shape(losses)[1]) - 1
    threshold = tf.gather(ranked, last[:, None], batch_dims=1)  # [batch, 1]
    return (losses >= threshold) & (losses >= 0) & (count > 0)[:, None]
