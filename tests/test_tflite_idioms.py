"""Models as users of Keras build them convert, with Keras's own outputs."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.idioms import IDIOMS, SIZE
from tflite import conversion, models
from tflite.images import ImageSet
from train.litert import LiteRTModel


def settle(model: keras.Model) -> None:
    """Gives statistics and biases values that a training could."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        name = variable.path.rsplit("/", 1)[-1]
        if name in ("gamma", "moving_variance", "alpha"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif name in ("beta", "bias", "moving_mean"):
            variable.assign(random.normal(0, 0.2, variable.shape))


def photos(size: int) -> ImageSet:
    images = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)
    images[0, : size // 2] = 255  # what a range that is too small would clip
    return ImageSet("random", (), images, {})


def converted(path: Path, size: int | None = None) -> tuple[dict, dict]:
    """Converts a `.keras` file; returns the card and the file's outputs."""
    model = models.load_model(str(path))
    size = size or models.fixed_size(model) or SIZE
    reference = conversion.make_reference(model, photos(size))
    prepared = conversion.prepare(model, size, True, None, None)
    output = path.with_suffix(".tflite")
    card = conversion.convert(prepared, "fp32", [reference], output, {})
    return card, LiteRTModel(output).predict(reference.images)


@pytest.mark.parametrize("name", IDIOMS)
def test_an_idiom_converts_with_keras_own_outputs(name: str, tmp_path):
    keras.utils.set_random_seed(0)
    model = IDIOMS[name].build()
    settle(model)
    model.save(tmp_path / "model.keras")
    card, outputs = converted(tmp_path / "model.keras")
    assert card["input"]["largest_value"] == IDIOMS[name].largest
    assert json.loads((tmp_path / "model.json").read_text()) == card
    # Beside Keras itself, not beside what the conversion has made of the model.
    images = photos(card["input"]["shape"][1]).images.astype(np.float32)
    images *= np.float32(IDIOMS[name].largest / 255)
    if model.inputs[0].shape[-1] == 1:
        images = np.round(images @ np.float32([0.299, 0.587, 0.114]))[..., None]
    expected = model.predict(images, verbose=0)
    if not isinstance(expected, dict):
        listed = expected if isinstance(expected, list) else [expected]
        expected = dict(zip(sorted(outputs), listed))
    assert sorted(expected) == sorted(outputs)
    tolerance = 3e-2 if name.startswith("mixed") else 1e-4
    for key, values in expected.items():
        assert np.ptp(values) > 1e-3, "an output that nothing changes tests nothing"
        np.testing.assert_allclose(outputs[key], values, atol=tolerance, err_msg=key)
