"""Detectors as files: the same boxes as Keras's, suppressed inside or outside."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mobilevit import SSDLite
from keras_mobilevit.detection import non_max_suppression
from keras_mobilevit.litert import LiteRTModel
from tests.helpers.boxes import random_boxes
from tests.helpers.conversions import Conversions
from tests.helpers.graphs import randomized
from tests.helpers.networks import build_detector
from tests.helpers.options import make_options
from tflite import models
from tflite.formats import conversion
from tflite.formats import to_tflite as converter
from tflite.formats.conversion import outputs_as_list
from tflite.formats.table import COREML, FORMATS, TFLITE, formats_of
from tflite.images import load_images
from tflite.pipeline import select_tasks
from tflite.tasks.detection import compare, postprocess
from tflite.tasks.detection import task as detection
from tflite.tasks.registry import task_of
from tflite.validation import gpu, op_stats
from train.config import make_config
from train.data import digits
from train.data.registry import load_source
from train.evaluation.report import evaluation_report
from train.tasks.detection.task import DETECTION

SIZE, CLASSES = 64, 10
# Random weights give some maps ranges that no trained network has.
RANDOM = ("undelegated_ops", "psnr", "agreement", "accuracy")


@pytest.fixture(scope="module", autouse=True)
def few_scenes():
    """Takes a few of the digits' scenes, which are made in a second."""
    patch = pytest.MonkeyPatch()
    few = functools.partial(
        digits.box_scene_source, counts={"train": 16, "validation": 6}
    )
    patch.setattr(digits, "box_scene_source", few)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    source = dataclasses.make_dataclass("Source", ["class_names"])(range(CLASSES))
    return randomized(build_detector(None, source), 1)


@pytest.fixture(scope="module")
def validation():
    return load_images(detection.RAW, "digits", "validation", 0, SIZE, 1.0)


@pytest.fixture(scope="module")
def make_detector(model, validation, tmp_path_factory):
    """Returns the function from a kind of output to its files, always the same."""

    @functools.cache
    def make(nms: str) -> Conversions:
        task, folder = detection.OUTPUT_VARIANTS[nms], tmp_path_factory.mktemp(nms)
        return Conversions(model, task, validation, folder, RANDOM)

    return make


def test_boxes_and_scores_of_every_anchor(make_detector):
    detector = make_detector("none")
    card = detector.card()
    assert json.loads(detector.path().with_suffix(".json").read_text()) == card
    assert card["task"] == "detection" and card["nms"]["where"] == "outside"
    anchors = 6 * (16 + 4 + 1 + 1 + 1) + 4  # of the maps of 64 pixels
    shapes = {output["name"]: output["shape"] for output in card["outputs"]}
    assert shapes == {"boxes": [1, anchors, 4], "scores": [1, anchors, CLASSES]}
    assert card["parity"]["max_abs"] <= 1e-4 and card["parity"]["agreement"] == 1
    assert card["xnnpack"] == {"partitions": 1, "ops_outside": {}}
    assert card["max_rank"] == 4
    accuracy = card["accuracy"]
    assert accuracy["AP"] == pytest.approx(accuracy["keras_AP"], abs=0.2)  # of ties


def test_suppression_inside_finds_what_keras_finds(make_detector, validation):
    detector = make_detector("builtin")
    card = detector.card()
    assert card["nms"]["where"] == "inside"
    assert card["ops"]["NON_MAX_SUPPRESSION_V4"] == 1 and card["foreign_ops"] == []
    assert card["parity"]["agreement"] == 1 and card["parity"]["max_abs"] <= 1e-4
    images = validation.images.astype(np.float32)
    outputs = LiteRTModel(detector.path()).predict(images)
    reference = detector.reference.outputs
    assert (reference["classes"] >= 0).sum() > 100
    # Of equally good ones the order may differ.
    np.testing.assert_allclose(outputs["scores"], reference["scores"], atol=1e-4)
    differences, part = compare.agreement(reference, outputs)
    assert part == 1 and differences.max() <= 1e-4


