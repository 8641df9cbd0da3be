"""A model goes through the converter; what must be refused leaves nothing."""

import errno
import functools
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from huggingface_hub import constants

from keras_mobilevit import DeepLabV3, MobileViT_XXS, SSDLite
from keras_mobilevit.litert import LiteRTModel
from tests.helpers.commands import run_here
from tests.helpers.networks import build_detector, build_segmenter
from tests.helpers.options import make_options
from tflite import checked_file, convert, models, options, pipeline
from tflite.checked_file import write_checked
from tflite.compare_with_keras import make_reference
from tflite.drivers.browser_files import read_file
from tflite.formats import calibration, conversion
from tflite.formats.table import FORMATS, formats_of
from tflite.formats.to_tflite import tflite_content
from tflite.images import ImageSet, check_calibration_images, load_images
from tflite.tasks.classification.task import SINGLE_LABEL, output_name
from tflite.tasks.detection.task import RAW
from tflite.validation import gpu, parity
from tflite.validation.checks import CHECKS, refuse_faults
from train.config import make_config, save_config

# Not every small network here scales its images, which the library warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Model .* does not show whether")

ROOT = Path(__file__).parents[2]


@functools.cache
def eight_digits() -> ImageSet:
    return load_images(SINGLE_LABEL, "digits", "validation", 8, 64, 1.0)


class Setup:
    """A model, its conversion and what its outputs must be."""

    def __init__(self, model: keras.Model, rewrite: bool = True):
        found = eight_digits()
        has_ten = model.output_shape[-1] == len(found.class_names)
        labels = found.class_names if has_ten else ()
        self.reference = make_reference(model, found, labels)
        self.prepared = conversion.prepare(
            model, 64, rewrite=rewrite, calibration=found.images
        )

    def convert(self, folder: Path, file_format: str = "fp32", **options) -> dict:
        output = folder / "model.tflite"
        return write_checked(
            self.prepared, file_format, [self.reference], output, {}, **options
        )


# Random weights give some maps ranges that no trained network has.
RANDOM = ("undelegated_ops", "psnr", "accuracy")


@pytest.fixture(scope="module")
def setup() -> Setup:
    keras.utils.set_random_seed(0)
    return Setup(
        MobileViT_XXS(
            weights=None,
            classes=10,
            classifier_activation=None,
            input_shape=(None, None, 3),
        )
    )


@pytest.fixture(scope="module")
def converted(setup, tmp_path_factory):
    """Returns the function from a format to its folder and card, converted once."""

    @functools.cache
    def convert_once(file_format: str) -> tuple[Path, dict]:
        folder = tmp_path_factory.mktemp(file_format)
        allowed = () if file_format in ("fp32", "fp16") else RANDOM
        return folder, setup.convert(folder, file_format, allowed=allowed)

    return convert_once


@pytest.mark.parametrize(
    ("file_format", "dtype", "size_ratio"),
    [
        ("fp32", "float32", 1.0),
        ("fp16", "float32", 0.53),
        # With 1,000 classes 0.30 and less: a scale for each channel weighs less then.
        ("dynamic", "float32", 0.34),
        ("int8-mixed", "float32", 0.34),
        ("int8", "uint8", 0.34),
    ],
)
def test_every_format(setup, converted, file_format, dtype, size_ratio):
    folder, card = converted(file_format)
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.tflite"]
    assert json.loads((folder / "model.json").read_text()) == card
    assert card["input"]["shape"] == [1, 64, 64, 3]
    assert card["input"]["dtype"] == card["outputs"][0]["dtype"] == dtype
    assert card["outputs"][0]["shape"] == [1, 10]
    assert card["max_rank"] == 4
    assert card["foreign_ops"] == []
    assert card["bytes"] == (folder / "model.tflite").stat().st_size
    assert card["bytes"] <= size_ratio * len(setup.prepared.float32)
    assert card["parity"]["images"] == len(setup.reference.images)
    if file_format != "int8" and not card["xnnpack"]["ops_outside"]:
        assert card["xnnpack"]["partitions"] == 1
    signature = LiteRTModel(folder / "model.tflite").interpreter.get_signature_list()
    assert signature == {
        "serving_default": {"inputs": ["images"], "outputs": ["logits"]}
    }


