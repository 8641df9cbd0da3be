"""Detectors that `fit`: targets, loss, metric, detections and saving."""

import keras
import numpy as np
import pytest

import keras_mobilevit
from keras_mobilevit import BoxAveragePrecision, SSDLite, SSDLoss, detection_targets
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.box_targets import FORMATS
from keras_mobilevit.matching import anchor_targets
from tests.helpers.boxes import random_boxes
from tests.helpers.few_steps import batch
from train.models import dtype_policy

pytestmark = pytest.mark.usefixtures("shallow")

SIZE = 64


@pytest.fixture(scope="module")
def model() -> keras_mobilevit.Detector:
    keras.utils.set_random_seed(0)
    model = SSDLite("mobilevit_xxs", classes=3, weights=None, input_shape=(64, 64, 3))
    compile_(model)
    return model


def compile_(model, loss=None, run_eagerly: bool = True) -> None:
    """Compiles a model for a step or two, in which a graph would not pay off."""
    metric = BoxAveragePrecision(classes=3)
    model.compile(
        "adam", loss, metrics=[metric], jit_compile=False, run_eagerly=run_eagerly
    )


def evaluate(model, images, targets) -> dict:
    return model.evaluate(images, targets, return_dict=True, verbose=0)


# The loss --------------------------------------------------------------------------


def loss_by_hand(model, images, objects, weights, smoothing: float) -> float:
    """Computes the mean loss of the images with a weight, in plain NumPy."""
    outputs = model.predict(images, verbose=0)
    targets = anchor_targets(
        objects["boxes"], objects["labels"], anchor_boxes(SIZE, SIZE)
    )
    offsets, labels = (keras.ops.convert_to_numpy(x) for x in targets.values())
    logits = np.float64(outputs["logits"])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = positives = 0
    for image in np.flatnonzero(weights):
        is_positive = labels[image] > 0
        own = np.take_along_axis(logs[image], labels[image][:, None], 1)[:, 0]
        entropy = -(1 - smoothing) * own - smoothing * logs[image].mean(-1)
        order = np.argsort(logs[image, :, 0] + 1e9 * is_positive)
        kept = np.concatenate(
            [np.flatnonzero(is_positive), order[: 3 * is_positive.sum()]]
        )
        distance = np.abs(outputs["offsets"][image] - offsets[image])[is_positive]
        total += np.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
        total += entropy[kept].sum()
        positives += is_positive.sum()
    return total / positives * np.count_nonzero(weights) / len(images)


@pytest.mark.parametrize(
    ("smoothing", "weights"),
    [(0.1, (1, 1, 1, 1)), (0.0, (1, 1, 0, 1))],
)
def test_the_loss_is_the_published_one(smoothing: float, weights: tuple, model):
    """Images without a weight do not count, as in `train/`."""
    images, objects, _ = batch()
    compile_(model, SSDLoss(label_smoothing=smoothing))
    found = model.test_on_batch(images, objects, np.float32(weights), return_dict=True)[
        "loss"
    ]
    # `evaluate` would report the mean over its own batches.
    wanted = loss_by_hand(model, images, objects, weights, smoothing)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_weights_of_images_may_be_an_array(model):
    """`evaluate` and `fit` repeat them for each target."""
    images, objects, _ = batch()
    compile_(model)
    weights = np.float32([1, 1, 0, 1])
    wanted = model.test_on_batch(images, objects, weights, return_dict=True)["loss"]
    found = model.evaluate(
        images, objects, 4, sample_weight=weights, return_dict=True, verbose=0
    )
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)


def test_images_without_objects_have_no_loss(model):
    images, *_ = batch()
    compile_(model)
    nothing = {"boxes": np.zeros((4, 0, 4)), "labels": np.zeros((4, 0))}
    found = model.test_on_batch(images, nothing, return_dict=True)
    assert found == {"AP50": 0, "loss": 0}


def test_boxes_without_area_are_padding(model):
    images, objects, _ = batch()
    compile_(model)
    empty = np.zeros((4, 1, 4), np.float32)
    more = {
        "boxes": np.concatenate([objects["boxes"], empty], 1),
        "labels": np.concatenate([objects["labels"], np.ones((4, 1), int)], 1),
    }
    one, other = (
        model.test_on_batch(images, y, return_dict=True)["loss"]
        for y in (objects, more)
    )
    assert one == other and np.isfinite(one)


def test_a_label_beyond_the_classes_is_seen(model):
    images, objects, _ = batch()
    compile_(model)
    wrong = objects | {"labels": objects["labels"] + 1}
    assert np.isnan(model.test_on_batch(images, wrong, return_dict=True)["loss"])


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


