"""The layers at which an 8-bit file goes wrong are named."""

import dataclasses

import numpy as np
import pytest

from tflite.formats import calibration
from tflite.formats.quantize import integer_recipe, quantize
from tflite.formats.to_tflite import tflite_content, trace_graph
from tflite.graph.graph import Graph, Node
from tflite.validation import tensor_errors

LAYERS = ("first", "second", "third")


def _chain(random) -> Graph:
    """Three convolutions, with an activation that TFLite merges into them."""
    options = {"strides": (1, 1), "padding": "SAME", "dilations": (1, 1)}
    nodes, source = [], "images"
    for name, channels in zip(LAYERS, (3, 8, 8)):
        kernel = random.normal(size=(1, 1, channels, 8)) / channels**0.5
        weights = {"kernel": kernel, "bias": np.full(8, 0.5)}
        nodes.append(Node(name, "conv", (source,), weights, options))
        source = name
        if name != LAYERS[-1]:
            act = Node(f"{name}_act", "activation", (name,), {}, {"function": "relu"})
            nodes.append(act)
            source = act.name
    return Graph("images", (8, 8, 3), {n.name: n for n in nodes}, (LAYERS[-1],))


def _content(graph: Graph) -> bytes:
    return tflite_content(trace_graph(graph, lambda outputs: {"y": outputs[0]}))


@pytest.mark.parametrize("bad", LAYERS)
def test_the_layer_that_is_wrong_comes_first(bad):
    random = np.random.default_rng(0)
    graph = _chain(random)
    images = random.uniform(0, 1, (4, 8, 8, 3)).astype(np.float32)
    node = graph.nodes[bad]
    kernel = node.weights["kernel"] * random.uniform(0.8, 1.2, (8,))
    wrong = dataclasses.replace(node, weights={**node.weights, "kernel": kernel})
    content = _content(graph.replace(wrong))
    ranges = calibration.measure_ranges(content, images, 1.0)
    quantized = quantize(content, integer_recipe(), ranges)
    errors = tensor_errors.largest_errors(graph, _content(graph), quantized, images)
    first, *others = errors
    # The activation's name stands for both where they are one operation.
    assert first["layer"] in (bad, f"{bad}_act")
    assert 5 < first["snr_db"] < 30
    assert len(others) == 2
    assert first["layer"] in tensor_errors.describe(errors)


def test_no_error_is_no_infinite_number():
    graph = _chain(np.random.default_rng(0))
    content = _content(graph)
    images = np.ones((1, 8, 8, 3), np.float32)
    errors = tensor_errors.largest_errors(graph, content, content, images)
    assert all(np.isfinite(error["snr_db"]) for error in errors)