suppress, expected_of = (
    tf.function(function, autograph=False)
    for function in (postprocess.suppress, non_max_suppression)
)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 20]))
def test_one_suppression_does_for_all_classes(seed, classes):
    random = np.random.default_rng(seed)
    boxes = tf.constant(random_boxes(random, 60)[None], tf.float32)
    scores = tf.constant(random.uniform(0, 1, (1, 60, classes)) ** 6, tf.float32)
    found, expected = suppress(boxes, scores), expected_of(boxes, scores)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)
    assert found["count"] == np.sum(expected["classes"] >= 0)


def test_tflites_own_suppression_is_keras_own(tmp_path):
    """Of boxes on a grid many overlap by just the half at which they are dropped."""
    random = np.random.default_rng(0)
    anchors, classes = 1200, 3  # more than are kept
    corners = np.round(random_boxes(random, anchors) * 16) / 16
    scores = np.zeros((anchors, classes), np.float32)
    some = random.choice(anchors, 300, replace=False)
    scores[some] = random.uniform(0, 1, (300, classes)) ** 3

    @tf.function(input_signature=[tf.TensorSpec([1, anchors, 4 + classes])])
    def serve(x):
        return postprocess.suppress(x[..., :4], x[..., 4:])

    path = tmp_path / "suppression.tflite"
    path.write_bytes(converter.tflite_content(serve))
    given = np.concatenate([corners, scores], axis=1).astype(np.float32)
    found = LiteRTModel(path).predict(given[None])
    expected = expected_of(*(tf.constant(x[None]) for x in (given[:, :4], scores)))
    assert (np.asarray(expected["classes"]) >= 0).sum() > 50
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


@pytest.mark.parametrize("file_format", ["fp16", "dynamic", "int8-mixed", "int8"])
def test_smaller_formats(make_detector, file_format):
    card = make_detector("none").card(file_format)
    assert [output["dtype"] for output in card["outputs"]] == ["float32"] * 2
    if file_format == "int8-mixed":  # what leaves the heads is not rounded
        assert card["float_ops"]["CONV_2D"] == 6
        assert "CONCATENATION" in card["float_ops"]


@pytest.mark.parametrize("nms", detection.OUTPUT_VARIANTS)
def test_wrong_boxes_show_without_labels(nms, make_detector):
    """Scores alone do not tell: these are the same."""
    task = detection.OUTPUT_VARIANTS[nms]
    reference = make_detector(nms).reference.outputs
    right = task.compare(reference, dict(reference))
    assert right["agreement"] == 1 and right["psnr_db"] > 100
    moved = reference | {"boxes": reference["boxes"] + np.float32([0.5, 0, 0.5, 0])}
    wrong = task.compare(reference, moved)
    for file_format in formats_of(task):
        limits = FORMATS[file_format].limits | task.limits.get(file_format, {})
        assert wrong["agreement"] < limits["agreement"] <= 1, file_format
    if nms == "none":
        assert wrong["psnr_db"] < 20


def test_objects_are_found_again_by_class_and_box():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0.5, 0.4, 1]])
    reference = {
        "boxes": boxes[None],
        "scores": np.array([[0.9, 0.8, 0.01]]),  # the last is too little to count
        "classes": np.array([[0, 1, 1]]),
    }
    same, part = compare.agreement(reference, reference)
    assert same.tolist() == [0, 0] and part == 1
    other = reference | {"classes": np.array([[0, 2, 1]]), "scores": np.ones((1, 3))}
    differences, part = compare.agreement(reference, other)
    assert differences.tolist() == pytest.approx([0.1]) and part == 0.5
    nothing = {name: values[:, :0] for name, values in reference.items()}
    assert compare.agreement(reference, nothing)[1] == 0
    assert compare.agreement(nothing, reference)[1] == 1


def test_a_file_is_evaluated_by_cocos_rules(make_detector):
    reports = {}
    source = load_source("detection", "digits")
    for nms in detection.OUTPUT_VARIANTS:
        detector = make_detector(nms)
        card = detector.card()
        config = make_config(task="detection", weights=str(detector.path()))
        *_, total, others, at = evaluation_report(
            DETECTION, config, source
        ).splitlines()
        reports[nms] = total
        assert at == "at 64x64 pixels, in percent, by COCO's rules"
        assert float(total.split()[1]) == pytest.approx(
            card["accuracy"]["AP"], abs=0.006
        )
    assert reports["none"] == reports["builtin"]