def test_integers_from_input_to_output(converted):
    _, card = converted("int8")
    assert card["float_ops"] == {}
    assert (card["input"]["scale"], card["input"]["zero_point"]) == (1.0, 0)
    _, mixed = converted("int8-mixed")
    assert mixed["float_ops"]["SOFTMAX"] == 9
    assert mixed["float_ops"]["RSQRT"] == 21
    assert not {"CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL"} & set(mixed["float_ops"])


def test_half_sums_are_allowed(converted):
    folder, _ = converted("fp16")
    content = (folder / "model.tflite").read_bytes()
    assert b"reduced_precision_support" in content
    assert b"fp16accfp16" in content


def test_the_model_as_it_is(tmp_path):
    setup = Setup(MobileViT_XXS(weights=None, input_shape=(64, 64, 3)), rewrite=False)
    card = setup.convert(tmp_path)
    assert not card["rewritten"]
    assert card["parity"]["max_abs"] <= 1e-4


def test_a_layer_without_a_rewrite_stays_and_the_rest_is_rewritten(tmp_path):
    inputs = keras.Input((64, 64, 3))
    x = keras.layers.Cropping2D(2, name="cut")(inputs)
    x = keras.layers.Conv2D(4, 3, strides=2)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    card = Setup(keras.Model(inputs, x)).convert(tmp_path)
    assert card["rewritten"]
    assert card["kept_layers"] == ["cut"]
    assert not {"MUL", "SUB"} & set(card["ops"])  # of the batch normalization


def test_what_is_slow_on_phones_is_told_of_a_layer_without_a_rewrite(tmp_path, caplog):
    inputs = keras.Input((64, 64, 3))
    x = keras.ops.sort(keras.layers.GlobalAveragePooling2D()(inputs), axis=-1)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    Setup(model).convert(tmp_path)
    assert "XNNPACK leaves to slower kernels" in caplog.text
    assert "sort" in caplog.text


def test_probabilities_are_compared_as_logits():
    """Those of two random networks differ by less than any sensible threshold."""
    first, second = (
        keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(1000, activation="softmax"),
            ]
        )
        for _ in range(2)
    )
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    outputs = [model(images).numpy() for model in (first, second)]
    assert output_name(first) == "probabilities"
    assert parity.compare(*outputs)["max_abs"] < 1e-3
    assert parity.compare(*outputs, are_probabilities=True)["max_abs"] > 1e-2


def test_the_card_tells_probabilities_and_the_range_of_the_values(tmp_path):
    x = inputs = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(4, 3, strides=8, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(3, activation="softmax")(x)
    card = Setup(keras.Model(inputs, x)).convert(tmp_path)
    assert card["input"]["name"] == "images"
    assert card["input"]["meaning"] == "RGB image, values in [0, 1]"
    assert card["outputs"][0]["name"] == "probabilities"
    assert card["parity"]["max_abs"] <= 1e-4
    assert card["accuracy"] is None  # the digits have other classes
    without = MobileViT_XXS(
        weights=None, classes=3, input_shape=(64, 64, 3), include_preprocessing=False
    )
    assert conversion.prepare(without, 64).input_max == 1


@pytest.mark.parametrize(
    ("activation", "classes", "name", "meaning"),
    [
        ("sigmoid", 3, "probabilities", "of each class by itself"),
        ("sigmoid", 1, "probabilities", "of the only class"),
        ("softmax", 3, "probabilities", "one for each class"),
        (None, 3, "logits", "one for each class"),
    ],
)
def test_the_card_tells_what_a_classifier_returns(
    activation, classes, name, meaning, tmp_path
):
    x = inputs = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.Conv2D(4, 3, strides=8, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(classes)(x)
    setup = Setup(keras.Model(inputs, keras.layers.Activation(activation)(x)))
    card = setup.convert(tmp_path)
    assert card["activation"] == (activation or "logits")
    (output,) = card["outputs"]
    assert output["name"] == name and meaning in output["meaning"]
    assert card["accuracy"] is None
    assert ("top1_agreement" in card["parity"]) == (activation != "sigmoid")
    (told,) = convert.accuracy_words(None, card["parity"])
    assert told.endswith("agreement 100.0 %")
    page_file = read_file(str(tmp_path / "model.tflite"), 0)
    assert page_file.description["activation"] == card["activation"]


def test_a_sigmoid_head_has_no_top1():
    """Nor is it trained as if one class alone were right."""
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="sigmoid"),
        ]
    )
    setup = Setup(model)
    assert setup.reference.has_labels and not setup.reference.task.metric
    assert "int8-qat" not in formats_of(setup.reference.task)


