"""A model goes through the converter; what must be refused leaves nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_mobilevit import MobileViT_XXS
from tflite import convert, opcheck, parity

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    return MobileViT_XXS(
        weights=None,
        classes=10,
        classifier_activation=None,
        input_shape=(None, None, 3),
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return convert.real_images("digits", 64, 1.0)[:4]


def test_converted_file_and_card(model, images, tmp_path):
    output = tmp_path / "model.tflite"
    card = convert.convert(model, "fp32", 64, images, output, {"model": "test"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.tflite"]
    assert json.loads((tmp_path / "model.json").read_text()) == card
    assert card["input"]["shape"] == [1, 64, 64, 3]
    assert card["output"]["shape"] == [1, 10]
    assert card["max_rank"] == 4
    assert card["xnnpack_partitions"] == 1
    assert card["parity"]["max_abs"] <= 1e-4
    assert card["bytes"] == output.stat().st_size


def test_probabilities_are_compared_as_logits():
    """Those of two random networks differ by less than any sensible threshold."""
    first, second = (
        MobileViT_XXS(weights=None, input_shape=(32, 32, 3)) for _ in range(2)
    )
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    outputs = [model(images).numpy() for model in (first, second)]
    assert convert.output_kind(first) == "probabilities"
    assert parity.compare(*outputs)["max_abs"] < 1e-3
    assert parity.compare(*outputs, are_probabilities=True)["max_abs"] > 1e-2


def test_the_card_tells_probabilities_and_the_range_of_the_values(images, tmp_path):
    model = MobileViT_XXS(
        weights=None, classes=3, input_shape=(64, 64, 3), include_preprocessing=False
    )
    card = convert.convert(model, "fp32", 64, images, tmp_path / "m.tflite", {})
    assert card["input"]["name"] == "images"
    assert card["input"]["meaning"] == "RGB image, values in [0, 1]"
    assert card["output"]["name"] == "probabilities"
    assert card["parity"]["max_abs"] <= 1e-4


def test_what_tflite_cannot_express_is_refused(images, tmp_path):
    inputs = keras.Input((64, 64, 3))
    x = keras.ops.linalg.det(inputs[..., :3, :3, 0] + keras.ops.eye(3))[:, None]
    x = keras.ops.concatenate([keras.ops.reshape(x, (-1, 1))] * 2, axis=-1)
    with pytest.raises(ValueError, match="TFLite's own operations cannot express"):
        convert.convert(
            keras.Model(inputs, x), "fp32", 64, images, tmp_path / "m.tflite", {}
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_inputs_is_refused(tmp_path):
    path = str(tmp_path / "dense.keras")
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]).save(path)
    with pytest.raises(ValueError, match=r"\(None, 5\).*Expected RGB images"):
        convert.load_model(path)


def test_labels_of_another_model_are_refused(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert convert._labels_beside(tmp_path / "best.keras", 2) == ["cat", "dog"]
    with pytest.raises(ValueError, match="names 2 classes, but .* has 10"):
        convert._labels_beside(tmp_path / "best.keras", 10)


def test_images_that_cannot_be_read_are_told(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "cut.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="can be read"):
        convert.real_images(f"folder:{tmp_path}", 64, 1.0)


def test_images_come_from_all_classes():
    images = convert.real_images("digits", 48, 1.0)
    assert 32 <= len(images) <= 40
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) > 30


def test_a_file_that_differs_is_not_left_behind(model, images, tmp_path, monkeypatch):
    monkeypatch.setitem(parity.THRESHOLDS, "fp32", 0.0)
    with pytest.raises(ValueError, match="differ from Keras's by up to"):
        convert.convert(model, "fp32", 64, images, tmp_path / "model.tflite", {})
    assert list(tmp_path.iterdir()) == []


def test_another_size_than_the_models_is_refused():
    model = MobileViT_XXS(weights=None, input_shape=(64, 64, 3))
    with pytest.raises(ValueError, match=r"takes images of 64x64.*--size=96"):
        convert.make_converter(model, 96)


def test_nan_is_a_difference():
    outputs = np.array([[np.nan, 1.0]])
    with pytest.raises(ValueError, match="nan"):
        parity.refuse_difference(parity.compare(outputs, outputs), "fp32")


def test_foreign_operations_are_refused():
    with pytest.raises(ValueError, match="FlexConv2D"):
        opcheck.refuse_custom_ops({"CONV_2D": 1, "FlexConv2D": 2})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=nonsense"], "mobilevit_xxs, mobilevit_xs, mobilevit_s"),
        (["--model=mobilevit_xxs", "--formats=int2"], "Expected some of: fp32"),
        (["--model=mobilevit_xxs", "--size=0"], "at least 32"),
        (["--model=missing.keras"], "There is no file missing.keras"),
        (["--model=runs/demo"], "Or the path of a `.keras` file"),
    ],
)
def test_bad_flags(flags: list[str], message: str, tmp_path):
    result = subprocess.run(
        [sys.executable, "tflite/convert.py", *flags, f"--output_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


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
