"""The baselines are what was published, and go through the converter unchanged."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from keras import layers

from keras_mobilevit.litert import LiteRTModel
from tests.helpers.graphs import random_images, randomized, run_graph
from tflite import models
from tflite.baselines import (
    BASELINES,
    DEIT_TINY,
    PIT_TINY,
    SIZE,
    TokenEmbedding,
    _pool,
    _transformer_layer,
    build_vit,
)
from tflite.formats import conversion
from tflite.formats.table import FORMATS
from tflite.graph.reader import read_model
from tflite.graph.rewrites import deployment_graph
from tflite.graph.tf_ops import ACTIVATIONS
from tflite.suites.suites import PAPER
from tflite.validation import op_stats

# timm's deit_tiny_patch16_224 and pit_ti_224, and the summaries of keras.applications.
PARAMETERS = {
    "mobilenet_v2": 3_538_984,
    "mobilenet_v3_large": 5_507_432,
    "efficientnet_b0": 5_330_571,
    "deit_tiny": 5_717_416,
    "pit_tiny": 4_847_272,
}
SMALL_SIZE = 64  # pixels; 4x4 patches in DeiT, 7x7 in PiT
SMALL_VITS = {
    "deit": dataclasses.replace(DEIT_TINY, widths=(24,), depths=(1,), heads=(3,)),
    "pit": dataclasses.replace(PIT_TINY, widths=(8, 16), depths=(1, 1), heads=(2, 4)),
}


def trained(model: keras.Model) -> keras.Model:
    """Gives all weights values that a training could, seeded."""
    random = np.random.default_rng(2)
    randomized(model)
    for layer in model.layers:
        if isinstance(layer, TokenEmbedding):
            for variable in layer.weights:
                variable.assign(random.normal(0, 0.5, variable.shape))
        elif isinstance(layer, layers.Normalization):
            layer.adapt_mean.assign(random.uniform(0.4, 0.6, 3))
            layer.adapt_variance.assign(random.uniform(0.05, 0.1, 3))
            layer.finalize_state()
    return model


@functools.cache
def small_vit(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    return trained(build_vit(SMALL_VITS[name], SMALL_SIZE, classes=10))


@functools.cache
def small_mobilenet() -> keras.Model:
    """What MobileNetV3 and EfficientNet have beyond MobileNetV2, each once."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SMALL_SIZE, SMALL_SIZE, 3))
    x = layers.Normalization()(layers.Rescaling(1 / 255)(inputs))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.Activation("hard_swish")(layers.BatchNormalization()(x))
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(16, 1)(y)
    x = layers.Multiply()([x, layers.ReLU(6.0)(y + 3.0) * (1.0 / 6.0)])
    y = layers.Reshape((1, 1, -1))(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.Conv2D(16, 1, activation="sigmoid")(y)])
    x = layers.Conv2D(10, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return trained(keras.Model(inputs, layers.Flatten()(x), name="small_mobilenet"))


SMALL_MODELS = {
    "deit": lambda: small_vit("deit"),
    "pit": lambda: small_vit("pit"),
    "mobilenet": small_mobilenet,
}


def relative_difference(found, expected) -> float:
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def check_conversion(model: keras.Model, size: int, folder) -> None:
    """Compares fp32 with Keras; both files must be one piece on XNNPACK."""
    x = random_images(size, size, 4).astype(np.float32)
    prepared = conversion.prepare(model, size, calibration=x)
    expected = model.predict(x, verbose=0)
    limits = {"fp32": 1e-4, "int8-mixed": 0.1}  # of random weights
    for file_format, limit in limits.items():
        path = folder / f"{file_format}.tflite"
        path.write_bytes(FORMATS[file_format].build(prepared))
        litert = LiteRTModel(path)
        (found,) = litert.predict(x).values()
        assert relative_difference(found, expected) < limit
        assert op_stats.max_rank(path) <= 4
        assert op_stats.custom_ops(op_stats.count_ops(path)) == []
        assert litert.ops_outside_xnnpack() == {}
        assert litert.xnnpack_partitions() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_models_are_converted(name: str, tmp_path):
    check_conversion(SMALL_MODELS[name](), SMALL_SIZE, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_converted(name: str, tmp_path):
    keras.utils.set_random_seed(0)
    model = trained(BASELINES[name]())
    assert model.count_params() == PARAMETERS[name]
    assert model.output_shape == (None, 1000)
    check_conversion(model, SIZE, tmp_path)
    graph = deployment_graph(read_model(model, SIZE, SIZE))
    assert "batch_norm" not in {node.op for node in graph.nodes.values()}


def test_the_suite_says_what_keras_counts():
    """MobileNetV3's paper has 5.4 million; PiT's 4.9, timm's and ours are 4.85."""
    for entry in PAPER.entries:
        if entry.model in BASELINES:
            assert entry.millions == pytest.approx(
                PARAMETERS[entry.model] / 1e6, abs=0.06
            )


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_the_rewrites_keep_the_outputs(name: str):
    """In float64; the graph as it is read differs from Keras by rounding only."""
    model = SMALL_MODELS[name]()
    x = random_images(SMALL_SIZE, SMALL_SIZE, 2)
    graph = read_model(model, SMALL_SIZE, SMALL_SIZE)
    expected = run_graph(graph, x)
    np.testing.assert_allclose(run_graph(deployment_graph(graph), x), expected, 1e-9)
    keras_outputs = model.predict(x.astype(np.float32), verbose=0)
    assert relative_difference(keras_outputs, expected) < 1e-5


def left(model: keras.Model) -> set[str]:
    graph = deployment_graph(read_model(model, SMALL_SIZE, SMALL_SIZE))
    return {node.op for node in graph.nodes.values()}


def test_what_is_left():
    """PiT's stages are read without a norm where they are pooled."""
    deit, pit, mobilenet = (left(build()) for build in SMALL_MODELS.values())
    assert "rms_norm" in deit and not {"layer_norm", "rescale"} & deit
    assert "layer_norm" in pit and not {"rms_norm", "rescale"} & pit
    assert not {"batch_norm", "layer_norm"} & mobilenet


# The vision transformers, against what others compute.


def test_a_transformer_layer_is_that_of_keras():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5, 12))
    model = randomized(keras.Model(tokens, _transformer_layer(tokens, 3, "own")))
    x = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)

    def weights_of(name):
        return model.get_layer(f"own_{name}").get_weights()

    attention = layers.MultiHeadAttention(3, 4)
    attention.build((2, 5, 12), (2, 5, 12))
    projections = []
    for part in ("query", "key", "value"):
        kernel, bias = weights_of(part)
        projections += [kernel.reshape(12, 3, 4), bias.reshape(3, 4)]
    kernel, bias = weights_of("attention_output")
    attention.set_weights([*projections, kernel.reshape(3, 4, 12), bias])

    y = model.get_layer("own_attention_norm")(x)
    attended = x + attention(y, y).numpy()
    y = model.get_layer("own_mlp_norm")(attended).numpy()
    kernel, bias = weights_of("mlp_expand")
    y = keras.activations.gelu(y @ kernel + bias, approximate=False).numpy()
    kernel, bias = weights_of("mlp_project")
    np.testing.assert_allclose(model(x), attended + y @ kernel + bias, atol=1e-5)


