"""Models as Keras users build them convert, with the outputs of Keras."""

import functools
import json
import types
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_mobilevit.litert import LiteRTModel
from tests.helpers.idioms import IDIOMS, SIZE, head, image, scaled
from tflite import models
from tflite.checked_file import write_checked
from tflite.compare_with_keras import make_reference
from tflite.formats import conversion
from tflite.formats import to_tflite as converter
from tflite.images import ImageSet

# Not every small network here scales its images, which the library warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Model .* does not show whether")


def settle(model: keras.Model) -> None:
    """Sets statistics and biases to plausible values of a training."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        name = variable.path.rsplit("/", 1)[-1]
        if name in ("gamma", "moving_variance", "alpha"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif name in ("beta", "bias", "moving_mean"):
            variable.assign(random.normal(0, 0.2, variable.shape))


def photos(size: int) -> ImageSet:
    images = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)
    images[0, : size // 2] = 255  # a range that is too small would clip it
    return ImageSet("random", (), images, {})


def converted(path: Path, size: int | None = None) -> tuple[dict, dict]:
    """Converts a `.keras` file; returns the card and the file's outputs."""
    model = models.load_model(str(path))
    size = size or models.fixed_size(model) or SIZE
    reference = make_reference(model, photos(size))
    prepared = conversion.prepare(model, size)
    output = path.with_suffix(".tflite")
    card = write_checked(prepared, "fp32", [reference], output, {})
    return card, LiteRTModel(output).predict(reference.images)


# The networks of keras.applications take half a minute. Those of this library are read
# as parts of other models in test_rewrites.py, and converted whole in test_convert.py.
# One of each kind; the others differ in a layer or a number.
QUICK = (
    *("rescaling, base(x)", "x / 127.5 - 1", "preprocess_input of caffe"),
    *("normalization adapted to [0, 255]", "resizing", "augmentation in front"),
    *("gray image", "images of integers", "sequential in sequential"),
    *("models three deep, and layers after", "a base called twice", "flatten"),
    *("prelu", "batch normalization in the head", "two heads in a dict"),
    *("multi-head attention", "segmentation", "one unit of sigmoid"),
    *("time distributed", "mixed_float16"),
)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in IDIOMS],
)
def test_an_idiom_converts_with_keras_own_outputs(name: str, tmp_path):
    keras.utils.set_random_seed(0)
    model = IDIOMS[name].build()
    settle(model)
    model.save(tmp_path / "model.keras")
    card, outputs = converted(tmp_path / "model.keras")
    assert card["input"]["largest_value"] == IDIOMS[name].largest
    assert json.loads((tmp_path / "model.json").read_text()) == card
    # Compared with Keras itself, not with the model that the conversion changed.
    images = photos(card["input"]["shape"][1]).images.astype(np.float32)
    images *= np.float32(IDIOMS[name].largest / 255)
    if model.inputs[0].shape[-1] == 1:
        images = np.round(images @ np.float32([0.299, 0.587, 0.114]))[..., None]
    expected = keras.tree.map_structure(np.asarray, model(images, training=False))
    if not isinstance(expected, dict):
        listed = expected if isinstance(expected, list) else [expected]
        expected = dict(zip(sorted(outputs), listed))
    assert sorted(expected) == sorted(outputs)
    tolerance = 3e-2 if name.startswith("mixed") else 1e-4
    for key, values in expected.items():
        assert np.ptp(values) > 1e-3, "an output that nothing changes tests nothing"
        np.testing.assert_allclose(outputs[key], values, atol=tolerance, err_msg=key)


# Models that are refused, and what to do.


def saved(model: keras.Model, folder: Path) -> str:
    path = str(folder / "model.keras")
    model.save(path)
    return path


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x[:, 0, 0])


@keras.saving.register_keras_serializable(package="tests")
class Registered(Subclassed):
    pass


def called(model: keras.Model) -> keras.Model:
    model(np.zeros((1, SIZE, SIZE, 3), np.float32))
    return model


def quantized() -> keras.Model:
    model = scaled(head)()
    model.quantize("int8")
    return model


def with_lora() -> keras.Model:
    model = scaled(head)()
    model.layers[-1].enable_lora(2)
    return model


