"""Segmenters as files: the same class at every pixel as Keras's."""

import dataclasses
import functools
import shutil
import types

import keras
import numpy as np
import pytest

from keras_mobilevit import DeepLabV3
from keras_mobilevit.deeplab import CLASSIFIER
from keras_mobilevit.litert import LiteRTModel
from tests.helpers.conversions import Conversions
from tests.helpers.graphs import randomized
from tests.helpers.networks import build_segmenter
from tests.helpers.options import make_options
from tflite import models
from tflite.checked_file import write_checked
from tflite.compare_with_keras import make_reference
from tflite.formats import conversion
from tflite.images import load_images
from tflite.pipeline import select_tasks
from tflite.tasks.registry import split_name, task_of
from tflite.tasks.segmentation import task as segmentation
from tflite.validation import gpu, op_stats
from train.config import make_config
from train.data import digits
from train.data.registry import load_source
from train.evaluation.report import evaluation_report
from train.tasks.segmentation.task import SEGMENTATION

SIZE, CLASSES = 64, 11
RANDOM = ("psnr", "accuracy", "undelegated_ops", "agreement", "parity")


@pytest.fixture(scope="module", autouse=True)
def few_scenes():
    """Takes a few of the digits' scenes, which are made in a second."""
    patch = pytest.MonkeyPatch()
    few = functools.partial(
        digits.mask_scene_source, counts={"train": 16, "validation": 12}
    )
    patch.setattr(digits, "mask_scene_source", few)
    yield
    patch.undo()


@functools.cache
def small_model(auxiliary_weight: float = 0.0) -> keras.Model:
    keras.utils.set_random_seed(0)
    config = types.SimpleNamespace(auxiliary_weight=auxiliary_weight)
    source = types.SimpleNamespace(class_names=range(CLASSES))
    model = randomized(build_segmenter(config, source), 1)
    # As it is, one class would be the best everywhere.
    classifier = model.get_layer(CLASSIFIER)
    scenes = load_images(
        segmentation.LOGITS, "digits", "validation", 0, SIZE, 1.0
    ).images
    logits = keras.Model(model.inputs, classifier.output)([scenes.astype(np.float32)])
    mean = keras.ops.mean(logits, axis=(0, 1, 2))
    classifier.bias.assign(classifier.bias - mean)
    return model


@pytest.fixture(scope="module")
def validation():
    return load_images(segmentation.LOGITS, "digits", "validation", 0, SIZE, 1.0)


@pytest.fixture(scope="module")
def make_segmenter(validation, tmp_path_factory):
    """Returns the function that makes the files, of equal arguments only once."""

    @functools.cache
    def make(output: str, auxiliary_weight: float) -> Conversions:
        model, folder = small_model(auxiliary_weight), tmp_path_factory.mktemp(output)
        return Conversions(model, task_of(model, output), validation, folder, RANDOM)

    return lambda output, auxiliary_weight=0.0: make(output, auxiliary_weight)


@pytest.mark.parametrize("auxiliary_weight", [0.0, 0.4])
@pytest.mark.parametrize("output", segmentation.OUTPUT_VARIANTS)
def test_the_classes_are_those_of_keras(
    validation, output, auxiliary_weight, make_segmenter
):
    """With an auxiliary head too, which no file has."""
    model = small_model(auxiliary_weight)
    made = make_segmenter(output, auxiliary_weight)
    card = made.card()
    (described,) = card["outputs"]
    images = validation.images.astype(np.float32)
    outputs = LiteRTModel(made.path()).predict(images)
    if output != "classmap":
        side = SIZE // {"logits": 2, "raw": 4}[output]
        assert described["shape"] == [1, side, side, CLASSES]
        assert card["xnnpack"] == {"partitions": 1, "ops_outside": {}}
        found = segmentation.class_maps(outputs["logits"], SIZE)
    else:
        assert described["shape"] == [1, SIZE, SIZE]
        assert described["dtype"] == "uint8"
        assert set(card["xnnpack"]["ops_outside"]) <= {"ARG_MAX", "CAST"}
        found = outputs["classes"]
    expected = model.predict(images, verbose=0)
    expected = expected["logits"] if auxiliary_weight else expected
    expected = expected.argmax(-1)
    assert len(np.unique(expected)) > 3
    # Logits at half the size are resized twice.
    assert np.mean(found == expected) >= (0.95 if output == "logits" else 0.9999)
    assert card["parity"]["agreement"] >= 0.9999 and card["max_rank"] == 4
    accuracy = card["accuracy"]
    assert accuracy["mIoU"] == pytest.approx(accuracy["keras_mIoU"], abs=0.01)


