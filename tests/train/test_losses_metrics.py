"""Losses and metrics against NumPy and counts by hand."""

import numpy as np
import pytest

from train.tasks.losses import smoothed_cross_entropy
from train.tasks.metrics import confusion_matrix, top_k_correct

LOGITS = np.random.default_rng(0).normal(0, 5, (12, 7)).astype(np.float32)
LABELS = np.arange(12) % 7


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("label_type", [np.int32, np.int64])
def test_smoothed_cross_entropy(smoothing, label_type):
    logits = LOGITS.astype(np.float64)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = (1 - smoothing) * np.eye(7)[LABELS] + smoothing / 7
    expected = -(targets * log_softmax).sum(axis=1)
    loss = smoothed_cross_entropy(LABELS.astype(label_type), LOGITS, smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_cross_entropy_of_a_sure_model():
    logits = np.array([[1000.0, 0.0], [1000.0, 0.0]], np.float32)
    np.testing.assert_allclose(smoothed_cross_entropy([0, 1], logits), [0, 1000])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_correct(k):
    best = np.argsort(-LOGITS, axis=1)[:, :k]
    expected = (best == LABELS[:, None]).any(axis=1)
    np.testing.assert_array_equal(top_k_correct(LABELS, LOGITS, k), expected)


@pytest.mark.parametrize("k", [3, 5])
def test_top_k_with_no_more_classes_than_k(k):
    np.testing.assert_array_equal(top_k_correct([0, 1, 2], LOGITS[:3, :3], k), 1.0)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_equal_logits_count_as_an_evaluation_of_a_file_counts_them(k):
    """A head that gives every class the same would be right about all of them."""
    logits = np.float32([[0, 0, 0, 0, 0, 0, 0], [1, 2, 2, 0, 2, 1, 0]]).repeat(7, 0)
    labels = np.tile(np.arange(7), 2)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    expected = (best == labels[:, None]).any(axis=1)
    np.testing.assert_array_equal(top_k_correct(labels, logits, k), expected)
    assert top_k_correct(labels, logits, k).numpy()[:7].sum() == k


def test_what_is_no_number_is_not_right():
    logits = np.float32([[np.nan, 1, 2], [0, np.inf, 1]])
    np.testing.assert_array_equal(top_k_correct([0, 1], logits, 3), 0.0)


def test_of_equal_scores_the_first_class_is_the_best():
    """A constant model is right for the classes that an argmax names, and no others."""
    labels, constant = np.arange(7), np.zeros((7, 7), np.float32)
    for k in (1, 2, 5):
        np.testing.assert_array_equal(top_k_correct(labels, constant, k), labels < k)
    pairs = np.array([[1, 3, 3, 0], [3, 3, 1, 3], [0, 0, 5, 0]], np.float32)
    np.testing.assert_array_equal(top_k_correct([2, 0, 3], pairs, 1), [0, 1, 0])
    np.testing.assert_array_equal(top_k_correct([2, 3, 3], pairs, 2), [1, 0, 0])


def test_no_class_is_right_where_a_score_is_no_number():
    logits = np.array([[np.nan, 0], [0, np.inf], [1, 0]], np.float32)
    np.testing.assert_array_equal(top_k_correct([1, 1, 0], logits, 1), [0, 0, 1])


def test_confusion_matrix():
    matrix = confusion_matrix([0, 0, 0, 1, 2], [0, 1, 1, 1, 0], 4)
    expected = [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(matrix, expected)
