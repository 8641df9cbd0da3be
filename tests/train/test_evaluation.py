"""Evaluation of any weights, whole and class by class."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_mobilevit
from keras_mobilevit.litert import LiteRTModel
from tests.helpers.commands import run_here
from tests.helpers.image_files import make_folder, pil_file
from tflite.formats import conversion
from tflite.images import load_images
from tflite.tasks.classification.task import SINGLE_LABEL
from train import flags as train_flags
from train.config import is_config, make_config, save_config
from train.data.registry import load_source
from train.evaluation.evaluate import Evaluation, evaluate_predictor
from train.evaluation.predictor import Predictor, load_predictor
from train.evaluation.report import evaluation_report
from train.tasks.classification import metric
from train.tasks.classification.task import CLASSIFICATION

ROOT = Path(__file__).parents[2]
CONFIG = make_config("digits", eval_size=32, batch_size=100)


@pytest.fixture(scope="module")
def digits():
    return load_source("classification", "digits")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """One untrained model, in each kind of file."""
    folder = tmp_path_factory.mktemp("weights")
    model = keras_mobilevit.MobileViT_XXS(
        weights=None, classes=10, input_shape=(None, None, 3)
    )
    # Logits that vary from image to image, so that it does not answer with one class.
    features = keras.Model(model.inputs, model.get_layer("head_pool").output)
    images = load_images(SINGLE_LABEL, "digits", "validation", 32, 32, 1.0).images
    features = features.predict(images, verbose=0)
    kernel = np.random.default_rng(0).normal(size=(320, 10)) / features.std()
    model.get_layer("predictions").set_weights(
        [kernel, -features.mean(axis=0) @ kernel]
    )
    paths = {
        ending: folder / f"model.{ending}"
        for ending in ("keras", "weights.h5", "safetensors", "tflite")
    }
    model.save(paths["keras"])
    model.save_weights(paths["weights.h5"])
    keras_mobilevit.save_safetensors(model, paths["safetensors"])
    paths["tflite"].write_bytes(conversion.prepare(model, 32).float32)
    return paths


@pytest.fixture(scope="module")
def small_files(tmp_path_factory) -> dict[str, Path]:
    """A network of ten classes that is quickly loaded, in two kinds of file."""
    folder = tmp_path_factory.mktemp("small")
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    model.save(folder / "model.keras")
    (folder / "model.tflite").write_bytes(conversion.prepare(model, 32).float32)
    return {ending: folder / f"model.{ending}" for ending in ("keras", "tflite")}


def evaluate(source, **overrides) -> Evaluation:
    config = dataclasses.replace(CONFIG, **overrides)
    predictor = load_predictor(CLASSIFICATION, config, source)
    assert predictor.size == 32
    return evaluate_predictor(CLASSIFICATION, predictor, source, config)


def evaluate_scores(source, scores) -> Evaluation:
    """Evaluates a predictor that gives every image the same scores."""

    def predict(images) -> dict:
        rows = np.repeat(np.float32([scores]), len(images), axis=0)
        return {"best": metric.best_classes(rows).numpy()}

    predictor = Predictor(32, predict)
    return evaluate_predictor(CLASSIFICATION, predictor, source, CONFIG)


def counts_of(found: Evaluation) -> tuple[np.ndarray, ...]:
    return tuple(found.statistics[name] for name in ("images", "top1", "top5"))


@pytest.mark.slow
def test_every_kind_of_file_gives_the_same(digits, files):
    found = {
        ending: counts_of(evaluate(digits, weights=str(path)))
        for ending, path in files.items()
    }
    for ending, (images, top1, top5) in found.items():
        assert images.sum() == 360, ending
        assert np.count_nonzero(top1) > 1
        assert np.all(top1 <= top5)
        np.testing.assert_array_equal(found[ending], found["keras"])


def test_top_1_and_top_5_by_class(digits):
    """A predictor that ranks the classes 0, 1, 2 and so on, whatever it sees."""
    found = evaluate_scores(digits, -np.arange(10.0))
    images, top1, top5 = counts_of(found)
    np.testing.assert_array_equal(top1 > 0, np.arange(10) == 0)
    np.testing.assert_array_equal(top5 == images, np.arange(10) < 5)
    text = metric.report(digits.class_names, found.metrics, found.statistics, 32)
    lines = text.splitlines()
    assert lines[0].split() == ["class", "images", "top-1", "top-5"]
    assert lines[1].split() == ["0", "36", "100.00", "100.00"]
    assert lines[-2].split()[:3] == ["all", "360", "10.00"]


def brightness_model(activation: str | None, signs=(1,)) -> keras.Model:
    """A classifier that tells bright images from dark ones, by its only layer."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255, offset=-0.5)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(len(signs), activation)(x))
    kernel = np.tile(np.float32(signs), (3, 1))
    model.layers[-1].set_weights([kernel, np.zeros(len(signs))])
    return model