@pytest.mark.parametrize("output", segmentation.OUTPUT_VARIANTS)
def test_8_bits(output, make_segmenter):
    card = make_segmenter(output).card("int8-mixed")
    assert card["parity"]["agreement"] > 0.8
    if output != "raw":  # logits are resized and compared as floats
        assert {"RESIZE_BILINEAR"} <= set(card["float_ops"])


def test_a_file_is_evaluated(make_segmenter):
    reports = []
    for output in segmentation.OUTPUT_VARIANTS:
        made = make_segmenter(output)
        card = made.card()
        config = make_config(task="segmentation", weights=str(made.path()))
        source = load_source("segmentation", "digits")
        lines = evaluation_report(SEGMENTATION, config, source).splitlines()
        (total,) = (line for line in lines if line.startswith("all "))
        assert float(total.split()[-1]) == pytest.approx(
            card["accuracy"]["mIoU"], abs=0.006
        )
        reports.append(lines)
    _, raw, class_map = reports
    assert raw == class_map


def test_flags_that_do_not_fit_are_refused():
    options = make_options(variants={"output": "classmap"}, check_gpu=True)
    message = "--output of classifiers is one of: probabilities, logits. Received: cl"
    with pytest.raises(ValueError, match=message):
        select_tasks(options, models.load_model("mobilevit_xxs"))
    options = dataclasses.replace(options, formats=("coreml",))
    with pytest.raises(ValueError, match="--output is for .tflite files"):
        select_tasks(options, small_model())
    options = make_options(formats=("int8",), variants={"output": "classmap"})
    with pytest.raises(ValueError, match="There is no int8 of this model"):
        select_tasks(options, small_model())


def test_each_kind_of_file_returns_what_its_flags_say():
    def outputs(**given):
        options = make_options(formats=("fp32", "coreml"), **given)
        tasks = select_tasks(options, small_model())
        return [next(iter(task.outputs)) for task in tasks.values()]

    assert outputs() == ["logits", "classes"]
    assert outputs(variants={"output": "classmap"}) == ["classes", "classes"]
    assert outputs(raw_outputs=True) == ["logits", "logits"]


