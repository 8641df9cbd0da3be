"""Which anchor learns which object, and which anchors learn the background.

Source: section 2.2 of SSD, https://arxiv.org/abs/1512.02325. Objects are padded to one
number for all images, so that shapes are static.
"""

import tensorflow as tf

from keras_mobilevit import boxes as box_math

POSITIVE_IOU = 0.5
NEGATIVES_PER_POSITIVE = 3


def match(boxes, is_object, anchors):
    """Gives each anchor the object that it overlaps most.

    An anchor is positive if their intersection over union is at least 0.5. The anchor
    that overlaps an object most is positive for it whatever its overlap, so that no
    object is without an anchor; of several such objects the last has it.

    Args:
        boxes: corners `[batch, objects, 4]`.
        is_object: bool `[batch, objects]`, false for padding.
        anchors: centres and sizes `[anchors, 4]`.

    Returns:
        For each anchor the index of its object, int32 `[batch, anchors]`, and whether
        it is positive, bool `[batch, anchors]`; the index means nothing if not.
    """
    corners = box_math.cxcywh_to_xyxy(anchors)
    overlaps = box_math.iou(boxes[:, :, None], corners)  # [batch, objects, anchors]
    overlaps = tf.where(is_object[..., None], overlaps, -1.0)
    nearest = tf.argmax(overlaps, axis=1, output_type=tf.int32)  # [batch, anchors]
    is_positive = tf.reduce_max(overlaps, axis=1) >= POSITIVE_IOU

    best = tf.argmax(overlaps, axis=2, output_type=tf.int32)  # [batch, objects]
    # The last of the objects of which an anchor is the best one, from 1; else 0.
    is_best = tf.one_hot(best, tf.shape(anchors)[0], dtype=tf.int32)
    numbers = tf.range(1, tf.shape(boxes)[1] + 1) * tf.cast(is_object, tf.int32)
    forced = tf.reduce_max(is_best * numbers[..., None], axis=1)  # [batch, anchors]
    return tf.where(forced > 0, forced - 1, nearest), is_positive | (forced > 0)


def hard_negatives(losses, is_positive):
    """Chooses the anchors that are wrongest about the background, image by image.

    Args:
        losses: of each anchor, if it is background, `[batch, anchors]`.
        is_positive: bool `[batch, anchors]`.

    Returns:
        Bool `[batch, anchors]`: three for each positive anchor of the image, and those
        that are as wrong as the last of them; none in an image without positive ones.
    """
    losses = tf.where(is_positive, -1.0, losses)
    ranked = tf.sort(losses, axis=1, direction="DESCENDING")
    count = NEGATIVES_PER_POSITIVE * tf.reduce_sum(tf.cast(is_positive, tf.int32), 1)
    last = tf.clip_by_value(count, 1, tf.shape(losses)[1]) - 1
    threshold = tf.gather(ranked, last[:, None], batch_dims=1)  # [batch, 1]
    return (losses >= threshold) & (losses >= 0) & (count > 0)[:, None]
