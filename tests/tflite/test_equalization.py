"""Equalization keeps the outputs, and 8-bit files keep their accuracy."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import layers

from keras_mobilevit import VARIANTS
from keras_mobilevit.classifier import build_classifier
from keras_mobilevit.deeplab import DeepLabV3
from keras_mobilevit.litert import LiteRTModel
from keras_mobilevit.ssdlite import SSDLite
from tests.helpers.networks import photos
from tflite.formats import bias_correction, calibration, conversion, equalization
from tflite.formats.quantize import integer_recipe, mixed_recipe, quantize
from tflite.formats.table import FORMATS
from tflite.formats.to_tflite import tflite_content, trace_graph
from tflite.graph import tf_ops
from tflite.graph.graph import Graph, Node
from tflite.graph.reader import read_model
from tflite.graph.rewrites import deployment_graph
from tflite.suites.conversion import settle_batch_norms
from tflite.validation.parity import compare

SIZE = 64
EXACT = 1e-6  # relative to the largest output; maps are resized in float32


def with_outliers(model: keras.Model, every: int = 7, factor: float = 30.0):
    """Widens the ranges of a few channels, as in pretrained networks.

    Every seventh channel of what is normalized before a swish, and of each kernel after
    it less, so that the network still depends on all channels.
    """
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and "expand" in layer.name:
            gamma = layer.gamma.numpy()
            gamma[::every] *= factor
            layer.gamma.assign(gamma)
        if isinstance(layer, layers.DepthwiseConv2D):
            kernel = layer.kernel.numpy()
            kernel[:, :, ::every] /= factor
            layer.kernel.assign(kernel)
    return model


def equalized(graph: Graph, images) -> Graph:
    stats = calibration.measure_channels(graph, images)
    return equalization.equalize(graph, stats)


def num_scaled(graph: Graph) -> int:
    nodes = graph.nodes.values()
    return sum(n.op == "activation" and "scale" in n.weights for n in nodes)


def assert_same_outputs(before: Graph, after: Graph, images) -> None:
    images = np.asarray(images, np.float64)  # rounding would be larger in wide networks
    for expected, found in zip(tf_ops.run(before, images), tf_ops.run(after, images)):
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * largest)


def classifier(name: str) -> keras.Model:
    return build_classifier(
        VARIANTS[name],
        input_shape=(SIZE, SIZE, 3),
        classes=10,
        classifier_activation=None,
    )


MODELS = {
    **{name: lambda name=name: classifier(name) for name in VARIANTS},
    "ssdlite": lambda: SSDLite(
        "mobilevit_xxs", classes=3, weights=None, input_shape=(SIZE, SIZE, 3)
    ),
    "deeplabv3": lambda: DeepLabV3(
        "mobilevit_xxs", classes=3, weights=None, input_shape=(SIZE, SIZE, 3)
    ),
}


# The other widths have the same blocks, and deeplabv3 those of mobilevit_xxs and layers
# like them.
QUICK = ("mobilevit_xxs", "mobilevitv2_050", "ssdlite")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in MODELS
    ],
)
def test_outputs_stay_for_every_variant_and_head(name):
    keras.utils.set_random_seed(0)
    graph = deployment_graph(read_model(with_outliers(MODELS[name]()), SIZE, SIZE))
    images = photos(4)
    after = equalized(graph, images)
    assert num_scaled(after) >= 6  # of seven expansions
    assert_same_outputs(graph, after, images)


@pytest.fixture(scope="module")
def settled_model() -> keras.Model:
    """A network with the statistics of its images, like a trained network."""
    keras.utils.set_random_seed(1)
    model = classifier("mobilevit_xxs")
    settle_batch_norms(model, photos(16))
    return model


def test_a_network_without_outliers_stays_as_it_is(settled_model):
    graph = deployment_graph(read_model(settled_model, SIZE, SIZE))
    assert equalized(graph, photos(4)) is graph


@pytest.fixture(scope="module")
def outlier_model(settled_model) -> keras.Model:
    model = keras.models.clone_model(settled_model)
    model.set_weights(settled_model.get_weights())
    return with_outliers(model, factor=60.0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8-mixed", "int8"])
def test_eight_bits_collapse_without_and_hold_with(recipe, outlier_model, tmp_path):
    images = photos(24)
    prepared = conversion.prepare(outlier_model, SIZE, calibration=images)
    expected = outlier_model.predict(images, verbose=0)

    def psnr(of) -> float:
        made = mixed_recipe(of.graph) if recipe == "int8-mixed" else integer_recipe()
        path = tmp_path / "model.tflite"
        path.write_bytes(quantize(of.float32, made, of.ranges))
        return compare(expected, LiteRTModel(path).predict(images)["logits"])["psnr_db"]

    limit = FORMATS[recipe].limits["psnr"]
    assert psnr(prepared) < limit - 5
    assert psnr(prepared.bias_corrected) > limit


# A block with each kind of operation that keeps channels, around two uneven tensors.


def _conv(name: str, source: str, kernel, bias=True) -> Node:
    weights = {"kernel": kernel}
    if bias:
        weights["bias"] = np.linspace(-0.5, 0.5, kernel.shape[-1])
    options = {"strides": (1, 1), "padding": "SAME", "dilations": (1, 1)}
    return Node(name, "conv", (source,), weights, options)


def _depthwise(name: str, source: str, kernel) -> Node:
    options = {"strides": (1, 1), "padding": "SAME", "dilations": (1, 1)}
    return Node(name, "depthwise", (source,), {"kernel": kernel}, options)


def _swish(name: str, source: str, function: str = "silu") -> Node:
    return Node(name, "activation", (source,), options={"function": function})


def _block(random, factor: float, function: str) -> Graph:
    uneven = np.ones(8)
    uneven[:2] = factor
    draw = random.normal
    half_pixel = {"align_corners": False}
    nodes = [
        _conv("a", "images", draw(size=(1, 1, 3, 8)) * uneven),
        _swish("a_act", "a", function),
        _conv("b", "images", draw(size=(3, 3, 3, 8)) * uneven, bias=False),
        Node("added", "add", ("a_act", "b")),
        Node("padded", "pad", ("added",), options={"padding": ((1, 1), (1, 1))}),
        _depthwise("c", "padded", draw(size=(3, 3, 8, 2))),
        _swish("c_act", "c"),
        Node("joined", "concat", ("c_act", "padded")),
        _conv("d", "joined", draw(size=(1, 1, 24, 8)) * uneven),
        Node("pooled", "global_average", ("d",), options={"keepdims": True}),
        _conv("gate_conv", "pooled", draw(size=(1, 1, 8, 8))),
        _swish("gate", "gate_conv", "sigmoid"),
        Node("gated", "multiply", ("d", "gate")),
        Node("resized", "resize_like", ("gated", "images"), {}, half_pixel),
        _conv("e", "resized", draw(size=(1, 1, 8, 4))),
    ]
    return Graph("images", (6, 6, 3), {n.name: n for n in nodes}, ("e",))


@settings(max_examples=20, deadline=None)
@example(171, 27.0, "silu")  # most channels behind the gate are nearly zero
@given(st.integers(0, 999), st.floats(1, 500), st.sampled_from(["silu", "relu"]))
def test_outputs_stay_through_every_operation(seed, factor, function):
    random = np.random.default_rng(seed)
    graph = _block(random, factor, function)
    images = random.uniform(-1, 1, (4, 6, 6, 3))
    after = equalized(graph, images)
    if factor > 100:
        assert after is not graph
    assert_same_outputs(graph, after, images)
    # Once more, on the scaled graph.
    assert_same_outputs(graph, equalized(after, images), images)


def test_scales_are_whole_steps_of_the_largest():
    graph = _block(np.random.default_rng(0), 40.0, "silu")
    images = np.random.default_rng(0).uniform(-1, 1, (4, 6, 6, 3))
    scale = equalized(graph, images).nodes["a_act"].weights["scale"]
    steps = scale / scale.max() * 255
    assert len(set(np.round(steps))) > 2
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)


def test_silent_channels_are_not_widened_without_limit():
    """They may be large on other images."""
    depthwise = np.random.default_rng(0).normal(size=(3, 3, 8, 1))
    nodes = [
        _conv("a", "images", np.ones((1, 1, 3, 8)) * 40.0),
        _swish("a_act", "a", "relu"),
        _depthwise("b", "a_act", depthwise),
    ]
    graph = Graph("images", (6, 6, 3), {n.name: n for n in nodes}, ("b",))
    reach = np.array([50.0, 1, 1, 1, 1, 1, 1, 1e-7])
    stats = {
        name: calibration.ChannelStats(np.zeros(8), reach, reach)
        for name in ("a", "a_act", "b")
    }
    stats["images"] = calibration.ChannelStats(*np.ones((3, 3)))
    scales = equalization.channel_scales(graph, stats)
    expected = [50, 1, 1, 1, 1, 1, 1, equalization.LEAST_SCALE]
    np.testing.assert_allclose(scales["a"], expected)


def test_biases_make_up_for_rounded_kernels():
    random = np.random.default_rng(0)
    graph = _block(random, 1.0, "silu")
    images = random.uniform(0, 1, (16, 6, 6, 3))
    stats = calibration.measure_channels(graph, images)
    node = graph.nodes["d"]
    after = bias_correction.correct_biases(graph, stats).nodes["d"]
    rounded = dataclasses.replace(
        node,
        weights={
            "kernel": node.weights["kernel"] + bias_correction.rounding_error(node),
            "bias": after.weights["bias"],
        },
    )
    given = tf_ops.run_all(graph, images)["joined"]
    run = tf_ops.OPERATIONS["conv"]
    means = [np.mean(run(n, given), axis=(0, 1, 2)) for n in (node, rounded)]
    np.testing.assert_allclose(*means, atol=1e-12)
    assert not np.allclose(node.weights["bias"], after.weights["bias"], atol=1e-6)


def test_what_swish_cannot_tell_apart_takes_no_range():
    kernel = np.full((1, 1, 3, 2), 1.0)
    nodes = [_conv("a", "images", kernel, bias=False), _swish("a_act", "a")]
    graph = Graph("images", (4, 4, 3), {n.name: n for n in nodes}, ("a_act",))
    images = np.random.default_rng(0).uniform(-100, 10, (8, 4, 4, 3))
    stats = calibration.measure_channels(graph, images)["a"]
    assert stats.low.tolist() == [-6.0, -6.0]
    assert stats.high.max() > 0
    scaled = dataclasses.replace(nodes[1], weights={"scale": np.array([2.0, 0.5])})
    floors = calibration.swish_floors(graph.replace(scaled))
    assert floors["a"].tolist() == [-3.0, -12.0]


def test_numbers_that_are_not_finite_are_refused():
    graph = _block(np.random.default_rng(0), 1.0, "silu")
    bad = dataclasses.replace(
        graph.nodes["e"],
        weights={"kernel": np.full((1, 1, 8, 4), np.nan), "bias": np.zeros(4)},
    )
    images = np.zeros((2, 6, 6, 3))
    with pytest.raises(ValueError, match="not finite for calibration image 1 of 2"):
        calibration.measure_channels(graph.replace(bad), images)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [256.0, 1e9])
def test_concatenations_stay_within_what_xnnpack_takes(limit, tmp_path, monkeypatch):
    """XNNPACK does not run a change of scale by 2,000; its limit is 256."""
    monkeypatch.setattr(calibration, "LARGEST_RATIO", limit)
    random = np.random.default_rng(0)
    kernels = random.normal(size=(3, 1, 1, 3, 4))
    nodes = [
        _conv("narrow", "images", kernels[0] / 2000, bias=False),
        _conv("wide", "images", kernels[1], bias=False),
        Node("joined", "concat", ("narrow", "wide")),
        _conv("end", "joined", random.normal(size=(1, 1, 8, 2)), bias=False),
        _conv("other", "narrow", random.normal(size=(1, 1, 4, 2)), bias=False),
    ]
    outputs = ("end", "other")
    graph = Graph("images", (8, 8, 3), {n.name: n for n in nodes}, outputs)
    content = tflite_content(trace_graph(graph, lambda x: dict(zip(outputs, x))))
    images = random.uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
    ranges = calibration.measure_ranges(content, images, 255.0)
    path = tmp_path / "model.tflite"
    path.write_bytes(quantize(content, integer_recipe(), ranges))
    model = LiteRTModel(path)
    assert model.ops_outside_xnnpack() == ({} if limit == 256 else {"QUANTIZE": 1})
