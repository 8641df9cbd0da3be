"""Boxes, anchors and non-maximum suppression, against NumPy and known numbers."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mobilevit import anchor_boxes, boxes
from keras_mobilevit.anchors import ANCHORS_PER_CELL, feature_map_shapes
from keras_mobilevit.detection import non_max_suppression

NUMBERS = st.floats(0.02, 0.98)


def as_numpy(x) -> np.ndarray:
    return keras.ops.convert_to_numpy(x)


def random_boxes(rng, count: int) -> np.ndarray:
    centers = rng.uniform(0.2, 0.8, (count, 2))
    sizes = rng.uniform(0.05, 0.4, (count, 2))
    corners = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)
    return corners.astype(np.float32)


def iou_of(a, b) -> float:
    """Counts in float64, one pair at a time."""
    a, b = np.float64(a), np.float64(b)
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - width * height
    return width * height / union


def test_anchors_of_the_paper():
    anchors = anchor_boxes(320, 320)
    assert anchors.shape == (3232, 4)
    assert anchors.dtype == np.float32
    cells = [rows * columns for rows, columns in feature_map_shapes(320, 320)]
    assert cells == [400, 100, 25, 9, 4, 1]
    assert ANCHORS_PER_CELL == (6, 6, 6, 6, 6, 4)
    # The first cell, by hand: scales 0.1 and 0.2583, then ratios 2 and 3.
    assert anchors[:6] == pytest.approx(
        np.array(
            [
                [0.025, 0.025, 0.1, 0.1],
                [0.025, 0.025, 0.1607275, 0.1607275],
                [0.025, 0.025, 0.1414214, 0.0707107],
                [0.025, 0.025, 0.0707107, 0.1414214],
                [0.025, 0.025, 0.1732051, 0.0577350],
                [0.025, 0.025, 0.0577350, 0.1732051],
            ]
        ),
        abs=1e-6,
    )
    assert anchors[-1] == pytest.approx([0.5, 0.5, 0.6305035, 1.0])


@given(st.integers(32, 700), st.integers(32, 700))
@settings(max_examples=30, deadline=None)
def test_anchors_of_any_image(height: int, width: int):
    anchors = anchor_boxes(height, width)
    cells = [rows * columns for rows, columns in feature_map_shapes(height, width)]
    assert len(anchors) == np.dot(cells, ANCHORS_PER_CELL)
    assert anchors.min() > 0
    assert anchors.max() <= 1


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
@settings(deadline=None)
def test_decode_inverts_encode(cx: float, cy: float, width: float, height: float):
    centers = np.tile(np.float32([cx, cy, width, height]), (3232, 1))
    box, anchors = as_numpy(boxes.cxcywh_to_xyxy(centers)), anchor_boxes(320, 320)
    assert as_numpy(boxes.xyxy_to_cxcywh(box)) == pytest.approx(centers, abs=1e-6)
    offsets = boxes.encode(box, anchors)
    assert as_numpy(boxes.decode(offsets, anchors)) == pytest.approx(box, abs=2e-5)


def test_offsets_by_hand():
    anchor = np.float32([[0.5, 0.5, 0.2, 0.4]])
    box = np.float32([[0.5, 0.4, 0.7, 0.6]])  # centre (0.6, 0.5), 0.2 by 0.2
    offsets = as_numpy(boxes.encode(box, anchor))
    wanted = [0.1 / 0.2 / 0.1, 0, 0, np.log(0.5) / 0.2]
    assert offsets[0] == pytest.approx(wanted, abs=1e-5)


def test_iou():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 20), random_boxes(rng, 30)
    found = as_numpy(boxes.iou(a[:, None], b[None]))
    wanted = [[iou_of(x, y) for y in b] for x in a]
    assert found == pytest.approx(np.array(wanted), abs=1e-6)
    empty, swapped = np.float32([[0.5] * 4]), np.float32([[0.9, 0.9, 0.1, 0.1]])
    assert as_numpy(boxes.iou(empty, empty))[0] == 0
    assert as_numpy(boxes.iou(swapped, a[:1]))[0] == 0


def greedy(corners, scores, threshold, overlap, candidates, count) -> list[tuple]:
    """Non-maximum suppression as it is told, class by class."""
    kept = []
    for label in range(scores.shape[1]):
        chosen = []
        order = np.argsort(-scores[:, label], kind="stable")[:candidates]
        for i in order[scores[order, label] > threshold]:
            if all(iou_of(corners[i], corners[j]) <= overlap for j in chosen):
                chosen.append(i)
        kept += [(float(scores[i, label]), label, int(i)) for i in chosen]
    return sorted(kept, reverse=True)[:count]


@pytest.mark.parametrize(
    ("threshold", "candidates", "count"), [(0.05, 400, 200), (0.5, 20, 30), (0.9, 5, 9)]
)
def test_non_max_suppression(threshold: float, candidates: int, count: int):
    rng = np.random.default_rng(1)
    corners = np.stack([random_boxes(rng, 150) for _ in range(2)])
    scores = rng.uniform(0, 1, (2, 150, 4)).astype(np.float32)
    found = non_max_suppression(corners, scores, threshold, 0.3, candidates, count)
    found = {name: as_numpy(value) for name, value in found.items()}
    for image in range(2):
        wanted = greedy(
            corners[image], scores[image], threshold, 0.3, candidates, count
        )
        number = len(wanted)
        assert 5 < number <= count
        wanted_scores, labels, indices = map(np.array, zip(*wanted))
        assert found["scores"][image, :number] == pytest.approx(wanted_scores)
        assert (found["classes"][image, :number] == labels).all()
        assert (found["boxes"][image, :number] == corners[image, indices]).all()
        assert not found["scores"][image, number:].any()
        assert (found["classes"][image, number:] == -1).all()
        assert not found["boxes"][image, number:].any()


def test_boxes_without_area_are_none():
    """Clipping leaves such of what the network puts beyond the image."""
    corners = np.full((1, 3, 4), 0.5, np.float32)
    corners[0, 1, 2:] = 0.7
    scores = np.float32([[[0.9], [0.8], [0.7]]])
    found = non_max_suppression(corners, scores, max_detections=3)
    assert as_numpy(found["scores"])[0] == pytest.approx([0.8, 0, 0])