@pytest.mark.parametrize("has_class_position", [False, True])
def test_the_class_token_comes_first_and_tokens_get_positions(has_class_position):
    layer = TokenEmbedding(has_class_position)
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    y = layer(x).numpy()
    token, positions = (variable.numpy() for variable in layer.weights)
    first = token + positions[:1] if has_class_position else token
    np.testing.assert_allclose(y[:, :1], np.broadcast_to(first, (2, 1, 4)), atol=1e-6)
    np.testing.assert_allclose(y[:, 1:], x + positions[-5:], atol=1e-6)
    assert layer.compute_output_shape(x.shape) == y.shape


def test_pooling_halves_the_map_and_projects_the_class_token():
    tokens = keras.Input((1 + 9, 2))
    model = randomized(keras.Model(tokens, _pool(tokens, 3, 4, "pool")))
    x = np.random.default_rng(0).normal(size=(1, 10, 2)).astype(np.float32)
    kernel, bias = model.get_layer("pool_class_token_project").get_weights()
    depthwise, depthwise_bias = model.get_layer("pool_conv").get_weights()
    grid = np.pad(x[0, 1:].reshape(3, 3, 2), ((1, 1), (1, 1), (0, 0)))
    pooled = [
        np.einsum("hwi,hwim->im", grid[i : i + 3, j : j + 3], depthwise).ravel()
        for i in (0, 2)
        for j in (0, 2)
    ]
    expected = [x[0, 0] @ kernel + bias, *(np.array(pooled) + depthwise_bias)]
    np.testing.assert_allclose(model(x)[0], expected, atol=1e-5)


def test_images_are_normalized_as_imagenet():
    model = small_vit("deit")
    layer = model.get_layer("normalize")
    mean = np.array([123.675, 116.28, 103.53])  # what the recipes of DeiT and PiT take
    std = np.array([58.395, 57.12, 57.375])
    x = np.stack([mean, mean + std])[None, None].astype(np.float32)
    np.testing.assert_allclose(layer(x)[0, 0], [[0] * 3, [1] * 3], atol=1e-5)


def test_a_saved_vision_transformer_is_loaded(tmp_path):
    model = small_vit("pit")
    model.save(tmp_path / "pit.keras")
    loaded = models.load_model(str(tmp_path / "pit.keras"))
    x = random_images(SMALL_SIZE, SMALL_SIZE).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))


# What is read, and what is refused.


def model_of(build, shape=(4, 4, 6)) -> keras.Model:
    inputs = keras.Input(shape)
    return randomized(keras.Model(inputs, build(inputs)))


