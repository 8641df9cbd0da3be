"""Random boxes, and their overlap and suppression computed in plain NumPy."""

import keras
import numpy as np
import pytest

from keras_mobilevit.detection import non_max_suppression


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns corners `[count, 4]` within the image."""
    centers = rng.uniform(0.2, 0.8, (count, 2))
    sizes = rng.uniform(0.05, 0.4, (count, 2))
    corners = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)
    return corners.astype(np.float32)


def iou_of(a, b) -> np.ndarray:
    """Returns the overlap of a box `[4]` with others `[..., 4]`, in float64."""
    a, b = np.float64(a), np.float64(b)
    sides = np.minimum(a[2:], b[..., 2:]) - np.maximum(a[:2], b[..., :2])
    overlap = np.prod(np.maximum(sides, 0), axis=-1)
    areas = np.prod(a[2:] - a[:2]) + np.prod(b[..., 2:] - b[..., :2], axis=-1)
    return overlap / (areas - overlap)


def _suppress(corners, scores, threshold, overlap, top_k, count) -> list[tuple]:
    """Suppresses boxes class by class; returns (score, class, index) of the rest."""
    kept = []
    for label in range(scores.shape[1]):
        chosen = []
        order = np.argsort(-scores[:, label], kind="stable")[:top_k]
        for i in order[scores[order, label] > threshold]:
            if (iou_of(corners[i], corners[chosen]) <= overlap).all():
                chosen.append(i)
        kept += [(float(scores[i, label]), label, int(i)) for i in chosen]
    return sorted(kept, reverse=True)[:count]


def check_non_max_suppression(threshold: float, top_k: int, count: int) -> None:
    """Compares `non_max_suppression` with NumPy, on any backend of Keras."""
    rng = np.random.default_rng(1)
    corners = np.stack([random_boxes(rng, 150) for _ in range(2)])
    scores = rng.uniform(0, 1, (2, 150, 4)).astype(np.float32)
    found = non_max_suppression(corners, scores, threshold, 0.3, top_k, count)
    found = {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}
    for image in range(2):
        wanted = _suppress(corners[image], scores[image], threshold, 0.3, top_k, count)
        number = len(wanted)
        assert 5 < number <= count
        wanted_scores, labels, indices = map(np.array, zip(*wanted))
        assert found["scores"][image, :number] == pytest.approx(wanted_scores)
        assert (found["classes"][image, :number] == labels).all()
        assert (found["boxes"][image, :number] == corners[image, indices]).all()
        assert not found["scores"][image, number:].any()
        assert (found["classes"][image, number:] == -1).all()
        assert not found["boxes"][image, number:].any()