def test_what_tflite_cannot_express_is_refused(tmp_path):
    inputs = keras.Input((64, 64, 3))
    x = keras.ops.linalg.det(inputs[..., :3, :3, 0] + keras.ops.eye(3))[:, None]
    x = keras.ops.concatenate([keras.ops.reshape(x, (-1, 1))] * 2, axis=-1)
    with pytest.raises(ValueError, match="TFLite has no operations for "):
        Setup(keras.Model(inputs, x), rewrite=False).convert(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_inputs_is_refused(tmp_path):
    path = str(tmp_path / "dense.keras")
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]).save(path)
    with pytest.raises(ValueError, match=r"\(None, 5\).*Expected one of RGB images"):
        models.load_model(path)


def test_classes_are_the_same_by_their_names_alone(setup):
    names = setup.reference.validation.class_names
    assert models.has_classes_of(list(names), names)
    assert not models.has_classes_of([f"garment {i}" for i in range(10)], names)
    assert not models.has_classes_of([], names)  # as many, perhaps
    assert setup.reference.has_labels


def test_an_earlier_file_stays_and_is_named(setup, tmp_path, monkeypatch):
    before = setup.convert(tmp_path)
    monkeypatch.setitem(FORMATS["fp32"].limits, "parity", 0.0)
    with pytest.raises(ValueError, match="An earlier .*model.tflite stays"):
        setup.convert(tmp_path)
    assert json.loads((tmp_path / "model.json").read_text()) == before


def test_a_second_conversion_at_the_same_time_is_refused(tmp_path):
    with checked_file.only_conversion(tmp_path):
        with pytest.raises(ValueError, match="Another conversion writes into"):
            with checked_file.only_conversion(tmp_path):
                pass
    with checked_file.only_conversion(tmp_path):  # and then no more
        pass


def test_labels_of_another_model_are_refused(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert models.labels_beside(tmp_path / "best.keras", 2) == ["cat", "dog"]
    with pytest.raises(ValueError, match="names 2 classes, but .* has 10"):
        models.labels_beside(tmp_path / "best.keras", 10)


def test_images_that_cannot_be_read_are_told(tmp_path):
    for split in ("train", "validation"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "cut.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"can be read.*cut.jpg \(the file is empty"):
        load_images(SINGLE_LABEL, f"folder:{tmp_path}", "validation", 8, 64, 1.0)


def test_images_come_from_all_classes():
    found = load_images(SINGLE_LABEL, "digits", "validation", 32, 48, 1.0)
    images = found.images
    assert 32 <= len(images) <= 40
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) > 30
    assert set(found.targets["label"]) == set(range(10))


def image_set(images) -> ImageSet:
    return ImageSet("folder:x", ("a",), np.asarray(images), {})


def test_equal_calibration_images_are_refused():
    with pytest.raises(ValueError, match="All 30 .* equal.*clip every other image"):
        check_calibration_images(image_set(np.full((30, 4, 4, 3), 9)))


@pytest.mark.parametrize(
    ("count", "wanted", "warning"),
    [
        (20, 0, "Calibrating on only 20 images"),
        (60, 200, "has 60 calibration images; --calibration_images asked for 200"),
        (60, 60, ""),
        (60, 0, ""),
    ],
)
def test_few_calibration_images_are_told(count, wanted, warning, caplog):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3))
    check_calibration_images(image_set(images), wanted)
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)


def test_too_few_calibration_images_are_refused():
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3))
    with pytest.raises(ValueError, match="9 calibration images .* are too few"):
        check_calibration_images(image_set(images))


def test_black_calibration_images_are_refused():
    images = np.random.default_rng(0).integers(0, 2, (60, 8, 8, 3))
    with pytest.raises(ValueError, match=r"nearly black.*scaled to \[0, 1\]"):
        check_calibration_images(image_set(images))


