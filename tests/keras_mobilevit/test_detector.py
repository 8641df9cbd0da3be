"""Detectors that `fit`: targets, loss, metric, detections and saving."""

import keras
import numpy as np
import pytest

import keras_mobilevit
from keras_mobilevit import BoxAveragePrecision, SSDLite, SSDLoss, detection_targets
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.box_targets import FORMATS
from keras_mobilevit.matching import anchor_targets
from keras_mobilevit.ssd_loss import multibox
from tests.helpers.boxes import random_boxes
from tests.helpers.few_steps import batch

SIZE = 64


@pytest.fixture(scope="module")
def model() -> keras_mobilevit.Detector:
    keras.utils.set_random_seed(0)
    model = SSDLite("mobilevit_xxs", classes=3, weights=None, input_shape=(64, 64, 3))
    compile_(model)
    return model


def compile_(model, loss=None) -> None:
    metric = BoxAveragePrecision(classes=3)
    model.compile("adam", loss, metrics=[metric], jit_compile=False)


def evaluate(model, images, targets) -> dict:
    return model.evaluate(images, targets, return_dict=True, verbose=0)


# The loss --------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_matched_anchors(smoothing: float, model):
    images, objects, _ = batch()
    outputs = model.predict(images, verbose=0)
    targets = anchor_targets(
        objects["boxes"], objects["labels"], anchor_boxes(SIZE, SIZE)
    )
    wanted = multibox(
        outputs["offsets"],
        outputs["logits"],
        targets["offsets"],
        targets["labels"],
        np.ones(len(images), np.float32),
        smoothing,
    )
    compile_(model, SSDLoss(label_smoothing=smoothing))
    found = evaluate(model, images, objects)["loss"]
    assert found == pytest.approx(np.mean(wanted), rel=1e-5)


def test_label_smoothing_is_checked():
    with pytest.raises(ValueError, match="below 1. Received: label_smoothing=1"):
        SSDLoss(label_smoothing=1)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros(4), r"dict of `boxes`.*Received: \w+\."),
        ({"boxes": np.zeros((4, 2, 4)), "classes": np.zeros((4, 2))}, "'classes'"),
        ({"boxes": np.zeros((4, 4)), "labels": np.zeros(4)}, r"boxes \(4, 4\)"),
    ],
)
def test_wrong_targets_say_what_is_expected(targets, message: str, model):
    images, *_ = batch()
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(images, targets)


def test_images_of_unknown_size_are_refused(model):
    _, objects, _ = batch()
    images = keras.KerasTensor((None, None, None, 3))
    with pytest.raises(ValueError, match="Resize all images to one size"):
        model.compute_loss(images, objects, model.output)


# The metric ------------------------------------------------------------------------