def test_the_truth_scores_100_and_what_is_lost_shows(validation):
    """The detector above is random, so that its own AP is near nothing."""
    targets = validation.targets
    truth = {
        "boxes": targets["boxes"],
        "scores": (targets["classes"] >= 0).astype(np.float32),
        "classes": targets["classes"],
    }
    assert detection.SUPPRESSED.score(validation, truth) == pytest.approx(100)
    half = {name: values.copy() for name, values in truth.items()}
    half["scores"][::2], half["classes"][::2] = 0, -1
    assert 20 < detection.SUPPRESSED.score(validation, half) < 80


def test_files_of_something_else_are_refused(tflite_file):
    config = make_config(task="detection", weights=str(tflite_file))
    with pytest.raises(ValueError, match="not a detector: it returns probabilities"):
        evaluation_report(DETECTION, config, load_source("detection", "digits"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"formats": ("int8-qat", "fp32")},
            "There is no int8-qat of this model.*int8-mixed",
        ),
        (
            {"variants": {"nms": "builtin"}, "formats": ("coreml",)},
            "--nms is for .tflite files",
        ),
        (
            {"variants": {"nms": "builtin"}, "check_gpu": True},
            "no GPU runs non-maximum suppression",
        ),
        ({"crop": 0.9}, "For detection the whole image is used: remove --crop"),
    ],
)
def test_flags_that_do_not_fit_are_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        select_tasks(make_options(**given), model)


def test_suppression_is_for_detectors(model):
    classifier = models.load_model("mobilevit_xxs")
    options = make_options(variants={"nms": "none"})
    with pytest.raises(ValueError, match="--nms is for detectors"):
        select_tasks(options, classifier)
    (task,) = select_tasks(make_options(), classifier).values()
    assert task.name == "classification"
    raw = make_options(variants={"nms": "none"})
    assert select_tasks(raw, model) == {TFLITE: detection.RAW}
    both = make_options(formats=("fp32", "coreml"))
    assert select_tasks(both, model) == {
        TFLITE: detection.SUPPRESSED,  # the default
        COREML: detection.RAW,  # Core ML adds its own suppression
    }


@pytest.mark.skipif(not gpu.find_driver(), reason="apt install chromium libvulkan1")
def test_the_gpu_takes_all_before_suppression(make_detector, validation):
    detector = make_detector("none")
    detector.card()
    image = validation.images[:1].astype(np.float32)
    verdict = gpu.check_gpu(detector.path(), image)
    assert verdict.fully_accelerated, verdict.error
    assert verdict.max_abs <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("nms", detection.OUTPUT_VARIANTS)
def test_the_real_detector(nms, tmp_path, monkeypatch):
    model = randomized(SSDLite("mobilevit_xxs", weights=None), 1)
    task = task_of(model, nms)
    images = np.random.default_rng(0).uniform(0, 255, (2, 320, 320, 3))
    images = images.astype(np.float32)
    prepared = conversion.prepare(model, 320, task=task)
    path = tmp_path / "model.tflite"
    path.write_bytes(prepared.float32)
    assert op_stats.max_rank(path) == 4
    litert = LiteRTModel(path)
    if nms == "none":
        assert (litert.xnnpack_partitions(), litert.ops_outside_xnnpack()) == (1, {})
    run = outputs_as_list(model)
    expected = task.reference(model, 320)(run(images))
    expected = {name: np.asarray(values) for name, values in expected.items()}
    outputs = litert.predict(images)
    np.testing.assert_allclose(outputs["scores"], expected["scores"], atol=1e-4)
    if nms == "none":
        np.testing.assert_allclose(outputs["boxes"], expected["boxes"], atol=1e-4)
    else:
        # Of boxes that score alike either may be dropped, and with random weights more
        # anchors score than the file keeps.
        monkeypatch.setattr(compare, "MIN_COMPARED_SCORE", 0.01)
        differences, part = compare.agreement(expected, outputs)
        assert part >= 0.98 and differences.max() <= 1e-4