def save_photos(folder: Path, count: int) -> Path:
    """Writes photos without classes: spots of color."""
    folder.mkdir()
    small = np.random.default_rng(0).integers(0, 256, (count, 4, 6, 3), np.uint8)
    for index, image in enumerate(small):
        image = tf.image.resize(image, (60, 90), method="nearest")
        tf.io.write_file(str(folder / f"{index:03}.png"), tf.io.encode_png(image))
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_a_folder_of_photos_without_classes(prefix, tmp_path):
    folder = save_photos(tmp_path / "photos", 7)
    (folder / "cut.jpg").write_bytes(b"")
    for task in (SINGLE_LABEL, RAW):
        found = load_images(task, f"{prefix}{folder}", "validation", 0, 32, 1.0)
        assert found.images.shape == (7, 32, 32, 3)
        assert (found.class_names, found.targets) == ((), {})


def save_classes(folder: Path, count: int) -> Path:
    """Writes the classes a and b of `count` photos each, without train/."""
    save_photos(folder, 2 * count)
    for index, file in enumerate(sorted(folder.glob("*.png"))):
        target = folder / "ab"[index % 2]
        target.mkdir(exist_ok=True)
        file.rename(target / file.name)
    return folder


def test_class_folders_without_train_and_validation_have_classes(tmp_path):
    folder = save_classes(tmp_path / "photos", 20)
    found = [
        load_images(SINGLE_LABEL, f"folder:{folder}", split, 0, 32, 1.0)
        for split in ("train", "validation")
    ]
    assert sum(len(images.images) for images in found) == 40
    for images in found:
        assert images.class_names == ("a", "b")
        assert set(images.targets["label"]) == {0, 1}


@pytest.mark.parametrize("task", [SINGLE_LABEL, RAW])
def test_the_photos_of_class_folders_calibrate(task, tmp_path):
    folder = save_classes(tmp_path / "photos", 20)
    (folder / "one").mkdir()  # too few photos for a class
    (folder / "a" / "000.png").rename(folder / "one" / "000.png")
    found = load_images(task, str(folder), "train", 0, 32, 1.0)
    assert found.images.shape == (40, 32, 32, 3)
    assert (found.class_names, found.targets) == ((), {})


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_photos_beside_class_folders_have_no_classes(prefix, tmp_path, caplog):
    folder = save_classes(tmp_path / "photos", 20)
    for index in range(3):
        (folder / "a" / f"{2 * index:03}.png").rename(folder / f"{index}.png")
    found = load_images(SINGLE_LABEL, f"{prefix}{folder}", "train", 0, 32, 1.0)
    assert len(found.images) == 3 and found.class_names == ()
    assert "took the 3 photos that lie directly in this folder" in caplog.text
    assert "none of its folders a, b." in caplog.text


def test_a_path_with_train_and_validation_is_refused_with_a_hint(tmp_path):
    for part in ("train", "validation"):
        save_classes(tmp_path / part, 2)
    with pytest.raises(ValueError, match=f"Write folder:{tmp_path} for train and"):
        load_images(SINGLE_LABEL, str(tmp_path), "train", 0, 32, 1.0)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="No photos in .*in class folders.*Found: cat"):
        load_images(SINGLE_LABEL, str(tmp_path), "train", 0, 32, 1.0)
    file = tmp_path / "cat" / "one.png"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="one.png is a file. Name the folder"):
        load_images(SINGLE_LABEL, str(file), "train", 0, 32, 1.0)
    with pytest.raises(ValueError, match="There is no folder /.*photso.*folder:PATH"):
        load_images(SINGLE_LABEL, "photso", "train", 0, 32, 1.0)


class Args:
    """The flags of a conversion of a named model."""

    def __init__(self, **changes):
        self.model, self.weights, self.formats = "mobilevit_xxs", "none", ["fp32"]
        self.data = self.calibration = self.crop = None
        self.no_rewrite = False
        vars(self).update(changes)


def test_a_named_model_is_not_calibrated_on_the_digits():
    fp32 = options.data_from_flags(Args())
    assert (fp32.validation, fp32.calibration) == ("digits", None)
    for name in ("dynamic", "int8-mixed", "int8", "int8-qat", "coreml-int8"):
        with pytest.raises(ValueError, match=f"{name}: .*Give --data=folder:PATH"):
            options.data_from_flags(Args(formats=["fp32", name]))
    found = options.data_from_flags(Args(formats=["int8"], calibration="photos"))
    assert (found.validation, found.calibration) == ("photos", "photos")
    for weights in ("imagenet", "mine.safetensors"):
        args = Args(weights=weights, data="digits", formats=["int8"])
        with pytest.raises(ValueError, match="digits are not like the images"):
            options.data_from_flags(args)
    with pytest.raises(ValueError, match="digits are not like the images"):
        options.data_from_flags(
            Args(model="mine.keras", data="digits", formats=["int8"])
        )
    options.data_from_flags(Args(data="digits", formats=["int8"]))  # random