def check_reading(model: keras.Model, size: int = 4) -> set[str]:
    """Compares a model's graph, as it is and rewritten, with Keras."""
    graph = read_model(model, size, size)
    rewritten = deployment_graph(graph)
    x = np.random.default_rng(0).normal(0, 3, (2, *model.input_shape[1:]))
    expected = model(x.astype(np.float32))
    for form in (graph, rewritten):
        np.testing.assert_allclose(run_graph(form, x), expected, atol=1e-4)
    return {node.op for node in rewritten.nodes.values()}


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_every_activation_is_that_of_keras(function: str):
    check_reading(model_of(layers.Activation(function)))


@pytest.mark.parametrize(
    "build",
    [lambda x: x + 0.5, lambda x: 3 * x, lambda x: x + x, lambda x: x * x],
    ids=["x + number", "number * x", "x + x", "x * x"],
)
def test_operators_are_read(build):
    check_reading(model_of(build))


@pytest.mark.parametrize(
    "build",
    [
        lambda x: x + np.ones(6, np.float32),
        lambda x: x - 1.0,
        lambda x: 1.0 - x,
        lambda x: x / 2.0,
        lambda x: x / np.arange(1, 7, dtype="float32"),
        lambda x: layers.Normalization(mean=1, variance=4, invert=True)(x),
        lambda x: layers.Normalization(mean=1, variance=4, axis=None)(x),
    ],
)
def test_arithmetic_with_numbers_is_a_rescaling(build):
    assert check_reading(model_of(build)) == {"rescale"}


@pytest.mark.parametrize(
    "build",
    [
        lambda x: 1.0 / (x + 10.0),
        lambda x: x + np.ones((4, 4, 1), np.float32),
        lambda x: layers.Normalization(axis=1, mean=1, variance=1)(x),
        lambda x: layers.Concatenate(axis=1)([x, x]),
    ],
)
def test_other_arithmetic_stays_as_keras_computes_it(build):
    assert "keras" in check_reading(model_of(build))


def test_rescalings_go_into_an_unpadded_convolution_with_their_offsets():
    def build(x):
        x = layers.Rescaling(0.5, 2.0)(layers.Rescaling([1.0, 2.0, 3.0], -1.0)(x))
        return layers.Conv2D(4, 2, use_bias=False)(x)

    assert check_reading(model_of(build, (4, 4, 3))) == {"conv"}


def test_rescalings_with_offsets_stay_before_padding():
    def build(x):
        x = layers.Rescaling(0.5, 2.0)(layers.Rescaling(2.0)(x))
        return layers.Conv2D(4, 3, padding="same")(x)

    assert check_reading(model_of(build)) == {"conv", "rescale"}


def test_a_stream_through_a_reshape_of_channels_is_not_centered():
    """The channels of the tokens are not those that the convolution wrote."""

    def build(x):
        x = layers.Reshape((32, 3))(layers.Conv2D(6, 1)(x))
        return layers.LayerNormalization()(x)

    assert "layer_norm" in check_reading(model_of(build))


def test_a_stream_of_joined_and_cropped_tokens_is_centered():
    def build(x):
        x = layers.Reshape((16, 6))(layers.Conv2D(6, 1)(x))
        x = TokenEmbedding()(x)
        x = layers.Concatenate(axis=1)([layers.Dense(6)(x), layers.Dense(6)(x)])
        x = layers.Cropping1D((1, 3))(x)
        return layers.Dense(2)(layers.LayerNormalization()(x))

    ops = check_reading(model_of(build))
    assert "rms_norm" in ops and "layer_norm" not in ops


def test_a_cropped_stream_that_is_read_without_a_norm_is_not_centered():
    def build(x):
        x = layers.Reshape((16, 6))(layers.Conv2D(6, 1)(x))
        y = layers.Dense(6)(layers.Cropping1D((0, 15))(x))
        return layers.Concatenate(axis=1)([y, layers.LayerNormalization()(x)])

    assert "layer_norm" in check_reading(model_of(build))


# Names and sizes.


def test_a_free_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="must be fixed"):
        TokenEmbedding()(keras.Input((None, 4)))


def test_the_converter_takes_a_baseline_by_its_name():
    model = models.load_model("pit_tiny")
    assert model.count_params() == PARAMETERS["pit_tiny"]
    assert model.input_shape == (None, SIZE, SIZE, 3)


def test_a_baseline_has_random_weights_only():
    with pytest.raises(ValueError, match="random weights only.*--weights=imagenet"):
        models.load_model("deit_tiny", "imagenet")


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        (
            "positions",
            {},
            "'m' is the operation 'positions', .* not supported for Core ML",
        ),
        ("activation", {"function": "gelu"}, "'m' has the activation 'gelu'"),
    ],
)
def test_what_core_ml_has_no_form_of_is_named(op: str, options: dict, message: str):
    pytest.importorskip("coremltools", reason="pip install '.[coreml]'")
    from tflite.formats.coreml.mil_ops import run_node
    from tflite.graph.graph import Node

    node = Node("m", op, ("x",), options=options)
    with pytest.raises(ValueError, match=message):
        run_node("tokens", node, [np.zeros((1, 1, 2, 2), np.float32)])
