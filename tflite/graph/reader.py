"""Reads a trained Keras network as a `tflite.graph.graph.Graph`."""

import re

import keras

from keras_mobilevit.calls import Call, Value, list_calls
from keras_mobilevit.deeplab import CLASSIFIER, is_segmenter
from keras_mobilevit.ssdlite import is_detector
from keras_mobilevit.value_range import is_identity, scale_and_offset
from tflite.graph.fallback import keras_steps
from tflite.graph.graph import Graph, Node
from tflite.graph.layers import LAYERS, OPERATORS, Step, Steps, UnknownLayer


def outputs_of(model: keras.Model) -> list:
    """Returns the output tensors that are converted.

    A detector has its offsets, then its logits. A segmenter has its logits before they
    are resized, without those of an auxiliary head.
    """
    if is_detector(model):  # Keras itself would sort the dict
        return [model.output["offsets"], model.output["logits"]]
    if is_segmenter(model):
        return [model.get_layer(CLASSIFIER).output]
    return model.outputs


def _read_operator(call: Call) -> Steps:
    name = type(call.operation).__name__
    if name not in OPERATORS or len(call.inputs) != 2 or call.kwargs:
        raise UnknownLayer(f"Operation {call.operation.name!r} is a {name}.")
    return [Step(OPERATORS[name])]


def _read_layer(call: Call) -> Steps:
    layer = call.operation
    if type(layer) not in LAYERS:
        raise UnknownLayer(f"Layer {layer.name!r} is a {type(layer).__name__}.")
    if any(isinstance(x, Value) for x in keras.tree.flatten(call.kwargs)):
        raise UnknownLayer(f"Layer {layer.name!r} is called with keywords.")
    return LAYERS[type(layer)](layer)


def _read_call(call: Call) -> Steps:
    """Returns the steps of a call; Keras computes a call that has no row."""
    scaled = scale_and_offset(call)
    if scaled is not None:
        return [Step("rescale", dict(zip(("scale", "offset"), scaled)))]
    if is_identity(call):
        return []
    is_layer = isinstance(call.operation, keras.Layer)
    try:
        return _read_layer(call) if is_layer else _read_operator(call)
    except UnknownLayer:
        return keras_steps(call)


def _refuse(call: Call) -> None:
    """Raises an UnknownLayer for a call that no file can repeat."""
    operation = call.operation
    if call.trained_by:
        raise UnknownLayer(
            f"Layer {call.trained_by!r} is called with training=True, so its outputs "
            "are random or depend on the batch. Build the model without that argument."
        )
    makes_mask = getattr(operation, "mask_zero", False)
    if makes_mask or isinstance(operation, keras.layers.Masking):
        raise UnknownLayer(
            f"Layer {operation.name!r} is a {type(operation).__name__} that makes a "
            "mask, which a file does not pass on. Build the model without it."
        )


def _node_name(name: str) -> str:
    """Returns a layer's name as a valid name scope of TensorFlow."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return name if name[:1].isalnum() else f"layer{name}"


class _Writer:
    """Writes calls down as nodes; these refer to the image as `input_name`."""

    def __init__(self, input_name: str):
        self.input_name = input_name
        self.nodes: dict[str, Node] = {}
        self.names: dict[Value, str] = {}  # of the nodes that return the values

    def write(self, call: Call) -> None:
        _refuse(call)
        inputs = [self.names[value] for value in call.inputs]
        steps, name = _read_call(call), _node_name(call.operation.name)
        if isinstance(steps, list):
            self.names[call.outputs[0]] = self._add(name, steps, inputs)
            return
        for value, key in zip(call.outputs, sorted(steps)):  # Keras sorts them too
            self.names[value] = self._add(f"{name}_{key}", [steps[key]], inputs)

    def _add(self, layer_name: str, steps: list[Step], inputs: list[str]) -> str:
        """Adds the nodes of a layer; returns the name of the last."""
        for step in steps:
            name = layer_name
            while name in self.nodes or name == self.input_name:
                name = f"{name}_{step.op}"
            self.nodes[name] = Node(
                name, step.op, tuple(inputs), step.weights, step.options
            )
            inputs = [name]
        return inputs[0]


def read_model(model: keras.Model, height: int, width: int) -> Graph:
    """Reads a functional or sequential network of one image as a graph in float64.

    A layer without a row in `LAYERS` is a node `keras`, which calls Keras in float32.
    Raises an UnknownLayer if no file can express a layer.
    """
    calls, writer = list_calls(model, outputs_of(model)), _Writer("images")
    (images,) = calls.inputs
    writer.names[images] = writer.input_name
    for call in calls.calls:
        writer.write(call)
    return Graph(
        input_name=writer.input_name,
        input_shape=(height, width, model.inputs[0].shape[-1]),
        nodes=writer.nodes,
        outputs=tuple(writer.names[value] for value in calls.outputs),
    )


def fallback_layers(graph: Graph) -> list[str]:
    """Returns the names of the layers that Keras itself computes."""
    return [node.name for node in graph.of_kind("keras")]