@pytest.mark.parametrize(
    ("model", "weights", "expected", "warning"),
    [
        ("mobilevit_s", None, "imagenet", ""),
        ("ssdlite_mobilevit_xs", None, "coco", ""),
        ("deeplabv3_mobilevit_xxs", None, "voc", ""),
        ("ssdlite_mobilevit_xs", "imagenet", "imagenet", "head of .* random weights"),
        ("mobilevit_s", "none", "none", "gets random weights"),
        ("mobilenet_v2", "none", "none", "gets random weights"),
        ("mobilevit_s", "mine.pt", "mine.pt", ""),
        ("best.keras", None, "none", ""),
    ],
)
def test_weights_are_random_only_if_asked_for(
    model, weights, expected, warning, caplog
):
    found = options.weights_from_flags(Args(model=model, weights=weights))
    assert found == expected
    assert re.search(warning, caplog.text) if warning else not caplog.text


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        (
            "mobilenet_v2",
            None,
            "mobilenet_v2 has no published weights. Use --weights=none",
        ),
        ("best.keras", "none", "best.keras has its own weights"),
        ("best.keras", "imagenet", "best.keras has its own weights"),
    ],
)
def test_weights_that_cannot_be_are_refused(model, weights, message):
    with pytest.raises(ValueError, match=message):
        options.weights_from_flags(Args(model=model, weights=weights))


