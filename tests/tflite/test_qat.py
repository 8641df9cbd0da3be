"""Quantization-aware training: the QAT model is the graph, and learns."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_mobilevit import VARIANTS
from keras_mobilevit.backbone import feature_maps
from keras_mobilevit.classifier import build_classifier
from tflite.formats import calibration, equalization, qat
from tflite.graph import tf_ops
from tflite.graph.graph import Graph
from tflite.graph.reader import read_model
from tflite.graph.rewrites import deployment_graph
from tflite.images import load_images
from tflite.tasks.classification.task import SINGLE_LABEL
from train.config import make_config
from train.data.registry import load_source
from train.data.source import evenly_spaced

SIZE = 32


def whole_graph() -> Graph:
    keras.utils.set_random_seed(0)
    model = build_classifier(
        VARIANTS["mobilevit_xxs"],
        input_shape=(SIZE, SIZE, 3),
        classes=10,
        classifier_activation=None,
    )
    return deployment_graph(read_model(model, SIZE, SIZE))


@pytest.fixture(scope="module")
def graph() -> Graph:
    """A classifier on the first three stages, which have every kind of layer.

    The QAT model of the whole network takes half a minute.
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = feature_maps(x, VARIANTS["mobilevit_xxs"])["P3"]
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    made = deployment_graph(read_model(model, SIZE, SIZE))
    kinds = [{node.op for node in x.nodes.values()} for x in (made, whole_graph())]
    assert kinds[0] == kinds[1]
    return made


@pytest.fixture(scope="module")
def images():
    found = load_images(SINGLE_LABEL, "digits", "validation", 32, SIZE, 1.0)
    return found.images.astype(np.float32)


@pytest.fixture(scope="module")
def qat_model(graph, images):
    return qat.build_qat_model(graph, images)


def test_rounding_changes_little(graph, qat_model, images):
    """tensorflow-model-optimization's own ranges, 6 for all, would not."""
    (expected,) = tf_ops.run(graph, images)
    error = np.sqrt(np.mean((qat_model(images, training=True) - expected) ** 2))
    assert 0 < error < 0.2 * np.std(expected)


def test_every_kernel_comes_back(graph, qat_model):
    weights = qat._weights_of(qat_model)
    again = qat._with_weights(graph, weights)
    images = np.random.default_rng(0).uniform(0, 255, (1, SIZE, SIZE, 3))
    (expected,), (outputs,) = (tf_ops.run(g, images) for g in (graph, again))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_kernels_and_activations_are_rounded(graph, qat_model):
    names = {w.name for w in qat_model.weights}
    kernels = [n.name for n in graph.nodes.values() if "kernel" in n.weights]
    assert len(kernels) == 33
    for name in kernels:
        attribute = "depthwise_kernel" if "depthwise" in name else "kernel"
        assert f"quant_{name}/{attribute}_max:0" in names
        # What leaves the network is not rounded.
        is_output = name in graph.outputs
        assert (f"quant_{name}/output_max:0" in names) == (not is_output)
    assert "quant_stem_act/output_max:0" in names


def test_depthwise_kernels_have_a_range_for_each_channel(graph, qat_model):
    """As the file has, which equalization relies on."""
    name = "stage1_mv0_depthwise_conv"
    (largest,) = [
        w for w in qat_model.weights if w.name == f"quant_{name}/depthwise_kernel_max:0"
    ]
    assert largest.shape == (32,)
    kernel = graph.nodes[name].weights["kernel"]  # [3, 3, 32, 1]
    qat_model(np.zeros((1, SIZE, SIZE, 3), np.float32), training=True)
    expected = np.abs(kernel).max(axis=(0, 1, 3))
    np.testing.assert_allclose(largest.numpy(), expected, rtol=1e-5)


@pytest.mark.slow
def test_a_scaled_swish_is_in_the_qat_model(graph, images):
    """What equalization makes: a constant for each channel before the sigmoid."""
    stats = calibration.measure_channels(graph, images[:4])
    uneven = stats["stage1_mv0_expand_conv"].high
    uneven[0] *= 100
    after = equalization.equalize(graph, stats)
    assert "scale" in after.nodes["stage1_mv0_expand_act"].weights
    qat.build_qat_model(after, images)  # which compares both before it rounds


@pytest.mark.slow
def test_mobilevitv2_is_trained_too(images):
    """With its norms of a whole image and its contexts."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = feature_maps(x, VARIANTS["mobilevitv2_050"])["P3"]
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    graph = deployment_graph(read_model(model, SIZE, SIZE))
    qat_model = qat.build_qat_model(graph, images)  # which compares both first
    (expected,) = tf_ops.run(graph, images)
    error = np.sqrt(np.mean((qat_model(images, training=True) - expected) ** 2))
    assert 0 < error < 0.2 * np.std(expected)
    again = qat._with_weights(graph, qat._weights_of(qat_model))
    np.testing.assert_allclose(tf_ops.run(again, images)[0], expected, atol=1e-5)


def test_a_qat_model_that_differs_is_refused(graph, qat_model, monkeypatch):
    monkeypatch.setattr(qat, "COPY_TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match="tf_keras model differs from the graph by"):
        qat._check_copy(qat_model, graph)  # which rounds already


@pytest.mark.slow
def test_every_kernel_is_trained():
    """Of the whole network."""
    graph = whole_graph()
    assert sum("kernel" in node.weights for node in graph.nodes.values()) == 90
    source = evenly_spaced(load_source("classification", "digits"), "train", 64)
    config = dataclasses.replace(make_config("digits"), epochs=1, batch_size=32)
    tuned = qat.fine_tune(graph, config, source, 1.0, returns_logits=True)
    for name, node in graph.nodes.items():
        if "kernel" not in node.weights:
            continue
        after = tuned.nodes[name].weights["kernel"]
        assert np.all(np.isfinite(after))
        # At this size there is one token, whose attention to itself is always 1.
        if not name.endswith(("_query", "_key")):
            assert not np.array_equal(after, node.weights["kernel"]), name
