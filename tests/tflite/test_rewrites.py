"""Every rewrite keeps the outputs, in float64."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import layers

from keras_mobilevit import VARIANTS
from keras_mobilevit.calls import list_calls
from keras_mobilevit.classifier import build_classifier, output_activation
from keras_mobilevit.layers import Fold, Unfold
from keras_mobilevit.value_range import input_max
from tests.helpers.graphs import random_images, randomized, run_graph
from tflite.graph import rewrites, tf_ops
from tflite.graph.graph import Graph, Node
from tflite.graph.reader import UnknownLayer, read_model

SMALL = 1e-9  # rounding of float64 after about 200 layers; the logits are around 1


def classifier(name: str = "mobilevit_xxs", **options) -> keras.Model:
    options = {"classifier_activation": None, "classes": 10} | options
    return randomized(
        build_classifier(VARIANTS[name], input_shape=(None, None, 3), **options)
    )


# The algebra, on small random layers.


@pytest.fixture
def linear():
    random = np.random.default_rng(0)
    x, kernel, bias = (random.normal(size=s) for s in ((7, 5), (5, 4), 4))
    return random, x, kernel, bias


def test_scale_outputs(linear):
    random, x, kernel, bias = linear
    scale, offset = random.normal(size=4), random.normal(size=4)
    after = rewrites.scale_outputs(kernel, bias, scale, offset)
    expected = scale * (x @ kernel + bias) + offset
    np.testing.assert_allclose(x @ after[0] + after[1], expected, atol=1e-14)


def test_batch_norm_scale(linear):
    random, x, *_ = linear
    gamma, beta, mean = (random.normal(size=5) for _ in range(3))
    variance = random.uniform(0.1, 2, size=5)
    scale, offset = rewrites.batch_norm_scale(gamma, beta, mean, variance, 1e-3)
    expected = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(x * scale + offset, expected, atol=1e-13)


def test_scale_inputs(linear):
    random, x, kernel, bias = linear
    scale, offset = random.normal(size=5), random.normal(size=5)
    after = rewrites.scale_inputs(kernel, bias, scale, offset)
    expected = (scale * x + offset) @ kernel + bias
    np.testing.assert_allclose(x @ after[0] + after[1], expected, atol=1e-14)


def test_center_outputs(linear):
    _, x, kernel, bias = linear
    after = rewrites.center_outputs(kernel, bias)
    y = x @ kernel + bias
    expected = y - y.mean(-1, keepdims=True)
    np.testing.assert_allclose(x @ after[0] + after[1], expected, atol=1e-14)


# The rewrites, one after the other, on the whole network.


@pytest.mark.parametrize("size", [(64, 64), (72, 100)], ids=str)
def test_every_rewrite_keeps_the_outputs(size):
    """72 and 100 give odd maps, whose resizing TensorFlow computes in float32."""
    graph = read_model(classifier(), *size)
    x = random_images(*size)
    expected = run_graph(graph, x)
    tolerance = SMALL if size == (64, 64) else 1e-6
    for rewrite in rewrites.REWRITES:
        before, graph = graph, rewrite(graph)
        assert graph is not before, f"{rewrite.__name__} changed nothing"
        np.testing.assert_allclose(
            run_graph(graph, x), expected, atol=tolerance, err_msg=rewrite.__name__
        )


# Its attention has no factor to fold, its norms average over all pixels, and the layer
# beside a fold or unfold is already on the side with fewer channels.
NOT_IN_V2 = {
    rewrites.scale_queries,
    rewrites.project_tokens,
    rewrites.layer_norms_to_rms_norms,
}


@pytest.mark.parametrize("size", [(64, 64), (72, 100)], ids=str)
def test_every_rewrite_keeps_the_outputs_of_v2(size):
    graph = read_model(classifier("mobilevitv2_050"), *size)
    x = random_images(*size)
    expected = run_graph(graph, x)
    tolerance = SMALL if size == (64, 64) else 1e-6
    for rewrite in rewrites.REWRITES:
        before, graph = graph, rewrite(graph)
        assert (graph is before) == (rewrite in NOT_IN_V2), rewrite.__name__
        np.testing.assert_allclose(
            run_graph(graph, x), expected, atol=tolerance, err_msg=rewrite.__name__
        )
    assert {node.op for node in graph.nodes.values()} == {
        *("activation", "add", "context", "conv", "dense", "depthwise", "fold"),
        *("global_average", "image_norm", "multiply", "resize_to_multiple", "unfold"),
    }  # neither batch_norm nor pad or rescale
    norms = graph.of_kind("image_norm")
    assert (
        len(norms) == 21
    )  # two in each of nine transformers, and one after each depth
    assert not any(norm.weights for norm in norms)


def test_what_is_left():
    ops = {
        n.op
        for n in rewrites.deployment_graph(
            read_model(classifier(), 64, 64)
        ).nodes.values()
    }
    assert ops == {
        *("activation", "add", "attention", "concat", "conv", "dense", "depthwise"),
        *("fold", "global_average", "rms_norm", "unfold"),
    }  # neither batch_norm nor layer_norm, pad or rescale


SIZES = [(256, 256), (224, 224), (192, 288)]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("mobilevit_xxs", size) for size in SIZES),
        pytest.param("mobilevit_xs", (192, 288), marks=pytest.mark.slow),
        pytest.param("mobilevit_s", (192, 288), marks=pytest.mark.slow),
        ("mobilevitv2_050", (128, 128)),
        ("mobilevitv2_050", (112, 240)),  # 7 and 15 become 8 and 16
        pytest.param("mobilevitv2_100", (224, 224), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_logits_are_keras_own(name: str, size):
    model = classifier(name, classes=1000)
    x = random_images(*size).astype(np.float32)
    graph = rewrites.deployment_graph(read_model(model, *size))
    expected = model(x, training=False)
    np.testing.assert_allclose(run_graph(graph, x), expected, atol=1e-4)


def test_a_backbone_has_all_its_maps():
    """Detection and segmentation start from these maps."""
    from keras_mobilevit.backbone import feature_maps

    inputs = keras.Input((None, None, 3))
    maps = feature_maps(inputs, VARIANTS["mobilevit_xxs"])
    model = randomized(keras.Model(inputs, [maps["P3"], maps["P4"], maps["P5"]]))
    x = random_images(96, 80).astype(np.float32) / 255
    graph = rewrites.deployment_graph(read_model(model, 96, 80))
    for y, expected in zip(tf_ops.run(graph, x), model(x, training=False)):
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, atol=1e-4)


# Where a rewrite must not apply.


def small_model(build) -> keras.Model:
    keras.utils.set_random_seed(0)  # the kernels too are the same in each run
    inputs = keras.Input((16, 16, 3))
    return randomized(keras.Model(inputs, build(inputs)))


def unchanged_outputs(model: keras.Model) -> set[str]:
    """Compares the outputs before and after rewriting; returns the remaining ops."""
    graph = read_model(model, 16, 16)
    rewritten = rewrites.deployment_graph(graph)
    x = random_images(16, 16)
    for before, after in zip(tf_ops.run(graph, x), tf_ops.run(rewritten, x)):
        np.testing.assert_allclose(after, before, atol=1e-9)
    return {node.op for node in rewritten.nodes.values()}


def test_a_batch_norm_of_an_output_that_others_read_stays():
    def build(x):
        x = layers.Conv2D(4, 1)(x)
        return layers.Add()([x, layers.BatchNormalization()(x)])

    assert "batch_norm" in unchanged_outputs(small_model(build))


def test_a_batch_norm_without_gamma_or_beta():
    def build(x):
        x = layers.BatchNormalization(scale=False)(layers.Conv2D(4, 3)(x))
        return layers.BatchNormalization(center=False)(layers.Activation("relu")(x))

    unchanged_outputs(small_model(build))


def test_an_unfold_that_is_an_output_stays_before_its_projection():
    unchanged_outputs(small_model(lambda x: Unfold(2)(layers.Conv2D(6, 1)(x))))


def test_two_projections_between_a_fold_and_an_unfold():
    def build(x):
        tokens = layers.Dense(8)(Unfold(2)(x))
        x = layers.Conv2D(3, 1)(Fold(2)(tokens, x))
        return layers.Dense(2)(Unfold(2)(layers.Conv2D(8, 1)(x)))

    unchanged_outputs(small_model(build))


def test_an_offset_before_padding_stays():
    def build(x):
        x = layers.Rescaling(1 / 127.5, offset=-1)(x)
        return layers.Conv2D(4, 3, strides=2)(layers.ZeroPadding2D(1)(x))

    assert "rescale" in unchanged_outputs(small_model(build))


def test_a_stream_that_is_read_without_a_norm_is_not_centered():
    def build(x):
        x = layers.Dense(6)(x)
        y = layers.LayerNormalization()(x)
        return layers.Activation("silu")(layers.Add()([x, layers.Dense(6)(y)]))

    assert "layer_norm" in unchanged_outputs(small_model(build))


def test_a_stream_that_is_an_output_is_not_centered():
    def build(x):
        x = layers.Dense(6)(x)
        return [x, layers.Dense(2)(layers.LayerNormalization()(x))]

    assert "layer_norm" in unchanged_outputs(small_model(build))


def test_a_norm_before_something_else_keeps_its_gamma():
    def build(x):
        x = layers.LayerNormalization()(layers.Dense(6)(x))
        return layers.Activation("relu")(x)

    assert "rms_norm" in unchanged_outputs(small_model(build))


# What reads a norm of tokens [1, 4, 4, 6]. From the norm's name to nodes; the last of
# them is an output of the graph.


def _project(name: str, source: str, kernel_size: int = 1) -> Node:
    kernel = np.random.default_rng(len(name)).normal(size=(*[kernel_size] * 2, 6, 2))
    options = {"strides": (1, 1), "padding": "SAME", "dilations": (1, 1)}
    return Node(name, "conv", (source,), {"kernel": kernel}, options)


def _dense(norm: str) -> list[Node]:
    kernel = np.random.default_rng(0).normal(size=(6, 3))
    return [Node("dense", "dense", (norm,), {"kernel": kernel, "bias": np.ones(3)})]


def _context(norm: str) -> Node:
    return Node("averaged", "context", ("scores", norm))


def _fold(norm: str) -> Node:
    return Node("folded", "fold", (norm, "images"), options={"patch_size": 2})


LINEAR_READERS = {
    "convolution": lambda norm: [_project("conv", norm)],
    "dense layer": _dense,
    "average": lambda norm: [_context(norm), _project("key", "averaged")],
    "map": lambda norm: [_fold(norm), _project("global", "folded")],
}
OTHER_READERS = {
    "wide convolution": lambda norm: [_project("wide", norm, 3)],
    "swish": lambda norm: [
        Node("swish", "activation", (norm,), options={"function": "silu"})
    ],
    "product": lambda norm: [Node("product", "multiply", (norm, norm))],
    "returned average": lambda norm: [_context(norm)],
    "returned map": lambda norm: [_fold(norm)],
    "wide convolution of the map": lambda norm: [
        _fold(norm),
        _project("wide_map", "folded", 3),
    ],
    "size of a map": lambda norm: [
        Node("sized", "fold", ("tokens", norm), options={"patch_size": 2})
    ],
}


@settings(deadline=None)
@example("image_norm", {"convolution", "returned average"}, None, False)
@example("image_norm", {"convolution", "returned map"}, None, False)
@given(
    op=st.sampled_from(["image_norm", "layer_norm", "rms_norm"]),
    names=st.sets(
        st.sampled_from([*LINEAR_READERS, *OTHER_READERS]), min_size=1, max_size=3
    ),
    missing=st.sampled_from([None, "gamma", "beta"]),
    is_output=st.booleans(),
)
def test_norms_fold_into_linear_readers_only(op, names, missing, is_output):
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=6) for name in ("gamma", "beta")}
    weights.pop(missing, None)
    kernel = random.normal(size=(1, 1, 6, 1))
    unfold = {"patch_size": 2, "per_image": True}
    nodes = [
        Node("tokens", "unfold", ("images",), options=unfold),
        dataclasses.replace(_project("scores", "tokens"), weights={"kernel": kernel}),
        Node("norm", op, ("tokens",), weights, {"epsilon": 1e-5}),
    ]
    outputs = ("norm",) if is_output else ()
    for name in sorted(names):
        readers = (LINEAR_READERS | OTHER_READERS)[name]("norm")
        nodes += readers
        outputs += (readers[-1].name,)
    graph = Graph("images", (4, 4, 6), {node.name: node for node in nodes}, outputs)
    after = rewrites.fold_norm_scales(graph)
    is_folded = not is_output and names <= set(LINEAR_READERS)
    assert (not after.nodes["norm"].weights) == is_folded
    x = random.normal(size=(2, 4, 4, 6))
    for expected, found in zip(tf_ops.run(graph, x), tf_ops.run(after, x)):
        np.testing.assert_allclose(found, expected, atol=SMALL)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    depthwise=st.booleans(),
)
def test_padding_of_any_size(size, kernel, stride, depthwise):
    inputs = keras.Input((*size, 2))
    x = layers.ZeroPadding2D(kernel // 2)(inputs)
    layer = (
        layers.DepthwiseConv2D
        if depthwise
        else lambda *a, **k: layers.Conv2D(3, *a, **k)
    )
    model = keras.Model(inputs, layer(kernel, strides=stride)(x))
    x = np.random.default_rng(0).normal(size=(1, *size, 2)).astype(np.float32)
    graph = rewrites.merge_padding(read_model(model, *size))
    assert len(graph.nodes) == 1
    np.testing.assert_allclose(run_graph(graph, x), model(x), atol=1e-5)


# Reading a model.


def test_the_model_stays_as_it_is():
    model = classifier()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    read_model(model, 64, 64)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes


def test_models_in_models_are_read():
    backbone = classifier(include_top=False, pooling="avg")
    model = keras.Sequential([keras.Input((64, 64, 3)), backbone, layers.Dense(3)])
    x = random_images(64, 64).astype(np.float32)
    graph = rewrites.deployment_graph(read_model(model, 64, 64))
    np.testing.assert_allclose(run_graph(graph, x), model(x), atol=1e-4)


@pytest.mark.filterwarnings("ignore:You passed .rms_scaling")  # deprecated by Keras
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Dense(2, activation="mish"),
        lambda: layers.Activation("softplus"),
        lambda: layers.BatchNormalization(axis=1),
        lambda: layers.LayerNormalization(axis=(1, 2)),
        lambda: layers.LayerNormalization(rms_scaling=True),
        lambda: layers.Softmax(axis=1),
        lambda: layers.ReLU(max_value=3),
        lambda: layers.Conv2D(6, 1, groups=3),
        lambda: layers.MaxPooling2D(3, padding="same"),
        lambda: layers.MultiHeadAttention(2, 4),
    ],
)
def test_what_no_rewrite_knows_is_computed_as_keras_does(layer):
    made = layer()

    def build(x):
        x = layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same")(x))
        is_attention = isinstance(made, layers.MultiHeadAttention)
        return layers.Dense(2)(made(x, x) if is_attention else made(x))

    model = small_model(build)
    graph = rewrites.deployment_graph(read_model(model, 16, 16))
    assert [node.op for node in graph.nodes.values()].count("keras") == 1
    assert "batch_norm" not in {node.op for node in graph.nodes.values()}
    x = random_images(16, 16).astype(np.float32) / 255
    np.testing.assert_allclose(run_graph(graph, x), model(x), atol=1e-5)
    np.testing.assert_allclose(run_graph(graph, x.astype(float)), model(x), atol=1e-5)


def test_a_layer_of_several_outputs_is_computed_as_keras_does():
    model = small_model(lambda x: keras.ops.split(layers.Dense(4)(x), 2, axis=-1))
    graph = read_model(model, 16, 16)
    x = random_images(16, 16).astype(np.float32) / 255
    for y, expected in zip(tf_ops.run(graph, x), model(x)):
        np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_layer_that_is_used_twice_is_computed_twice(activation):
    shared = layers.Dense(3, activation=activation)
    model = small_model(lambda x: shared(shared(x)))
    x = random_images(16, 16).astype(np.float32) / 255
    np.testing.assert_allclose(
        run_graph(read_model(model, 16, 16), x), model(x), atol=1e-5
    )


def training_dropout(x):
    return layers.Dropout(0.5, name="drawn")(x, training=True)


def training_model(x):
    inner = keras.Sequential([layers.BatchNormalization()], name="inner")
    return inner(x, training=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (training_dropout, "'drawn' is called with training=True"),
        (training_model, "'inner' is called with training=True"),
        (lambda x: layers.Masking(name="hidden")(x), "'hidden' is a Masking"),
    ],
)
def test_what_a_file_cannot_do_as_keras_does_is_told(build, message: str):
    with pytest.raises(UnknownLayer, match=message):
        read_model(small_model(build), 16, 16)


def test_a_model_with_a_call_of_its_own_is_told():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="class Own, whose call.. is code"):
        list_calls(Own())


def test_names_that_meet_are_told_apart():
    def build(x):
        x = layers.Dense(4, activation="relu", name="a")(x)
        return layers.Dense(2, name="a_activation")(x)

    unchanged_outputs(small_model(build))


def test_a_nested_model_tells_its_range_and_its_softmax():
    backbone = classifier(include_top=False, pooling="avg")
    head = keras.Sequential(
        [keras.Input((320,)), layers.Dense(3, activation="softmax")]
    )
    model = keras.Sequential([keras.Input((64, 64, 3)), backbone, head])
    assert input_max(model) == 255
    assert output_activation(model) == "softmax"