def test_published_weights_that_are_missing_are_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    flags = "--model=mobilevit_xxs", f"--output_dir={tmp_path / 'out'}"
    result = run_here("tflite/convert.py", *flags)
    assert result.returncode == 1
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("error:")]
    assert "--weights=PATH" in line and "https://" in line and "--weights=none" in line
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "crop"),
    [
        ({"model": "mobilevit_s", "weights": "imagenet"}, 256 / 288),
        ({"model": "mobilevit_s", "weights": "timm.safetensors"}, 256 / 288),
        ({"model": "mobilevit_s", "weights": "imagenet", "crop": 0.5}, 0.5),
        ({"model": "run/best.keras"}, 0.75),  # as its config.json says
        ({"model": "run/best.keras", "crop": 1.0}, 1.0),
        ({"model": "alone.keras"}, 1.0),
    ],
)
def test_the_crop_is_that_of_the_evaluation(changes, crop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    save_config(make_config("folder_small", eval_crop=0.75), Path("run/config.json"))
    assert options.data_from_flags(Args(**changes)).crop == crop


def test_a_file_of_another_model_is_not_replaced(tmp_path):
    path = tmp_path / "best_64_fp32.tflite"
    ours = {"model": "runs/a/best.keras"}
    checked_file.check_earlier(path, ours)
    path.write_bytes(b"")
    checked_file.check_earlier(path, ours)  # without a card nothing is known
    path.with_suffix(".json").write_text(json.dumps(ours), "utf-8")
    checked_file.check_earlier(path, ours)
    checked_file.check_earlier(
        path, {"model": str(Path("runs/a/best.keras").absolute())}
    )
    for other in ({"model": "runs/b/best.keras"}, ours | {"weights": "imagenet"}):
        with pytest.raises(ValueError, match="was made from runs/a/best.keras. Use"):
            checked_file.check_earlier(path, other)


def test_photos_prove_a_file_that_its_own_training_images_calibrate(tmp_path, caplog):
    folder = str(save_photos(tmp_path / "photos", 3))
    save_config(make_config("folder_small", data="folder:x"), tmp_path / "config.json")
    model = str(tmp_path / "best.keras")
    args = Args(model=model, formats=["int8"], data=folder)
    found = options.data_from_flags(args)
    assert (found.validation, Path(found.calibration.split(":")[1]).name) == (
        folder,
        "x",
    )
    assert not caplog.text
    options.data_from_flags(Args(formats=["int8"], calibration=folder))
    assert "both calibrate and check" in caplog.text
    with pytest.raises(ValueError, match="int8-qat trains on images with labels"):
        options.data_from_flags(Args(formats=["int8-qat"], calibration=folder))


def test_what_no_rewrite_costs_is_told(caplog):
    options.data_from_flags(Args(data="x", formats=["int8"], no_rewrite=True))
    assert "channels are not equalized" in caplog.text


@pytest.mark.slow
def test_one_refused_format_does_not_stop_the_others(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "tflite/convert.py", "--model=mobilevit_xxs"),
            *("--weights=none", "--size=32", "--formats=int8-qat,fp32"),
            "--data=digits",
            *("--calibration_images=60", f"--output_dir={tmp_path}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "int8-qat.tflite was not written: int8-qat trains on digits" in result.stderr
    assert "1 of 2 formats refused: int8-qat." in result.stderr
    assert "Accuracy is not measured" in result.stderr
    assert "mobilevit_xxs_32_fp32.tflite: " in result.stdout
    written = sorted(p.name for p in tmp_path.iterdir())
    assert written == ["mobilevit_xxs_32_fp32.json", "mobilevit_xxs_32_fp32.tflite"]


@pytest.mark.slow
def test_a_file_is_calibrated_and_proven_on_photos_without_classes(tmp_path):
    folder = save_photos(tmp_path / "photos", 60)
    subprocess.run(
        [
            *(sys.executable, "tflite/convert.py", "--model=mobilevit_xxs"),
            *("--weights=none", "--size=32", "--formats=int8-mixed"),
            f"--calibration={folder}",
            *("--allow=psnr", f"--output_dir={tmp_path}"),
        ],
        cwd=ROOT,
        check=True,
    )
    card = json.loads((tmp_path / "mobilevit_xxs_32_int8-mixed.json").read_text())
    assert card["accuracy"] is None
    assert card["calibration"] == {"data": str(folder), "images": 60}
    assert (card["parity"]["data"], card["parity"]["images"]) == (str(folder), 60)


def test_a_refused_file_tells_where_the_error_grows(
    setup, converted, tmp_path, monkeypatch
):
    _, card = converted("int8-mixed")
    errors = card["largest_errors"]
    assert len(errors) == 5
    layers = {layer.name for layer in setup.reference.model.layers}
    assert {error["layer"] for error in errors} <= layers
    monkeypatch.setitem(FORMATS["int8-mixed"].limits, "psnr", 200.0)
    with pytest.raises(ValueError, match=f"grows most in .*{errors[0]['layer']} "):
        setup.convert(tmp_path, "int8-mixed")


def test_a_file_that_differs_is_not_left_behind(setup, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS["fp32"].limits, "parity", 0.0)
    with pytest.raises(ValueError, match=r"differ from Keras's .*--allow=parity"):
        setup.convert(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert setup.convert(tmp_path, allowed=["parity"])["allowed"] == ["parity"]


def test_another_size_than_the_models_is_refused():
    model = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Flatten()])
    with pytest.raises(
        ValueError, match=r"takes images of 64x64 pixels only. Received: 96"
    ):
        conversion.prepare(model, 96)


def accuracy_of(top1: float) -> dict:
    return {"metric": "top1", "top1": top1, "keras_top1": 70.0, "tolerance": 0.1}


GOOD_CARD = {
    "format": "fp32",
    "foreign_ops": [],
    "float_ops": {},
    "max_rank": 4,
    "xnnpack": {"partitions": 1, "ops_outside": {}},
    "parity": {"max_abs": 1e-6, "psnr_db": 140.0},
    "accuracy": accuracy_of(70.0),
    "gpu": "not checked",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"foreign_ops": ["FlexConv2D"]}, "needs unsupported operations: FlexConv2D"),
        ({"float_ops": {"MUL": 3}}, "operations on floats: 3; at most 0"),
        ({"max_rank": 6}, r"rank 6; phones take at most 4 \(--allow=rank\)"),
        ({"xnnpack": {"ops_outside": {"RSQRT": 2}}}, "XNNPACK does not run: 2"),
        ({"parity": {"max_abs": np.nan, "psnr_db": 140.0}}, "up to nan"),
        ({"parity": {"max_abs": 0.0, "psnr_db": np.nan}}, "PSNR .* in dB is nan"),
        (
            {"parity": {"max_abs": 0.0, "psnr_db": 140.0, "agreement": 0.9}},
            "objects or pixels that Keras finds: 0.9; at least",
        ),
        ({"accuracy": accuracy_of(69.0)}, "beyond the tolerance: 0.9; at most 0"),
        ({"accuracy": accuracy_of(69.9)}, None),
        ({"accuracy": None}, None),
        (
            {"gpu": {"fully_accelerated": False, "max_abs": None, "error": "no MUL"}},
            "does not run entirely on the GPU: no MUL",
        ),
        (
            {"gpu": {"fully_accelerated": True, "max_abs": 0.5, "error": ""}},
            "on the GPU that differ from the CPU's by up to 0.5",
        ),
        (
            {
                "gpu": {
                    "fully_accelerated": True,
                    "max_abs": None,
                    "error": "not finite",
                }
            },
            "fails on the GPU: not finite",
        ),
        ({"accuracy": accuracy_of(np.nan)}, "beyond the tolerance: nan"),
    ],
)
def test_every_fault_is_told(change: dict, message: str | None):
    limits = {**FORMATS["fp32"].limits, "psnr": 50.0, "float": 0}
    if message is None:
        refuse_faults(GOOD_CARD | change, limits)
        return
    with pytest.raises(ValueError, match=message):
        refuse_faults(GOOD_CARD | change, limits)
    refuse_faults(GOOD_CARD | change, limits, allowed=CHECKS)


