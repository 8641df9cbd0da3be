"""A layer is added to the converter by one row and one function in three files."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_mobilevit.litert import LiteRTModel
from tests.helpers.graphs import random_images, run_graph
from tflite.formats.to_tflite import tflite_content, trace_graph
from tflite.graph import tf_ops
from tflite.graph.layers import LAYERS, Step, variables
from tflite.graph.reader import fallback_layers, read_model

SIZE = 8


class Gain(layers.Layer):
    """The toy: multiplies each channel by a learned factor."""

    def build(self, input_shape):
        self.gain = self.add_weight(name="gain", shape=(input_shape[-1],))

    def call(self, x):
        return x * self.gain


# What a new layer adds to tflite/graph/layers.py, with a row of LAYERS ...
def read_gain(layer) -> list[Step]:
    return [Step("gain", variables(gain=layer.gain))]


# ... to tflite/graph/tf_ops.py, with a row of OPERATIONS ...
def gain(node, x):
    return x * tf_ops.constant(node, "gain", x)


# ... and to tflite/formats/coreml/mil_ops.py, with a row of OPERATIONS.
def mil_gain(node, x):
    from coremltools.converters.mil import Builder as mb

    from tflite.formats.coreml.mil_ops import per_channel

    return mb.mul(x=x, y=per_channel(x, node.weights["gain"]), name=node.name)


@pytest.fixture
def model(monkeypatch) -> keras.Model:
    monkeypatch.setitem(LAYERS, Gain, read_gain)
    monkeypatch.setitem(tf_ops.OPERATIONS, "gain", gain)
    inputs = keras.Input((SIZE, SIZE, 3))
    made = keras.Model(inputs, Gain()(layers.Conv2D(4, 3)(inputs)))
    made.layers[-1].gain.assign([0.5, 2.0, -1.0, 0.0])
    return made


def test_a_toy_layer_is_converted_to_tflite(model, tmp_path):
    graph = read_model(model, SIZE, SIZE)
    assert [node.op for node in graph.nodes.values()] == ["conv", "gain"]
    assert fallback_layers(graph) == []
    images = random_images(SIZE, SIZE).astype(np.float32)
    expected = model(images).numpy()
    np.testing.assert_allclose(run_graph(graph, images), expected, atol=1e-3)
    path = tmp_path / "toy.tflite"
    serve = trace_graph(graph, lambda outputs: {"y": outputs[0]})
    path.write_bytes(tflite_content(serve))
    found = LiteRTModel(path).predict(images)["y"]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_toy_layer_is_converted_to_core_ml(model, tmp_path, monkeypatch):
    pytest.importorskip("coremltools", reason="pip install '.[coreml]'")
    from tflite.formats.coreml import mil_ops
    from tflite.formats.coreml.package import PackageSpec
    from tflite.formats.coreml.segmenter import make_segmenter
    from tflite.validation.mil_evaluator import Evaluator

    monkeypatch.setitem(mil_ops.OPERATIONS, "gain", mil_gain)
    spec = PackageSpec(sizes=(SIZE,))
    made = make_segmenter(read_model(model, SIZE, SIZE), spec, "float32")
    made.save(str(tmp_path / "toy.mlpackage"))
    images = random_images(SIZE, SIZE).astype(np.float32)
    found = Evaluator(tmp_path / "toy.mlpackage").predict(images)
    np.testing.assert_allclose(found, model(images), atol=1e-3)
