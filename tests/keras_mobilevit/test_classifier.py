"""Classifiers: their arguments, their errors, and their last activation."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_mobilevit
from keras_mobilevit import MobileViT_XXS
from keras_mobilevit.classifier import output_activation


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooling(pooling: str):
    model = MobileViT_XXS(weights=None, include_top=False, pooling=pooling)
    assert model.output_shape == (None, 320)


def test_input_tensor():
    inputs = keras.Input((200, 200, 4))
    tensor = keras.layers.Conv2D(3, 1)(inputs)
    model = MobileViT_XXS(weights=None, input_tensor=tensor, classes=5)
    assert model.input_shape == (None, 200, 200, 4)
    assert model(np.zeros((1, 200, 200, 4))).shape == (1, 5)


def test_preprocessing_is_a_division_by_255():
    with_it = MobileViT_XXS(weights=None, classes=3, input_shape=(64, 64, 3))
    without = MobileViT_XXS(
        weights=None, classes=3, input_shape=(64, 64, 3), include_preprocessing=False
    )
    without.set_weights(with_it.get_weights())
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3))
    prepared = keras_mobilevit.preprocess_input(images)
    np.testing.assert_allclose(with_it(prepared), without(images / 255), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "nowhere.keras"}, "existing weights file.*nowhere.keras"),
        ({"weights": "imagenet", "classes": 7}, "1000 classes"),
        ({"classes": 0}, "`classes` must be a positive integer"),
        ({"classes": "10"}, "`classes` must be a positive integer"),
        ({"weights": 1}, "existing weights file"),
        ({"include_top": False, "pooling": "mean"}, "`pooling` must be"),
        ({"input_shape": (31, 64, 3)}, "at least 32"),
        ({"input_shape": (64, 64)}, "height, width, channels"),
        ({"input_shape": (64, 64, 2)}, "1, 3 or 4 channels"),
    ],
)
def test_bad_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MobileViT_XXS(**({"weights": None} | arguments))


@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [
        ("float32", 1e-5),
        ("mixed_float16", 2e-3),
        ("mixed_bfloat16", 2e-2),
        ("float16", 2e-3),
        ("bfloat16", 2e-2),
        ("float64", 1e-5),
    ],
)
def test_fused_batch_normalization_equals_keras(policy: str, tolerance: float):
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 6, 7))
    options = {"momentum": 0.9, "epsilon": 1e-5, "dtype": policy}
    fused = keras_mobilevit.backend.BatchNormalization(**options)
    plain = keras.layers.BatchNormalization(**options)

    def assert_equal(mine, theirs):
        assert mine.dtype == theirs.dtype
        mine, theirs = (np.asarray(x).astype("float64") for x in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, atol=tolerance, rtol=tolerance)

    for _ in range(3):
        assert_equal(fused(x, training=True), plain(x, training=True))
    for mine, theirs in zip(fused.weights, plain.weights, strict=True):
        assert_equal(mine.value, theirs.value)
    assert_equal(fused(x), plain(x))


def test_dense_kernels_have_the_spread_of_the_published_code():
    model = MobileViT_XXS(weights=None)
    kernel = np.asarray(model.get_layer("predictions").kernel)
    assert kernel.std() == pytest.approx(0.02, rel=0.01)
    assert np.abs(kernel).max() > 0.06  # not cut off at two standard deviations


def _base():
    return keras.Sequential([keras.Input((8,)), layers.Dense(4, activation="relu")])


def _nested(x):
    head = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="sigmoid")])
    return keras.Sequential([keras.Input((8,)), _base(), head, layers.Dropout(0.1)])(x)


def _mean_of_two(x):
    one, two = (layers.Dense(3, activation="softmax")(x) for _ in range(2))
    return (one + two) / 2


def _last_model_only_reshapes(x):
    x = layers.Dense(3, activation="sigmoid")(x)
    return keras.Sequential([keras.Input((3,)), layers.Reshape((3,))])(x)


@pytest.mark.parametrize(
    ("head", "activation"),
    [
        (layers.Dense(3), "logits"),
        (layers.Dense(1), "logits"),
        (layers.Dense(3, activation="relu"), "logits"),
        (layers.Dense(3, activation="log_softmax"), "logits"),
        (layers.Dense(3, activation="softmax"), "softmax"),
        (layers.Dense(3, activation=layers.Softmax()), "softmax"),
        (layers.Dense(1, activation="sigmoid"), "sigmoid"),
        (layers.Dense(3, activation="hard_sigmoid"), "sigmoid"),
        (layers.Softmax(), "softmax"),
        (layers.Activation("sigmoid"), "sigmoid"),
        (lambda x: layers.Softmax()(layers.Activation("linear")(x)), "softmax"),
        (lambda x: layers.Activation("linear")(ops.sigmoid(x)), "sigmoid"),
        (lambda x: ops.cast(ops.softmax(x), "float32"), "softmax"),
        (lambda x: layers.Average()([ops.sigmoid(x), ops.sigmoid(2 * x)]), "sigmoid"),
        (lambda x: layers.Multiply()([layers.Dense(8)(x), ops.sigmoid(x)]), "logits"),
        (_mean_of_two, "softmax"),
        (_nested, "sigmoid"),
        (_last_model_only_reshapes, "sigmoid"),
        (lambda x: x, "logits"),
    ],
)
def test_the_last_activation_is_found(head, activation: str):
    inputs = keras.Input((8,))
    assert output_activation(keras.Model(inputs, head(inputs))) == activation


@pytest.mark.parametrize("activation", [None, "sigmoid", "softmax"])
def test_the_last_layer_of_a_subclassed_model_decides(activation):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3, activation=activation)

        def call(self, x):
            return self.head(x)

    assert output_activation(Subclassed()) == (activation or "logits")