def test_numbers_of_a_gpu_that_are_not_finite_are_told():
    """Whichever output they are in: Python's `max` hides those that come later."""
    good = {"boxes": np.zeros(3), "scores": np.ones(3)}
    assert gpu._compared(good, good) == {"max_abs": 0.0}
    for name in good:
        for value in (np.nan, np.inf):
            bad = good | {name: np.array([0.0, value, 0.0])}
            found = gpu._compared(bad, good)
            assert found["error"] == f"its {name} are not finite on the GPU"
            assert "on the CPU" in gpu._compared(good, bad)["error"]


def test_calibration_that_is_not_finite_is_told(setup):
    images = setup.reference.images[:2].copy()
    images[1, 3, 3, 0] = np.nan
    with pytest.raises(ValueError, match="The tensor .* is not finite for a calib"):
        calibration.measure_ranges(setup.prepared.float32, images, 255)


@pytest.mark.skipif(gpu.find_driver() is None, reason="no Vulkan driver: see `gpu.py`")
@pytest.mark.parametrize("file_format", ["fp32", "fp16"])
def test_gpus_take_all_of_it(setup, file_format, tmp_path):
    card = setup.convert(tmp_path, file_format, check_gpu=True)
    assert card["gpu"]["fully_accelerated"]
    assert card["gpu"]["max_abs"] <= 1e-3


@pytest.mark.skipif(gpu.find_driver() is None, reason="no Vulkan driver: see `gpu.py`")
def test_the_gpu_check_can_fail(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3], tf.float32, "images")])
    def serve(images):  # rank 6
        x = tf.reshape(images, (1, 4, 2, 4, 2, 3))
        return {"y": tf.reshape(tf.transpose(x, (0, 2, 4, 1, 3, 5)), (1, 192))}

    path = tmp_path / "m.tflite"
    path.write_bytes(tflite_content(serve))
    verdict = gpu.check_gpu(path, np.ones((1, 8, 8, 3), np.float32))
    assert not verdict.fully_accelerated
    assert "ended with code" not in verdict.error


def test_a_driver_that_does_not_start_is_told(setup, tmp_path, monkeypatch):
    monkeypatch.setenv(gpu.ICD, "/nowhere.json")
    with pytest.raises(ValueError, match="driver /nowhere.json does not start"):
        setup.convert(tmp_path, check_gpu=True)
    assert list(tmp_path.iterdir()) == []


def test_no_driver_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(gpu, "find_driver", lambda: None)
    with pytest.raises(ValueError, match="apt install chromium libvulkan1"):
        gpu.require_driver()


def settled_size(model: str, network: keras.Model) -> int:
    return pipeline.settle_size(make_options(model=model), network).image_size


def test_the_size_is_that_of_the_trainings_evaluation(tmp_path, setup):
    path, any_size = str(tmp_path / "best.keras"), setup.reference.model
    assert settled_size(path, any_size) == 256
    assert settled_size("mobilevit_s", any_size) == 256
    save_config(make_config("digits", eval_size=96), tmp_path / "config.json")
    assert settled_size(path, any_size) == 96