@pytest.fixture
def dark_and_light(tmp_path):
    classes = {
        "dark": {f"{i}.png": pil_file("RGB", (i, 9, 9), "PNG") for i in range(3)},
        "light": {f"{i}.png": pil_file("RGB", (250, 250, i), "PNG") for i in range(2)},
    }
    return load_source(
        "classification", f"folder:{make_folder(tmp_path / 'photos', classes)}"
    )


@pytest.mark.parametrize("ending", ["keras", "tflite"])
@pytest.mark.parametrize(
    ("activation", "signs"),
    [("sigmoid", (1,)), (None, (1,)), ("sigmoid", (-1, 1)), ("softmax", (-1, 1))],
)
def test_heads_of_all_kinds(activation, signs, ending, dark_and_light, tmp_path):
    """One unit tells of the second of two classes, as Keras has it."""
    model = brightness_model(activation, signs)
    path = tmp_path / f"model.{ending}"
    if ending == "keras":
        model.save(path)
    else:
        content = conversion.prepare(model, 32).float32
        path.write_bytes(content)
    images, top1, _ = counts_of(evaluate(dark_and_light, weights=str(path)))
    assert images.tolist() == top1.tolist() == [3, 2]


def test_a_sigmoid_of_several_classes_is_logged(dark_and_light, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    for activation, is_logged in (("sigmoid", True), ("softmax", False)):
        caplog.clear()
        brightness_model(activation, (-1, 1)).save(tmp_path / "model.keras")
        evaluate(dark_and_light, weights=str(tmp_path / "model.keras"))
        assert ("ends in a sigmoid" in caplog.text) == is_logged


def test_images_that_cannot_be_read_are_named(tmp_path):
    png = pil_file("RGB", (255, 0, 0), "PNG")
    classes = {"a": {"1.png": png, "cut.png": b""}, "b": {"2.png": png}}
    source = load_source("classification", f"folder:{make_folder(tmp_path, classes)}")
    file = tmp_path / "model.keras"
    brightness_model("softmax", (-1, 1)).save(file)
    assert counts_of(evaluate(source, weights=str(file)))[0].tolist() == [1, 1]
    config = dataclasses.replace(CONFIG, weights=str(file))
    text = evaluation_report(CLASSIFICATION, config, source)
    assert "cut.png (the file is empty)" in text.splitlines()[-1]


def test_other_classes_are_refused(tmp_path, small_files):
    png = pil_file("RGB", (255, 0, 0), "PNG")
    folder = make_folder(tmp_path, {"a": {"1.png": png}, "b": {"2.png": png}})
    source = load_source("classification", f"folder:{folder}")
    for ending in ("keras", "tflite"):
        with pytest.raises(ValueError, match="has 10 classes, but .* has 2"):
            evaluate(source, weights=str(small_files[ending]))
    with pytest.raises(ValueError, match="1000 classes"):
        evaluate(source, weights="imagenet")
    with pytest.raises(ValueError, match="takes --model"):
        evaluate(source)


def run_command(*flags, cwd):
    return run_here("train/main.py", "--mode=eval", *flags, folder=cwd)


@pytest.mark.filterwarnings("ignore:Model .* does not show whether")
def test_the_command(small_files, tmp_path):
    weights = f"--weights={small_files['keras']}"
    result = run_command("--data=digits", weights, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 13
    assert lines[-1] == "at 48x48 pixels, in percent"


@pytest.mark.slow
def test_the_command_on_a_converted_file(files, tmp_path):
    result = run_command("--data=digits", f"--model={files['tflite']}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "at 32x32 pixels, in percent"


def test_a_file_and_other_weights_for_it_are_refused(small_files, tmp_path):
    model = f"--model={small_files['tflite']}"
    flags = ("--data=digits", model, "--weights=imagenet")
    result = run_command(*flags, cwd=tmp_path)
    assert "has its own weights. Remove --weights." in result.stderr


def test_integers_without_a_scale_stay_as_they_are():
    model = LiteRTModel.__new__(LiteRTModel)
    model.input = {"dtype": np.uint8, "quantization": (0.0, 0)}
    assert model.quantize([-3.0, 0.2, 77.6, 300.0]).tolist() == [0, 0, 78, 255]


def test_integers_are_rounded_and_clipped():
    model = LiteRTModel.__new__(LiteRTModel)
    model.input = {"dtype": np.int8, "quantization": (0.5, -10)}
    model.outputs = {"logits": {"quantization": (0.25, 4)}}
    quantized = model.quantize([-100.0, 0.2, 0.3, 100.0])
    assert quantized.dtype == np.int8
    assert quantized.tolist() == [-128, -10, -9, 127]
    logits = model.dequantize("logits", np.array([4, 8], np.int8))
    assert logits.tolist() == [0.0, 1.0]
    model.outputs = {"classes": {"quantization": (0.0, 0)}}
    numbers = np.array([-1], np.int32)
    assert model.dequantize("classes", numbers) is numbers


def test_labels_of_another_training_are_refused(tmp_path, digits, small_files):
    (tmp_path / "best.keras").write_bytes(small_files["keras"].read_bytes())
    (tmp_path / "labels.txt").write_text("".join(f"{i}\n" for i in range(1, 11)))
    with pytest.raises(
        ValueError, match="other classes .*labels.txt: only one of them has 0, 10"
    ):
        evaluate(digits, weights=str(tmp_path / "best.keras"))


def test_a_card_tells_the_range_of_the_values(
    tmp_path, digits, small_files, monkeypatch
):
    path = tmp_path / "m.tflite"
    path.write_bytes(small_files["tflite"].read_bytes())
    images = np.full((1, 32, 32, 3), 200, np.float32)
    config = dataclasses.replace(CONFIG, weights=str(path))
    seen = []

    def predict(self, images):
        seen.append(images)
        return {"logits": np.zeros((len(images), 10), np.float32)}

    monkeypatch.setattr(LiteRTModel, "predict", predict)
    load_predictor(CLASSIFICATION, config, digits).predict(images)
    (tmp_path / "m.json").write_text('{"input": {"largest_value": 1}}')
    load_predictor(CLASSIFICATION, config, digits).predict(images)
    np.testing.assert_array_equal(seen[0], images)
    np.testing.assert_allclose(seen[1], images / 255)


def test_labels_in_a_card_are_compared(tmp_path, digits, small_files):
    path = tmp_path / "m.tflite"
    path.write_bytes(small_files["tflite"].read_bytes())
    (tmp_path / "m.json").write_text('{"labels": ["cat", "dog"]}')
    with pytest.raises(
        ValueError, match="other classes .*m.tflite: only one of them has 0, 1"
    ):
        evaluate(digits, weights=str(path))


def test_outputs_that_are_not_finite_are_refused(digits):
    with pytest.raises(ValueError, match="not finite"):
        evaluate_scores(digits, np.full(10, np.nan))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Model .* does not show whether")
def test_a_model_that_takes_values_up_to_1_gets_them(tmp_path, digits):
    paths = []
    weights = None
    for included in (True, False):
        model = keras_mobilevit.MobileViT_XXS(
            weights=None,
            classes=10,
            input_shape=(32, 32, 3),
            include_preprocessing=included,
        )
        model.get_layer("predictions").kernel.assign(
            np.random.default_rng(0).normal(0, 30, (320, 10))
        )
        weights = weights or model.get_weights()
        model.set_weights(weights)
        paths.append(tmp_path / f"{included}.keras")
        model.save(paths[-1])
    one, two = (evaluate(digits, weights=str(path)) for path in paths)
    np.testing.assert_array_equal(counts_of(one), counts_of(two))


def test_only_a_runs_own_configuration_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "mobilevit_s"}')
    assert not is_config(tmp_path / "config.json")
    save_config(CONFIG, tmp_path / "config.json")
    assert is_config(tmp_path / "config.json")
    assert not is_config(tmp_path / "nowhere.json")


def test_equal_scores_count_as_in_training(digits):
    """A model that gives every class the same is right for the first ones alone."""
    images, top1, top5 = counts_of(evaluate_scores(digits, np.zeros(10)))
    np.testing.assert_array_equal(top1, images * (np.arange(10) < 1))
    np.testing.assert_array_equal(top5, images * (np.arange(10) < 5))


def test_what_lies_beside_a_file_tells_how_it_was_trained(tmp_path):
    file = str(tmp_path / "best_320_int8-mixed.tflite")
    assert train_flags.read_training(file) == {}
    card = {"task": "detection", "crop": 1.0, "labels": ["a"]}
    (tmp_path / "best_320_int8-mixed.json").write_text(json.dumps(card))
    assert train_flags.read_training(file) == {"task": "detection", "eval_crop": 1.0}
    config = make_config("digits", epochs=7)
    save_config(config, tmp_path / "config.json")
    assert make_config(**train_flags.read_training(file)) == config
