"""Boxes, anchors and non-maximum suppression, against NumPy and known numbers."""

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_mobilevit import anchor_boxes, boxes
from keras_mobilevit.anchors import (
    ANCHORS_PER_CELL,
    anchors_of_count,
    feature_map_shapes,
)
from keras_mobilevit.backbone import feature_maps
from keras_mobilevit.configs import get_variant
from keras_mobilevit.detection import non_max_suppression
from tests.helpers.boxes import check_non_max_suppression, iou_of, random_boxes

NUMBERS = st.floats(0.02, 0.98)


def as_numpy(x) -> np.ndarray:
    return keras.ops.convert_to_numpy(x)


def assert_within(found: np.ndarray, wanted: np.ndarray, distance: float) -> None:
    """Is `pytest.approx` for thousands of numbers, which it compares one by one."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= distance


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


V2 = "mobilevitv2_050"


@pytest.fixture(scope="module")
def backbone() -> keras.Model:
    """The maps of MobileViTv2 that a detector predicts from first."""
    images = keras.Input((None, None, 3))
    maps = feature_maps(images, get_variant(V2))
    return keras.Model(images, [maps["P4"], maps["P5"]])


@given(st.integers(32, 130), st.integers(32, 130))
@example(32, 33)
@example(75, 51)
@settings(max_examples=8, deadline=None)
def test_anchors_have_the_sizes_of_the_second_familys_maps(backbone, height, width):
    maps = backbone(np.zeros((1, height, width, 3), np.float32))
    shapes = feature_map_shapes(height, width, 2)
    assert [tuple(x.shape[1:3]) for x in maps] == shapes[:2]


@given(st.integers(32, 700), st.integers(32, 700))
@settings(max_examples=12, deadline=None)
def test_stated_sizes_are_those_of_the_anchors(backbone, height: int, width: int):
    """The layers state their sizes without computing anything."""
    stated = backbone.compute_output_shape((1, height, width, 3))
    shapes = feature_map_shapes(height, width, 2)
    assert [shape[1:3] for shape in stated] == shapes[:2]
    # The next maps follow by strides of 2; the last one has a single cell.
    for sides, previous in zip(shapes[2:5], shapes[1:4]):
        assert sides == tuple(-(-side // 2) for side in previous)
    assert shapes[5] == (1, 1)
    anchors = anchor_boxes(height, width, V2)
    cells = [rows * columns for rows, columns in shapes]
    assert len(anchors) == np.dot(cells, ANCHORS_PER_CELL)
    assert anchors.min() > 0 and anchors.max() <= 1


def test_anchors_of_the_second_family():
    assert feature_map_shapes(300, 300, 2)[:2] == [(20, 20), (10, 10)]
    assert feature_map_shapes(300, 300)[:2] == [(19, 19), (10, 10)]
    assert feature_map_shapes(224, 224, 2)[:2] == [(14, 14), (8, 8)]
    assert len(anchor_boxes(300, 300, V2)) == 3232
    assert len(anchor_boxes(300, 300)) == 2998
    for size in ((320, 320), (512, 512), (64, 192)):
        np.testing.assert_array_equal(anchor_boxes(*size, V2), anchor_boxes(*size))
    with pytest.raises(ValueError, match="Unknown model 'resnet'"):
        anchor_boxes(300, 300, "resnet")


@given(st.integers(32, 700), st.integers(32, 700))
@settings(max_examples=30, deadline=None)
def test_the_number_of_outputs_tells_the_anchors(height: int, width: int):
    for backbone in ("mobilevit_s", V2):
        wanted = anchor_boxes(height, width, backbone)
        found = anchors_of_count(height, width, len(wanted))
        np.testing.assert_array_equal(found, wanted)


def test_another_number_of_outputs_is_an_error():
    message = "has 2998 or 3232 anchors at 300x300 pixels, but the outputs have 3000"
    with pytest.raises(ValueError, match=message):
        anchors_of_count(300, 300, 3000)
    with pytest.raises(ValueError, match="has 3232 anchors at 320x320 pixels"):
        anchors_of_count(320, 320, 3000)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
@settings(deadline=None)
def test_decode_inverts_encode(cx: float, cy: float, width: float, height: float):
    centers = np.tile(np.float32([cx, cy, width, height]), (3232, 1))
    box, anchors = as_numpy(boxes.cxcywh_to_xyxy(centers)), anchor_boxes(320, 320)
    assert_within(as_numpy(boxes.xyxy_to_cxcywh(box)), centers, 1e-6)
    box_deltas = boxes.encode(box, anchors)
    assert_within(as_numpy(boxes.decode(box_deltas, anchors)), box, 2e-5)


def test_box_deltas_by_hand():
    anchor = np.float32([[0.5, 0.5, 0.2, 0.4]])
    box = np.float32([[0.5, 0.4, 0.7, 0.6]])  # center (0.6, 0.5), 0.2 by 0.2
    box_deltas = as_numpy(boxes.encode(box, anchor))
    wanted = [0.1 / 0.2 / 0.1, 0, 0, np.log(0.5) / 0.2]
    assert box_deltas[0] == pytest.approx(wanted, abs=1e-5)


def test_iou():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 20), random_boxes(rng, 30)
    found = as_numpy(boxes.iou(a[:, None], b[None]))
    wanted = [[iou_of(x, y) for y in b] for x in a]
    assert found == pytest.approx(np.array(wanted), abs=1e-6)
    empty, swapped = np.float32([[0.5] * 4]), np.float32([[0.9, 0.9, 0.1, 0.1]])
    assert as_numpy(boxes.iou(empty, empty))[0] == 0
    assert as_numpy(boxes.iou(swapped, a[:1]))[0] == 0


@pytest.mark.parametrize(
    ("threshold", "top_k", "count"), [(0.05, 400, 200), (0.5, 20, 30), (0.9, 5, 9)]
)
def test_non_max_suppression(threshold: float, top_k: int, count: int):
    check_non_max_suppression(threshold, top_k, count)


def test_boxes_without_area_are_dropped():
    """Clipping makes them of boxes outside the image."""
    corners = np.full((1, 3, 4), 0.5, np.float32)
    corners[0, 1, 2:] = 0.7
    scores = np.float32([[[0.9], [0.8], [0.7]]])
    found = non_max_suppression(corners, scores, max_detections=3)
    assert as_numpy(found["scores"])[0] == pytest.approx([0.8, 0, 0])


@pytest.fixture(scope="module")
def keras_cv():
    """An independent implementation. It runs only on TensorFlow's backend here."""
    return pytest.importorskip("keras_cv")