def test_a_fixed_size_of_a_model_is_the_default(tmp_path):
    save_config(make_config("digits", eval_size=96), tmp_path / "config.json")
    networks = {
        "classifier": MobileViT_XXS(weights=None, input_shape=(64, 64, 3)),
        "detector": SSDLite(
            "mobilevit_xxs", classes=3, weights=None, input_shape=(192, 192, 3)
        ),
        "segmenter": DeepLabV3(
            "mobilevit_xxs", classes=3, weights=None, input_shape=(128, 128, 3)
        ),
    }
    path = str(tmp_path / "best.keras")
    found = {name: settled_size(path, model) for name, model in networks.items()}
    assert found == {"classifier": 64, "detector": 192, "segmenter": 128}


def test_detectors_and_segmenters_of_any_size_have_their_own_default(tmp_path):
    path = str(tmp_path / "best.keras")
    source = types.SimpleNamespace(class_names=range(3))
    config = types.SimpleNamespace(auxiliary_weight=0.0)
    detector = build_detector(config, source)
    segmenter = build_segmenter(config, source)
    assert settled_size(path, detector) == 320
    assert settled_size(path, segmenter) == 512


def test_a_model_of_oblong_images_is_refused():
    network = keras.Sequential([keras.Input((64, 96, 3)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="64x96 pixels only; only models of square"):
        settled_size("best.keras", network)


def test_the_help_tells_which_format_is_for_what():
    for name, row in FORMATS.items():
        assert f"  {name} " in convert.__doc__
        assert row.purpose.split(";")[0] in " ".join(convert.__doc__.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=nonsense"], "mobilevit_xxs, mobilevit_xs, mobilevit_s"),
        (["--model=mobilevit_xxs", "--formats=int2"], "Expected some of: fp32"),
        (["--model=mobilevit_xxs", "--size=0"], "at least 32"),
        (["--model=mobilevit_xxs", "--allow=all"], "Expected some of: custom_ops"),
        (["--model=missing.keras"], "There is no file missing.keras"),
        (["--model=runs/demo"], "Or the path of a `.keras` file"),
    ],
)
def test_bad_flags(flags: list[str], message: str, tmp_path):
    result = run_here("tflite/convert.py", *flags, f"--output_dir={tmp_path}")
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo(tmp_path):
    """`make demo`'s own steps with a tiny schedule."""
    flags = "--data=digits --sizes=32,48 --base_size=32 --batch_size=256 --epochs=1"
    subprocess.run(
        [
            "make",
            "demo-run",
            f"PYTHON={sys.executable}",
            f"RUN={tmp_path}",
            f"DEMO_FLAGS={flags}",
        ],
        cwd=ROOT,
        check=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sizes"] == [32, 48]
    assert report["validation_images"] == 360
    assert report["parity_max_abs"] <= 1e-4
    assert report["latency_ms_median"] > 0
    assert abs(report["top1_keras"] - report["top1_tflite"]) <= 0.001
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4


def test_ctrl_c_ends_a_conversion_without_a_traceback(tmp_path, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "convert_all", interrupt)
    flags = "--model=mobilevit_xxs", "--weights=none", f"--output_dir={tmp_path}"
    result = run_here("tflite/convert.py", *flags)
    assert result.returncode == 130 and "Traceback" not in result.stderr
    assert result.stderr.endswith("interrupted\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Make room in .*TMPDIR"),
        (ValueError("no"), "^error: no$"),
    ],
)
def test_a_full_disk_names_the_folders(error, message, tmp_path, monkeypatch):
    def fail(options):
        raise error

    monkeypatch.setattr(pipeline, "convert_all", fail)
    flags = "--model=mobilevit_xxs", "--weights=none", f"--output_dir={tmp_path}"
    result = run_here("tflite/convert.py", *flags)
    assert result.returncode == 1
    assert re.search(message, result.stderr.splitlines()[-1])


def test_a_full_folder_of_temporary_files_is_named(monkeypatch):
    def fail(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    serve = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec((1, 2))])
    with pytest.raises(OSError, match="temporary files, .*No space left.*set TMPDIR"):
        tflite_content(serve)