def test_a_class_map_has_bytes():
    config = types.SimpleNamespace(auxiliary_weight=0.0)
    source = types.SimpleNamespace(class_names=range(300))
    model, task = build_segmenter(config, source), segmentation.CLASS_MAP
    prepared = conversion.prepare(model, SIZE, task=task)
    with pytest.raises(ValueError, match="256 classes at most; the model has 300"):
        _ = prepared.float32


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["fp32", "fp16", "dynamic", "int8-mixed"])
def test_a_class_map_of_another_network_is_not_written(
    validation, file_format, tmp_path
):
    """Also where the classes are not the data's, so that there is no mIoU."""
    model, other = small_model(), keras.models.clone_model(small_model())
    kernel, bias = small_model().get_layer(CLASSIFIER).get_weights()
    other.set_weights(small_model().get_weights())
    other.get_layer(CLASSIFIER).set_weights([-kernel, -bias])
    task, labels = segmentation.CLASS_MAP, [f"another {i}" for i in range(CLASSES)]
    reference = make_reference(model, validation, labels, task)
    assert not reference.has_labels
    images = validation.images.astype(np.float32)
    prepared = conversion.prepare(other, SIZE, calibration=images, task=task)
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match="agrees with Keras on.*--allow=agreement"):
        write_checked(prepared, file_format, [reference], path, {}, ["undelegated_ops"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("has_card", [True, False])
def test_a_class_map_of_other_classes_is_refused(has_card, make_segmenter, tmp_path):
    made = make_segmenter("classmap")
    assert made.card()["classes"] == CLASSES
    if has_card:  # it is in the file
        shutil.copy(made.path(), tmp_path / "model.tflite")
    else:
        (tmp_path / "model.tflite").write_bytes(made.prepared.float32)
    config = make_config(task="segmentation", weights=str(tmp_path / "model.tflite"))
    source = dataclasses.replace(
        load_source("segmentation", "digits"), class_names=("a", "b")
    )
    message = "has 11 classes, but" if has_card else "finds the class .* has 2: 0 to 1"
    with pytest.raises(ValueError, match=message):
        evaluation_report(SEGMENTATION, config, source)


@pytest.fixture(scope="module")
def negative_model() -> tuple[keras.Model, np.ndarray]:
    """A network, and an image of which it finds some pixels' logits all negative."""
    keras.utils.set_random_seed(0)
    model = randomized(
        DeepLabV3(
            "mobilevit_xxs",
            classes=5,
            weights=None,
            input_shape=(96, 96, 3),
            aspp_channels=16,
        )
    )
    images = np.random.default_rng(0).uniform(0, 255, (1, 96, 96, 3))
    images = images.astype(np.float32)
    classifier = model.get_layer(CLASSIFIER)
    classifier.bias.assign(classifier.bias - keras.ops.mean(model(images)))
    assert np.any(keras.ops.max(model(images), axis=-1) < 0)
    return model, images


@pytest.mark.slow
@pytest.mark.skipif(not gpu.find_driver(), reason="apt install chromium libvulkan1")
@pytest.mark.parametrize("output", segmentation.OUTPUT_VARIANTS)
def test_the_gpu_takes_all_of_it(output, negative_model, tmp_path):
    """Also where all logits of a pixel are negative, and so below what fills up 4."""
    model, images = negative_model
    path, task = tmp_path / "model.tflite", segmentation.OUTPUT_VARIANTS[output]
    prepared = conversion.prepare(model, 96, task=task)
    path.write_bytes(prepared.float32)
    verdict = gpu.check_gpu(path, images)
    assert verdict.fully_accelerated, verdict.error
    assert verdict.max_abs <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [16, 8])
def test_the_real_segmenter(output_stride, tmp_path):
    model = randomized(
        DeepLabV3(
            "mobilevit_xxs",
            weights=None,
            input_shape=(256, 256, 3),
            output_stride=output_stride,
        )
    )
    images = np.random.default_rng(0).uniform(0, 255, (2, 256, 256, 3))
    images = images.astype(np.float32)
    expected = model.predict(images, verbose=0).argmax(-1)
    for output, task in segmentation.OUTPUT_VARIANTS.items():
        prepared = conversion.prepare(model, 256, task=task)
        path = tmp_path / f"{output}.tflite"
        path.write_bytes(prepared.float32)
        assert op_stats.max_rank(path) == 4
        litert = LiteRTModel(path)
        assert litert.xnnpack_partitions() == 1
        outputs = litert.predict(images)
        if output != "classmap":
            assert litert.ops_outside_xnnpack() == {}
            found = segmentation.class_maps(outputs["logits"], 256)
        else:
            found = outputs["classes"]
        assert np.mean(found == expected) >= (0.95 if output == "logits" else 0.9999)
    if gpu.find_driver():
        verdict = gpu.check_gpu(tmp_path / "logits.tflite", images[:1])
        assert verdict.fully_accelerated, verdict.error
        assert verdict.max_abs <= 1e-3


def test_names_of_models_with_a_head():
    row, backbone = split_name("deeplabv3_mobilevit_s")
    assert (row.model_prefix, backbone) == ("deeplabv3_", "mobilevit_s")
    row, backbone = split_name("mobilevit_s")
    assert (row.model_prefix, backbone) == ("", "mobilevit_s")
    assert models.default_size("deeplabv3_mobilevit_xs") == 512
    with pytest.raises(
        ValueError, match="Unknown model 'nonsense'.* after ssdlite_ or deeplabv3_"
    ):
        models.load_model("deeplabv3_nonsense")