def test_conversions_equal_keras_cv(keras_cv):
    corners = random_boxes(np.random.default_rng(2), 50)
    convert = keras_cv.bounding_box.convert_format
    centers = as_numpy(convert(corners, source="xyxy", target="center_xywh"))
    assert as_numpy(boxes.xyxy_to_cxcywh(corners)) == pytest.approx(centers, abs=1e-6)
    wanted = as_numpy(convert(centers, source="center_xywh", target="xyxy"))
    assert as_numpy(boxes.cxcywh_to_xyxy(centers)) == pytest.approx(wanted, abs=1e-6)


def test_overlaps_equal_keras_cv(keras_cv):
    rng = np.random.default_rng(3)
    a, b = random_boxes(rng, 40), random_boxes(rng, 30)
    wanted = keras_cv.bounding_box.compute_iou(a, b, bounding_box_format="xyxy")
    found = as_numpy(boxes.iou(a[:, None], b[None]))
    assert found == pytest.approx(as_numpy(wanted), abs=1e-5)


def test_suppression_equals_keras_cv(keras_cv):
    rng = np.random.default_rng(4)
    corners = np.stack([random_boxes(rng, 60) for _ in range(2)])
    scores = rng.uniform(0, 1, (2, 60, 3)).astype(np.float32)
    suppress = keras_cv.layers.MultiClassNonMaxSuppression(
        "rel_xyxy",
        from_logits=False,
        iou_threshold=0.4,
        confidence_threshold=0.2,
        max_detections=40,
        max_detections_per_class=60,
    )
    # It requires the size of the image, but relative boxes do not depend on it.
    wanted = suppress(corners, scores, image_shape=(100, 100, 3))
    found = non_max_suppression(corners, scores, 0.2, 0.4, max_detections=40)
    for mine, theirs in (
        ("boxes", "boxes"),
        ("scores", "confidence"),
        ("classes", "classes"),
    ):
        is_found = as_numpy(found["classes"]) >= 0
        assert 20 < is_found[0].sum() <= 40
        assert as_numpy(found[mine])[is_found] == pytest.approx(
            as_numpy(wanted[theirs])[is_found], abs=1e-6
        )
    assert (is_found.sum(axis=1) == as_numpy(wanted["num_detections"])).all()
