"""Losses and metrics against NumPy and counts by hand."""

import numpy as np
import pytest

from keras_mobilevit.cross_entropy import smoothed_cross_entropy
from train.tasks.classification.metric import (
    best_classes,
    confusion_matrix,
    count_correct,
    score,
)

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


def top_k_correct(labels, logits, k: int) -> np.ndarray:
    """Tells which examples count as correct, one class a label."""
    best = best_classes(np.asarray(logits, np.float32)).numpy()[:, :k]
    return (best == np.asarray(labels)[:, None]).any(axis=1)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_best_classes_are_those_of_the_highest_scores(k):
    best = np.argsort(-LOGITS, axis=1)[:, :k]
    expected = (best == LABELS[:, None]).any(axis=1)
    np.testing.assert_array_equal(top_k_correct(LABELS, LOGITS, k), expected)


def test_with_fewer_than_five_classes_each_is_among_the_best():
    assert top_k_correct([0, 1, 2], LOGITS[:3, :3], 5).all()


def test_of_equal_scores_the_first_class_is_the_best():
    """A constant model is correct for the classes that an argmax names, no others."""
    labels, constant = np.arange(7), np.zeros((7, 7), np.float32)
    for k in (1, 2, 5):
        np.testing.assert_array_equal(top_k_correct(labels, constant, k), labels < k)
    pairs = np.array([[1, 3, 3, 0], [3, 3, 1, 3], [0, 0, 5, 0]], np.float32)
    np.testing.assert_array_equal(top_k_correct([2, 0, 3], pairs, 1), [0, 1, 0])
    np.testing.assert_array_equal(top_k_correct([2, 3, 3], pairs, 2), [1, 0, 0])
    best = np.argsort(-pairs, axis=1, kind="stable")
    np.testing.assert_array_equal(best_classes(pairs), best)


def test_no_class_is_correct_where_a_score_is_not_finite():
    logits = np.array([[np.nan, 0], [0, np.inf], [1, 0]], np.float32)
    assert best_classes(logits).numpy().tolist() == [[-1, -1], [-1, -1], [0, 1]]
    np.testing.assert_array_equal(top_k_correct([1, 1, 0], logits, 1), [0, 0, 1])


def test_correct_predictions_are_counted_by_class():
    targets = {"label": np.array([0, 0, 2, 2, 2])}
    predictions = {"best": np.array([[0, 1], [1, 0], [1, 0], [2, 0], [-1, -1]])}
    counts = count_correct("abc", predictions, targets)
    assert {name: value.tolist() for name, value in counts.items()} == {
        "images": [2, 0, 3],
        "top1": [1, 0, 1],
        "top5": [2, 0, 1],
    }
    assert score("abc", counts) == {"top1": 2 / 5, "top5": 3 / 5}


def test_confusion_matrix():
    matrix = confusion_matrix([0, 0, 0, 1, 2], [0, 1, 1, 1, 0], 4)
    expected = [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(matrix, expected)
