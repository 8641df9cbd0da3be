"""Matching, hard negatives, and the loss of boxes and classes."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mobilevit import anchor_boxes, boxes
from keras_mobilevit.matching import hard_negatives, match
from keras_mobilevit.ssd_loss import multibox, smooth_l1
from tests.helpers.boxes import iou_of, random_boxes


def match_by_hand(objects, anchors):
    """Matches one image's objects in plain loops."""
    corners = np.asarray(boxes.cxcywh_to_xyxy(anchors))
    overlaps = np.array(
        [[iou_of(box, anchor) for anchor in corners] for box in objects]
    )
    nearest, is_positive = overlaps.argmax(axis=0), overlaps.max(axis=0) >= 0.5
    for index, best in enumerate(overlaps.argmax(axis=1)):
        nearest[best], is_positive[best] = index, True
    return nearest, is_positive


def test_match():
    rng, anchors = np.random.default_rng(0), anchor_boxes(64, 96)
    objects = np.stack([random_boxes(rng, 5), random_boxes(rng, 5)])
    is_object = np.array([[True] * 5, [True, True, False, False, False]])
    nearest, is_positive = match(tf.constant(objects), tf.constant(is_object), anchors)
    for image, count in enumerate((5, 2)):
        wanted, wanted_positive = match_by_hand(objects[image, :count], anchors)
        assert (is_positive[image].numpy() == wanted_positive).all()
        found = nearest[image].numpy()[wanted_positive]
        assert (found == wanted[wanted_positive]).all()
        assert set(found) == set(range(count))  # no object is without an anchor


def test_an_image_without_objects_has_no_positive_anchor():
    objects, anchors = tf.zeros([1, 3, 4]), anchor_boxes(64, 64)
    _, is_positive = match(objects, tf.zeros([1, 3], tf.bool), anchors)
    assert not is_positive.numpy().any()


def test_hard_negatives():
    losses = tf.constant(
        [[5.0, 4, 3, 2, 1, 0.5], [5, 4, 3, 2, 1, 0.5], [1, 1, 1, 1, 1, 1]]
    )
    positive = np.zeros((3, 6), bool)
    positive[0, 1] = positive[2, :4] = True
    chosen = hard_negatives(losses, tf.constant(positive)).numpy()
    assert chosen[0].tolist() == [True, False, True, True, False, False]
    assert not chosen[1].any()  # no object, so no negatives either
    assert chosen[2].tolist() == [False] * 4 + [True] * 2  # all there are


def test_smooth_l1():
    found = smooth_l1(tf.constant([0.0, 0.5, -0.5, 1.0, -3.0])).numpy()
    assert found == pytest.approx([0, 0.125, 0.125, 0.5, 2.5])


def multibox_by_hand(offsets, logits, targets, labels, weights) -> float:
    """The published loss: sums over the batch, divided by its positive anchors."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    total = positives = 0
    for image in np.flatnonzero(weights):
        is_positive = labels[image] > 0
        count = is_positive.sum()
        positives += count
        entropy = -np.take_along_axis(logs[image], labels[image][:, None], 1)[:, 0]
        background = np.where(is_positive, -np.inf, -logs[image, :, 0])
        hardest = np.argsort(-background)[: 3 * count]
        total += entropy[is_positive].sum() + entropy[hardest].sum()
        difference = np.abs(offsets[image] - targets[image])[is_positive]
        total += np.where(difference < 1, difference**2 / 2, difference - 0.5).sum()
    return total / max(positives, 1)


def test_multibox_is_the_published_loss():
    rng = np.random.default_rng(0)
    offsets, targets = (rng.normal(0, 1, (4, 60, 4)) for _ in range(2))
    logits = rng.normal(0, 2, (4, 60, 3))
    labels = np.where(rng.uniform(size=(4, 60)) < 0.1, rng.integers(1, 3, (4, 60)), 0)
    labels[2] = 0
    weights = np.array([1.0, 1, 1, 0])
    arguments = [np.float32(x) for x in (offsets, logits, targets)]
    losses = multibox(*arguments, tf.constant(labels, tf.int32), np.float32(weights))
    mean = np.sum(losses.numpy() * weights) / 3  # of the images that count
    wanted = multibox_by_hand(offsets, logits, targets, labels, weights)
    assert mean == pytest.approx(wanted, rel=1e-5)
    assert losses[2] == 0


def test_a_batch_that_is_partly_filled_weighs_its_images_alone():
    """As `weight` has it: the same image gives the same loss, alone and twice."""
    rng = np.random.default_rng(0)
    offsets, targets = (np.float32(rng.normal(0, 1, (1, 60, 4))) for _ in range(2))
    logits = np.float32(rng.normal(0, 2, (1, 60, 3)))
    labels = np.where(rng.uniform(size=(1, 60)) < 0.1, 1, 0).astype(np.int32)

    def sum_of_losses(weights):
        arrays = [np.repeat(x, 4, 0) for x in (offsets, logits, targets, labels)]
        return np.sum(multibox(*arrays, np.float32(weights)).numpy() * weights)

    full = sum_of_losses(np.ones(4))
    assert sum_of_losses(np.array([1.0, 0, 0, 0])) == pytest.approx(full / 4, rel=1e-5)
    assert sum_of_losses(np.zeros(4)) == 0


def test_without_positive_anchors_the_loss_is_zero_and_its_gradient_finite():
    logits, offsets = tf.Variable(tf.zeros([2, 9, 4])), tf.Variable(tf.ones([2, 9, 4]))
    labels = tf.zeros([2, 9], tf.int32)
    with tf.GradientTape() as tape:
        losses = multibox(offsets, logits, offsets * 2, labels, tf.ones([2]))
    assert losses.numpy().tolist() == [0, 0]
    for gradient in tape.gradient(losses, [logits, offsets]):
        assert not gradient.numpy().any()