def random_scene(
    rng: np.random.Generator, logit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns true objects `[6, 5]` and detections `[20, 6]` around some of them."""
    boxes, labels = random_boxes(rng, 6), rng.integers(0, 3, (6, 1))
    labels[4:] = -1
    near = boxes[rng.integers(0, 4, 14)] + rng.normal(0, 0.01, (14, 4))
    found = np.concatenate([near, random_boxes(rng, 6)])
    scores = 1 / (1 + np.exp(-rng.normal(logit, 1, (20, 1))))
    scores = np.sort(scores, axis=0)[::-1]
    classes = rng.integers(0, 3, (20, 1))
    classes[17:] = -1
    return (
        np.concatenate([boxes, labels], 1),
        np.concatenate([found, scores * (classes >= 0), classes], 1),
    )


@pytest.mark.parametrize(("iou", "logit"), [(0.5, 0), (0.75, 0), (0.5, 8), (0.5, -4)])
def test_the_metric_is_cocos(iou: float, logit: float):
    """Also of scores that are all close to 1, or to 0."""
    pytest.importorskip("pycocotools")
    from train.tasks.detection.average_precision import average_precision

    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, logit) for _ in range(60)]
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


def test_arguments_of_the_metric_are_checked(model):
    with pytest.raises(ValueError, match="at most 1. Received: iou_threshold=0"):
        BoxAveragePrecision(classes=3, iou_threshold=0)
    with pytest.raises(ValueError, match="positive integer. Received: classes=0"):
        BoxAveragePrecision(classes=0)
    with pytest.raises(ValueError, match="AP50 is for 2 classes.*detector has 3"):
        model.compile("adam", metrics=[BoxAveragePrecision(classes=2)])


def test_batches_of_any_number_of_objects(model):
    """As `padded_batch` makes them."""
    tf = pytest.importorskip("tensorflow")
    images, objects, _ = batch()
    compile_(model)
    wanted = evaluate(model, images, objects)
    dataset = tf.data.Dataset.from_tensor_slices((images, objects))
    shapes = ((SIZE, SIZE, 3), {"boxes": (None, 4), "labels": (None,)})
    compile_(model, run_eagerly=False)
    found = model.evaluate(dataset.padded_batch(4, shapes), return_dict=True, verbose=0)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_the_first_step_is_traced_once(model):
    """TensorFlow traces it again if it makes variables."""
    compile_(model)
    assert not model.optimizer.built
    model.make_train_function()
    assert model.optimizer.built


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
        ({"boxes": [[[-20, 10, -5, 30]]]}, "no area inside"),
        ({"labels": [[3]], "classes": 3}, "label 3. Labels of 3 classes are 0 to 2"),
        ({"boxes": [[[0, 0, np.nan, 10]]]}, "not finite"),
        ({"max_objects": 0}, "positive integer. Received: max_objects=0"),
        ({"image_sizes": (1, 2, 3)}, r"Received: image_sizes=\(1, 2, 3\)"),
        ({"image_sizes": (0, 90)}, "in pixels. Received"),
        ({"labels": [["cat"]]}, "Labels are integers.*image 0.*cat"),
        (
            {"boxes": [[[10, 10, 20, 30]] * 2], "labels": [[0, 1]], "max_objects": 1},
            "2 objects, more than `max_objects=1`",
        ),
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


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_objects_are_found_in_float32(policy: str, model):
    images, *_ = batch()
    outputs = model.predict(images, verbose=0)
    wanted = keras_mobilevit.detect(outputs, (SIZE, SIZE))
    with dtype_policy(policy):
        layer = keras_mobilevit.DetectObjects((SIZE, SIZE))
    found = layer({n: keras.ops.convert_to_tensor(x) for n, x in outputs.items()})
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_sizes_that_cannot_be_are_refused(model):
    outputs = model.predict(np.zeros((1, SIZE, SIZE, 3)), verbose=0)
    for size, message in (
        (None, "must be .height, width."),
        ((64,), "must be"),
        ((96, 96), "boxes|anchors"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_mobilevit.detect(outputs, size)


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_layers_of_the_user_are_not_frozen():
    features = keras_mobilevit.MobileViT_XXS(
        include_top=False, weights=None, pooling="avg"
    )
    outputs = keras.layers.Dense(2, name="head_dense")(features.output)
    outputs = keras.layers.Dense(2, name="stage_logits")(outputs)
    model = keras.Model(features.input, outputs)
    keras_mobilevit.freeze_backbone(model)
    names = {weight.path.split("/")[0] for weight in model.trainable_weights}
    assert names == {"head_dense", "stage_logits"}


def test_a_model_without_a_backbone_cannot_be_frozen():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="no layers of a MobileViT's backbone"):
        keras_mobilevit.freeze_backbone(
            keras.Model(inputs, keras.layers.Dense(1)(inputs))
        )