REFUSED = {
    "lambda": (
        lambda: scaled(lambda x: head(layers.Lambda(lambda y: y / 2)(x)))(),
        "cannot be loaded: it has a Lambda layer.*keras.ops",
    ),
    "layer of its own": (
        lambda: scaled(lambda x: head(Doubled()(x)))(),
        "Could not locate class 'Doubled'.*Build the model from Keras's layers",
    ),
    "subclassed": (
        lambda: called(Subclassed()),
        "Could not locate class 'Subclassed'.*Build the model from Keras's layers",
    ),
    "subclassed, registered": (
        lambda: called(Registered()),
        "class Registered, whose call.. is custom code.*keras.Sequential",
    ),
    "int8 of Keras": (quantized, "was quantized by Keras, in layer .*int8-mixed"),
    "LoRA": (with_lora, r"LoRA weights in layer .*save_weights\(\)"),
    "channels first": (
        lambda: keras.Sequential([keras.Input((3, SIZE, SIZE)), layers.Flatten()]),
        "Expected one of RGB images, .None, height, width, 3., or one of gray images",
    ),
    "two images": (
        lambda: keras.Model(
            inputs := [image(), image()], head(layers.Subtract()(inputs))
        ),
        "takes inputs of the shapes .*Expected one of RGB images",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_told(name: str, tmp_path):
    build, message = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of layers without 8 bits
        path = saved(build(), tmp_path)
    with pytest.raises(ValueError, match=f"(?s)model.keras.*{message}"):
        models.load_model(path)


def test_weights_of_lora_are_merged_as_the_message_says(tmp_path):
    model = with_lora()
    model.layers[-1].lora_kernel_b.assign(np.ones((2, 3)))
    model.save_weights(tmp_path / "merged.weights.h5")
    plain = scaled(head)()
    plain.load_weights(tmp_path / "merged.weights.h5")
    x = photos(SIZE).images.astype(np.float32)
    expected = model.predict(x, verbose=0)
    card, outputs = converted(Path(saved(plain, tmp_path)))
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4)


def test_a_model_of_16_bits_becomes_one_of_32_with_its_weights():
    model = IDIOMS["mixed_float16"].build()
    settle(model)
    single = models.in_float32(model)
    assert {layer.compute_dtype for layer in single.layers} == {"float32"}
    for before, after in zip(model.variables, single.variables):
        np.testing.assert_array_equal(before, after)
    x = photos(SIZE).images.astype(np.float32)
    y, expected = single.predict(x, verbose=0), model.predict(x, verbose=0)
    assert 0 < np.abs(y - expected).max() < 0.02
    assert models.in_float32(single) is single


def test_the_outputs_of_several_heads_are_named_and_described(tmp_path):
    for name, outputs in (
        ("two heads in a list", ["output_0", "output_1"]),
        ("two heads in a dict", ["age", "kind"]),
    ):
        card, _ = converted(Path(saved(IDIOMS[name].build(), tmp_path)))
        assert [output["name"] for output in card["outputs"]] == outputs
        assert card["task"] == "outputs"
        file = LiteRTModel(tmp_path / "model.tflite")
        places = file.interpreter.get_output_details()
        for output in card["outputs"]:
            tensor = file.outputs[output["name"]]["index"]
            assert places[output["position"]]["index"] == tensor
        meanings = " ".join(output["meaning"] for output in card["outputs"])
        assert "layer 'kind'" in meanings and "layer 'age'" in meanings


def test_the_card_of_a_gray_model_says_so(tmp_path):
    card, _ = converted(Path(saved(IDIOMS["gray image"].build(), tmp_path)))
    assert card["input"]["shape"] == [1, SIZE, SIZE, 1]
    assert card["input"]["meaning"] == "gray image, values in [0, 255]"


def test_what_tflite_has_no_operations_for_is_named(tmp_path):
    def build(x):
        return ops.fft2((x[..., 0], x[..., 1]))[0]

    model = models.load_model(saved(scaled(build)(), tmp_path))
    prepared = conversion.prepare(model, SIZE)
    with pytest.raises(ValueError, match="TFLite has no operations for .*FFT2D of Ten"):
        _ = prepared.float32


def test_another_failure_of_the_converter_is_not_called_so(monkeypatch):
    def fail(self):
        raise OSError("no space left on device")

    monkeypatch.setattr(
        tf.lite.TFLiteConverter, "from_saved_model", lambda folder: fake
    )
    fake = types.SimpleNamespace(target_spec=types.SimpleNamespace())
    fake.convert = functools.partial(fail, fake)
    serve = converter.trace_model(lambda x: [x], (8, 8, 3), lambda y: {"y": y[0]})
    with pytest.raises(RuntimeError, match="converter failed.*no space left"):
        converter.tflite_content(serve)
