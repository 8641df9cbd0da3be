"""The backbone with its pyramid: names, shapes and weights, of every variant."""

import keras
import numpy as np
import pytest

import keras_mobilevit
from keras_mobilevit import VARIANTS, MobileViTBackbone

LEVELS = ["P1", "P2", "P3", "P4", "P5"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pyramid_of_every_variant(variant: str):
    model = MobileViTBackbone(variant, weights=None, input_shape=(64, 96, 3))
    assert list(model.output) == LEVELS
    for level, stride, channels in zip(
        LEVELS, (2, 4, 8, 16, 32), VARIANTS[variant].stage_channels
    ):
        shape = model.output[level].shape
        if VARIANTS[variant].family.map_multiple == 1:
            assert shape == (None, 64 // stride, -(-96 // stride), channels)
        assert shape[-1] == channels
        assert model.get_layer(level).output is model.output[level]


@pytest.mark.parametrize("stride", [8, 16])
def test_a_smaller_output_stride_keeps_the_size(stride: int):
    model = MobileViTBackbone(
        "mobilevit_xxs", weights=None, output_stride=stride, input_shape=(64, 96, 3)
    )
    sides = [model.output[level].shape[1] for level in LEVELS]
    assert sides == [64 // min(s, stride) for s in (2, 4, 8, 16, 32)]


def test_the_same_layers_in_every_model():
    options = {"weights": None, "input_shape": (64, 64, 3)}
    models = (
        keras_mobilevit.MobileViT_XXS(include_top=False, **options),
        keras_mobilevit.SSDLite("mobilevit_xxs", classes=2, **options),
        keras_mobilevit.DeepLabV3("mobilevit_xxs", classes=2, **options),
    )
    for model in models:
        assert model.get_layer("P3").output.shape == (None, 8, 8, 48)


@pytest.mark.slow
def test_the_weights_of_a_classifier(tmp_path):
    classifier = keras_mobilevit.MobileViT_XXS(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    classifier.save(tmp_path / "classifier.keras")
    backbone = MobileViTBackbone("mobilevit_xxs", weights=tmp_path / "classifier.keras")
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3))
    features = keras.Model(classifier.input, classifier.get_layer("P5").output)
    found = backbone.predict(images, verbose=0)["P5"]
    np.testing.assert_allclose(found, features.predict(images, verbose=0), atol=1e-5)


def test_a_frozen_backbone_keeps_its_statistics():
    backbone = MobileViTBackbone("mobilevit_xxs", weights=None)
    backbone.trainable = False
    inputs = keras.Input((64, 64, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(backbone(inputs)["P4"])
    model = keras.Model(inputs, keras.layers.Dense(2)(outputs))
    model.compile("sgd", "mse", jit_compile=False)
    before = [w.numpy() for w in backbone.weights]
    model.fit(np.ones((2, 64, 64, 3)), np.ones((2, 2)), verbose=0)
    assert len(model.trainable_weights) == 2
    for one, other in zip(before, backbone.weights, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "resnet"}, "Unknown model 'resnet'"),
        ({"output_stride": 4}, "must be 8, 16 or 32. Received: output_stride=4"),
        ({"weights": "coco"}, "weights='coco'"),
        ({"input_shape": (16, 64, 3)}, "at least 32"),
    ],
)
def test_invalid_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MobileViTBackbone(**({"weights": None} | arguments))


def test_the_classifier_alone_is_trained():
    model = keras_mobilevit.MobileViT_XXS(weights=None, classes=2)
    keras_mobilevit.freeze_backbone(model)
    found = [weight.path for weight in model.trainable_weights]
    assert found == ["predictions/kernel", "predictions/bias"]