def random_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns true objects `[6, 5]` and detections `[20, 6]` around some of them."""
    boxes, labels = random_boxes(rng, 6), rng.integers(0, 3, (6, 1))
    labels[4:] = -1
    near = boxes[rng.integers(0, 4, 14)] + rng.normal(0, 0.01, (14, 4))
    found = np.concatenate([near, random_boxes(rng, 6)])
    scores = np.sort(rng.uniform(0, 1, (20, 1)), axis=0)[::-1]
    classes = rng.integers(0, 3, (20, 1))
    classes[17:] = -1
    return (
        np.concatenate([boxes, labels], 1),
        np.concatenate([found, scores * (classes >= 0), classes], 1),
    )


@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_the_metric_is_cocos(iou: float):
    pytest.importorskip("pycocotools")
    from train.tasks.detection.average_precision import average_precision

    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(60)]
    metric = BoxAveragePrecision(classes=3, iou_threshold=iou)
    for start in range(0, 60, 20):
        rows = zip(*scenes[start : start + 20])
        metric.update_state(*(np.float32(np.stack(x)) for x in rows))
    images = []
    for truth, found in scenes:
        truth, found = truth[truth[:, 4] >= 0], found[found[:, 5] >= 0]
        images.append(
            {
                "boxes": 100 * found[:, :4],
                "scores": found[:, 4],
                "classes": found[:, 5],
                "true_boxes": 100 * truth[:, :4],
                "true_classes": truth[:, 4],
                "is_crowd": np.zeros(len(truth), bool),
            }
        )
    wanted = average_precision(images, ["a", "b", "c"])[f"AP{round(100 * iou)}"]
    assert 0.1 < wanted < 0.9
    assert float(metric.result()) == pytest.approx(wanted, abs=0.01)
    assert metric.name == f"AP{round(100 * iou)}"
    metric.reset_state()
    assert float(metric.result()) == 0


def test_perfect_detections_have_the_precision_one():
    metric = BoxAveragePrecision(classes=3)
    boxes = random_boxes(np.random.default_rng(0), 5)[None]
    labels = np.array([[0, 1, 1, 2, -1]], np.float32)[..., None]
    scores = np.linspace(0.9, 0.5, 5, dtype=np.float32)[None, :, None]
    metric.update_state(
        np.concatenate([boxes, labels], -1), np.concatenate([boxes, scores, labels], -1)
    )
    assert float(metric.result()) == 1


def test_the_overlap_of_the_metric_is_checked():
    with pytest.raises(ValueError, match="at most 1. Received: iou_threshold=0"):
        BoxAveragePrecision(classes=3, iou_threshold=0)


# Targets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", sorted({*FORMATS} - {"center_yxhw", "rel_center_xywh"})
)
def test_targets_equal_keras_cv(source: str):
    keras_cv = pytest.importorskip("keras_cv")
    height, width = 60, 90
    rng = np.random.default_rng(0)
    wanted = np.stack([random_boxes(rng, 4), random_boxes(rng, 4)])
    given = keras_cv.bounding_box.convert_format(
        wanted,
        source="rel_xyxy",
        target=source,
        image_shape=(height, width, 3),
    )
    found = detection_targets(
        list(np.asarray(given)),
        [[0, 1, 2, 0], [1, 1, 2, 2]],
        bounding_box_format=source,
        image_sizes=None if source.startswith("rel") else (height, width),
    )
    np.testing.assert_allclose(found["boxes"], wanted, atol=1e-6)


def test_targets_of_yolo():
    found = detection_targets(
        [[[0.5, 0.4, 0.2, 0.4]]], [[1]], bounding_box_format="rel_center_xywh"
    )
    np.testing.assert_allclose(found["boxes"], [[[0.4, 0.2, 0.6, 0.6]]], atol=1e-6)


def test_targets_are_padded():
    found = detection_targets(
        [[[10, 20, 40, 60]], [], [[0, 0, 90, 60], [45, 30, 90, 60]]],
        [[2], [], [0, 1]],
        bounding_box_format="xyxy",
        image_sizes=[(60, 90)] * 3,
        max_objects=4,
    )
    assert found["labels"].tolist() == [[2, -1, -1, -1], [-1] * 4, [0, 1, -1, -1]]
    assert found["boxes"][2, 1].tolist() == [0.5, 0.5, 1, 1]
    assert not found["boxes"][1].any() and found["boxes"].dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bounding_box_format": "coco"}, "one of xyxy, .*Received:.*'coco'"),
        ({"image_sizes": None}, "in pixels, so `image_sizes`"),
        ({"labels": [[0, 1]]}, r"image 0: boxes \(1, 4\) and labels \(2,\)"),
        ({"labels": []}, "1 images, but labels of 0"),
        ({"labels": [[-1]]}, "Image 0 has a label below 0: -1"),
        ({"boxes": [[[30, 40, 20, 10]]]}, "Box 0 of image 0.*no area"),
        ({"boxes": [[[0, 0, 900, 10]]]}, "far outside"),
        ({"boxes": [[[0, 0, np.nan, 10]]]}, "not finite"),
        ({"max_objects": 0}, "1 objects, more than `max_objects=0`"),
        ({"image_sizes": (1, 2, 3)}, r"Received an array of shape \(3,\)"),
    ],
)
def test_wrong_boxes_say_what_is_expected(arguments: dict, message: str):
    right = {
        "boxes": [[[10, 10, 20, 30]]],
        "labels": [[0]],
        "bounding_box_format": "xyxy",
        "image_sizes": (60, 90),
    }
    detection_targets(**right)
    with pytest.raises(ValueError, match=message):
        detection_targets(**(right | arguments))


# Detections, saving ----------------------------------------------------------------


def test_the_layer_finds_what_detect_finds(model, tmp_path):
    images, *_ = batch()
    limits = {"score_threshold": 0.2, "max_detections": 9}
    found = keras_mobilevit.detect(model.predict(images, verbose=0), (64, 64), **limits)
    objects = keras_mobilevit.DetectObjects((64, 64), **limits)
    whole = keras.Model(model.input, objects(model.output))
    whole.save(tmp_path / "whole.keras")
    for one in (whole, keras.saving.load_model(tmp_path / "whole.keras")):
        outputs = one.predict(images, verbose=0)
        assert list(outputs) == ["boxes", "scores", "classes", "number"]
        for name, value in outputs.items():
            np.testing.assert_allclose(value, found[name], atol=1e-6)
            assert value.shape == (4, *one.output[name].shape[1:])
        assert (outputs["number"] == (outputs["classes"] >= 0).sum(1)).all()
        assert outputs["number"].max() > 0


def test_a_compiled_detector_is_saved_and_trained_further(model, tmp_path):
    images, objects, _ = batch()
    compile_(model, SSDLoss(label_smoothing=0.1))
    model.train_on_batch(images, objects)
    wanted = evaluate(model, images, objects)
    model.save(tmp_path / "detector.keras")
    loaded = keras.saving.load_model(tmp_path / "detector.keras")
    assert isinstance(loaded, keras_mobilevit.Detector)
    assert evaluate(loaded, images, objects) == pytest.approx(wanted, rel=1e-5)
    assert np.isfinite(loaded.train_on_batch(images, objects)[0])


def test_the_head_alone_is_trained():
    keras.utils.set_random_seed(0)
    model = SSDLite("mobilevit_xxs", classes=3, weights=None, input_shape=(64, 64, 3))
    whole = len(model.trainable_weights)
    keras_mobilevit.freeze_backbone(model)
    compile_(model)
    images, objects, _ = batch()
    before = {w.path: w.numpy() for w in model.weights}
    model.fit(images, objects, batch_size=4, verbose=0)
    changed = {w.path for w in model.weights if (w.numpy() != before[w.path]).any()}
    assert changed and all(path.startswith("ssd") for path in changed)
    keras_mobilevit.unfreeze_backbone(model)
    assert len(model.trainable_weights) == whole


def test_a_model_without_a_backbone_cannot_be_frozen():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="no layers of a MobileViT's backbone"):
        keras_mobilevit.freeze_backbone(
            keras.Model(inputs, keras.layers.Dense(1)(inputs))
        )
