"""A model's first layers show which values its images have."""

import inspect
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_mobilevit.calls import list_calls
from keras_mobilevit.value_range import IDENTITIES, input_max, scale_and_offset
from tests.helpers.idioms import IDIOMS, base, head


def model_of(function, dtype=None) -> keras.Model:
    inputs = keras.Input((8, 8, 3), dtype=dtype)
    return keras.Model(inputs, layers.Conv2D(2, 1)(function(inputs)))


def normalization(mean, deviation):
    return layers.Normalization(mean=mean, variance=deviation**2)


def batch_normalization(mean, deviation):
    def call(x):
        layer = layers.BatchNormalization(name="first")
        y = layer(x)
        layer.moving_mean.assign(np.full(3, mean))
        layer.moving_variance.assign(np.full(3, deviation**2))
        return y

    return call


# The idioms of tests/helpers/idioms.py state their ranges.
@pytest.mark.parametrize(
    "name", [n for n in IDIOMS if "backbone" not in n and n != "nothing"]
)
def test_the_range_of_an_idiom_is_found_without_a_warning(name: str):
    model = IDIOMS[name].build()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert input_max(model) == IDIOMS[name].largest


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        # Scaling after other layers does not count.
        lambda x: layers.Rescaling(0.1)(layers.Conv2D(2, 1)(x)),
        lambda x: layers.Rescaling(1 / 255)(layers.Conv2D(2, 1)(x)),
    ],
)
def test_a_model_that_does_not_scale_its_images_warns(function):
    """It may have been trained on any range."""
    with pytest.warns(
        UserWarning, match=r"does not scale its images. Assumed: \[0, 1\]"
    ):
        assert input_max(model_of(function)) == 1


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x * 255, 1),  # for a backbone that rescales
        (lambda x: layers.Rescaling(1 / 255)(x * 255), 1),
        (lambda x: (x - 0.5) * 2, 1),
        (lambda x: x - 128.0, 255),
        (lambda x: ops.flip(x, 2) / 128.0, 255),
        (normalization(120.0, 60.0), 255),
        (normalization(0.45, 0.22), 1),
        (batch_normalization(120, 60), 255),
        (batch_normalization(0.45, 0.22), 1),
        (lambda x: batch_normalization(0.45, 0.22)(x / 255.0), 255),
    ],
)
def test_the_numbers_decide(function, expected: int):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert input_max(model_of(function)) == expected


def test_integers_are_pixels():
    assert input_max(model_of(lambda x: ops.cast(x, "float32"), "uint8")) == 255


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (normalization(0.5, 10.0), "fits neither.*Assumed: .0, 255"),
        (normalization(0.5, 4.0), "fits neither.*Assumed: .0, 1"),
        (normalization(-0.2, 0.5), "values below 0.*Assumed: .0, 1"),
        (normalization(30000.0, 9000.0), "far above 255.*Assumed: .0, 255"),
        (layers.Normalization(name="empty"), "'empty' has not been adapted"),
        (batch_normalization(0, 1), "'first' has not been adapted or trained"),
        (lambda x: x / 65535.0, "far above 255"),
        (lambda x: layers.Add()([x / 255.0, x * 2.0]), "some are for .0, 1."),
    ],
)
def test_unclear_numbers_warn(function, message: str):
    with pytest.warns(UserWarning, match=message):
        input_max(model_of(function))


OPTIONS = {
    "ActivityRegularization": {},
    "AugMix": {"value_range": (0, 255)},
    "CutMix": {},
    "Identity": {},
    "MixUp": {},
    "RandAugment": {"value_range": (0, 255)},
    "RandomBrightness": {"factor": 0.5},
    "RandomColorJitter": {"brightness_factor": 0.5},
    "RandomContrast": {"factor": 0.5},
    "RandomElasticTransform": {},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 2},
    "RandomTranslation": {"height_factor": 0.5, "width_factor": 0.5},
    "RandomZoom": {"height_factor": 0.5},
}


@pytest.mark.parametrize("kind", sorted(IDENTITIES, key=lambda kind: kind.__name__))
def test_skipped_layers_return_their_input_at_inference(kind):
    axes = {"SpatialDropout1D": (1, 8, 3), "SpatialDropout3D": (1, 8, 8, 8, 3)}
    shape = axes.get(kind.__name__, (1, 8, 8, 3))
    x = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    options = OPTIONS.get(kind.__name__)
    layer = kind(**options) if options is not None else kind(0.5)
    takes_training = "training" in inspect.signature(layer.call).parameters
    y = layer(x, training=False) if takes_training else layer(x)
    np.testing.assert_allclose(y, x)


def test_scale_and_offset_are_what_the_call_computes():
    for function in (
        layers.Rescaling([1.0, 2.0, 3.0], offset=4.0),
        layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0]),
        lambda x: 3.0 - x,
        lambda x: x / np.float32([1, 2, 4]),
    ):
        inputs = keras.Input((4, 4, 3))
        model = keras.Model(inputs, function(inputs))
        (call,) = list_calls(model).calls
        x = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
        scale, offset = scale_and_offset(call)
        np.testing.assert_allclose(model(x), x * scale + offset, atol=1e-5)


def test_the_calls_of_models_in_models_are_listed_in_order():
    shared, inputs = base(), keras.Input((32, 32, 3))
    inner = keras.Sequential([keras.Input((32, 32, 3)), shared])
    model = keras.Model(inputs, head(shared(inputs) + inner(inputs)))
    listed = list_calls(model)
    assert len(listed.calls) == 2 * (len(shared.layers) - 1) + 3
    known = set(listed.inputs)
    for call in listed.calls:
        assert call.inputs and known.issuperset(call.inputs)
        known.update(call.outputs)
    assert known.issuperset(listed.outputs)
