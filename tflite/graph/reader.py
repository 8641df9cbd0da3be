"""Reads a trained Keras network as a `tflite.graph.graph.Graph`."""

import re
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_mobilevit.backend import Activation, BatchNormalization, DilatedConv2D
from keras_mobilevit.calls import Call, Value, list_calls
from keras_mobilevit.deeplab import CLASSIFIER, ResizeLike, is_segmenter
from keras_mobilevit.layers import DotProductAttention, Fold, Unfold
from keras_mobilevit.ssdlite import SplitPredictions, is_detector
from keras_mobilevit.value_range import is_identity, scale_and_offset
from tflite.graph.graph import Graph, Node
from tflite.graph.fallback import keras_rows
from tflite.suites.baselines import TokenEmbedding

ACTIVATIONS = (
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "linear",
    "relu",
    "relu6",
    "sigmoid",
    "silu",
    "softmax",
)


class UnknownLayer(ValueError):
    """A layer that has no rows here, or that no file can express, by name."""


def _weights(**variables) -> dict[str, np.ndarray]:
    """Takes the values of variables, in the precision in which rewrites compute."""
    return {
        name: np.asarray(variable.numpy(), np.float64)
        for name, variable in variables.items()
        if variable is not None
    }


def _activation_name(layer) -> str | None:
    """Returns one of `ACTIVATIONS`, or `None`."""
    function = layers.Activation(layer.activation).get_config()["activation"]
    return function if function in ACTIVATIONS else None


def _activation_row(layer) -> tuple:
    name = _activation_name(layer)
    if name is None:
        return ("keras", {}, {"run": layer.activation, "dtypes": ("float32",)})
    return ("activation", {}, {"function": name})


def _with_activation(layer, op: str, weights: dict, options: dict) -> list[tuple]:
    """A linear operation, and after it the layer's activation if it has one."""
    rows = [(op, weights, options)]
    if layer.activation not in (None, keras.activations.linear):
        rows.append(_activation_row(layer))
    return rows


def _require_channels_last(layer) -> None:
    if layer.data_format != "channels_last":
        raise UnknownLayer(f"Layer {layer.name!r} is not channels-last.")


def _convolution_options(layer) -> dict:
    _require_channels_last(layer)
    return {
        "strides": tuple(layer.strides),
        "padding": layer.padding.upper(),
        "dilations": tuple(layer.dilation_rate),
    }


def _read_conv(layer) -> list[tuple]:
    if layer.groups != 1:
        raise UnknownLayer(f"Layer {layer.name!r} is a convolution in groups.")
    weights = _weights(kernel=layer.kernel, bias=layer.bias)
    return _with_activation(layer, "conv", weights, _convolution_options(layer))


def _read_depthwise(layer) -> list[tuple]:
    weights = _weights(kernel=layer.kernel, bias=layer.bias)
    return _with_activation(layer, "depthwise", weights, _convolution_options(layer))


def _read_dense(layer) -> list[tuple]:
    weights = _weights(kernel=layer.kernel, bias=layer.bias)
    return _with_activation(layer, "dense", weights, {})


def _require_last_axis(layer, what: str) -> None:
    axes = tuple(np.atleast_1d(layer.axis))
    if axes not in ((-1,), (len(layer.input.shape) - 1,)):
        raise UnknownLayer(
            f"Layer {layer.name!r} {what} over axis {layer.axis}, not over the last."
        )


def _read_batch_norm(layer) -> list[tuple]:
    _require_last_axis(layer, "normalizes")
    mean = np.asarray(layer.moving_mean.numpy(), np.float64)
    constants = {"gamma": np.ones_like(mean), "beta": np.zeros_like(mean)}
    weights = constants | _weights(
        gamma=layer.gamma,
        beta=layer.beta,
        mean=layer.moving_mean,
        variance=layer.moving_variance,
    )
    return [("batch_norm", weights, {"epsilon": layer.epsilon})]


def _read_layer_norm(layer) -> list[tuple]:
    _require_last_axis(layer, "normalizes")
    if layer.rms_scaling:
        raise UnknownLayer(f"Layer {layer.name!r} is an RMS normalization.")
    weights = _weights(gamma=layer.gamma, beta=layer.beta)
    return [("layer_norm", weights, {"epsilon": layer.epsilon})]


def _read_relu(layer) -> list[tuple]:
    function = {None: "relu", 6.0: "relu6"}.get(layer.max_value)
    if function is None or layer.negative_slope or layer.threshold:
        raise UnknownLayer(f"Layer {layer.name!r} is neither ReLU nor ReLU6.")
    return [("activation", {}, {"function": function})]


def _read_padding(layer) -> list[tuple]:
    _require_channels_last(layer)
    return [("pad", {}, {"padding": tuple(map(tuple, layer.padding))})]


def _read_concatenate(layer) -> list[tuple]:
    rank = len(layer.output.shape)
    if layer.axis in (-1, rank - 1):
        return [("concat", {}, {})]
    if rank == 3 and layer.axis in (1, -2):
        return [("join_tokens", {}, {})]
    raise UnknownLayer(f"Layer {layer.name!r} joins along axis {layer.axis}.")


def _reshape(layer, shape) -> list[tuple]:
    """A reshaping of all but the batch; `shape` may have a -1."""
    keeps_channels = layer.input.shape[-1] == shape[-1]
    return [("reshape", {}, {"shape": tuple(shape), "keeps_channels": keeps_channels})]


def _read_flatten(layer) -> list[tuple]:
    _require_channels_last(layer)
    return _reshape(layer, [side or -1 for side in layer.output.shape[1:]])


def _read_softmax(layer) -> list[tuple]:
    _require_last_axis(layer, "is a softmax")
    return [("activation", {}, {"function": "softmax"})]


def _read_pooling(layer) -> list[tuple]:
    _require_channels_last(layer)
    return [("global_average", {}, {"keepdims": layer.keepdims})]


def _read_embedding(layer) -> list[tuple]:
    embeddings = keras.ops.convert_to_numpy(layer.embeddings()).astype(np.float64)
    return [("pad_tokens", {}, {}), ("positions", {"positions": embeddings}, {})]


def _read_activation(layer) -> list[tuple]:
    return [_activation_row(layer)]


def _split_predictions(layer) -> dict[str, tuple]:
    numbers = layer.input.shape[-1]
    return {
        name: ("slice_channels", {}, {"start": start, "stop": stop})
        for name, start, stop in (("offsets", 0, 4), ("logits", 4, numbers))
    }


# From a layer to rows of (op, weights, options), each taking the one before; a dict
# of rows where the layer returns one, each taking what the layer takes.
READERS: dict[type, Callable] = {
    layers.Activation: _read_activation,
    Activation: _read_activation,
    layers.Softmax: _read_softmax,
    layers.ReLU: _read_relu,
    layers.Add: lambda layer: [("add", {}, {})],
    layers.BatchNormalization: _read_batch_norm,
    BatchNormalization: _read_batch_norm,
    layers.Concatenate: _read_concatenate,
    layers.Conv2D: _read_conv,
    DilatedConv2D: _read_conv,
    layers.Cropping1D: lambda layer: [
        ("crop_tokens", {}, {"cropping": tuple(layer.cropping)})
    ],
    layers.Dense: _read_dense,
    layers.DepthwiseConv2D: _read_depthwise,
    layers.Flatten: _read_flatten,
    layers.GlobalAveragePooling2D: _read_pooling,
    layers.LayerNormalization: _read_layer_norm,
    layers.Multiply: lambda layer: [("multiply", {}, {})],
    layers.Reshape: lambda layer: _reshape(layer, layer.target_shape),
    layers.ZeroPadding2D: _read_padding,
    DotProductAttention: lambda layer: [
        ("attention", {}, {"num_heads": layer.num_heads, "scaled": False})
    ],
    Fold: lambda layer: [("fold", {}, {"patch_size": layer.patch_size})],
    TokenEmbedding: _read_embedding,
    ResizeLike: lambda layer: [("resize_like", {}, {})],
    SplitPredictions: _split_predictions,
    Unfold: lambda layer: [("unfold", {}, {"patch_size": layer.patch_size})],
}

# `x + y` and `x * y` of tensors are no layers and have no public type.
OPERATORS = {"Add": "add", "Multiply": "multiply"}


def outputs_of(model: keras.Model) -> list:
    """Returns a model's output tensors, those that are converted.

    Of a detector the offsets, then the logits; of a segmenter the logits before they
    are resized, without those of an auxiliary head.
    """
    if is_detector(model):  # a dict, which Keras itself would sort
        return [model.output["offsets"], model.output["logits"]]
    if is_segmenter(model):
        return [model.get_layer(CLASSIFIER).output]
    return model.outputs


def _read_operator(call: Call) -> list[tuple]:
    name = type(call.operation).__name__
    if name not in OPERATORS or len(call.inputs) != 2 or call.kwargs:
        raise UnknownLayer(f"Operation {call.operation.name!r} is a {name}.")
    return [(OPERATORS[name], {}, {})]


def _read_layer(call: Call) -> list[tuple] | dict[str, tuple]:
    layer = call.operation
    if type(layer) not in READERS:
        raise UnknownLayer(f"Layer {layer.name!r} is a {type(layer).__name__}.")
    if any(isinstance(x, Value) for x in keras.tree.flatten(call.kwargs)):
        raise UnknownLayer(f"Layer {layer.name!r} is called with keywords.")
    if type(layer) in (layers.Add, layers.Multiply):
        _require_one_rank(layer)
    return READERS[type(layer)](layer)


def _require_one_rank(layer) -> None:
    if len({len(x.shape) for x in keras.tree.flatten(layer.input)}) != 1:
        raise UnknownLayer(f"Layer {layer.name!r} combines tensors of several ranks.")


def _read_call(call: Call) -> list[tuple] | dict[str, tuple]:
    """Returns rows as `READERS` do; of what has none, what Keras computes."""
    scaled = scale_and_offset(call)
    if scaled is not None:
        return [("rescale", dict(zip(("scale", "offset"), scaled)), {})]
    if is_identity(call):
        return []
    read = _read_layer if isinstance(call.operation, layers.Layer) else _read_operator
    try:
        return read(call)
    except UnknownLayer:
        return keras_rows(call)


def _refuse(call: Call) -> None:
    """Refuses what no file can do as Keras does it."""
    operation = call.operation
    if call.trained_by:
        raise UnknownLayer(
            f"Layer {call.trained_by!r} is called with training=True, so that what it "
            "returns changes from run to run, or with its batch. Build the model "
            "without that argument."
        )
    makes_mask = getattr(operation, "mask_zero", False)
    if makes_mask or isinstance(operation, layers.Masking):
        raise UnknownLayer(
            f"Layer {operation.name!r} is a {type(operation).__name__} that makes a "
            "mask, which a file does not pass on. Build the model without it."
        )


def _node_name(name: str) -> str:
    """Returns a layer's name as a name scope of TensorFlow may be."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return name if name[:1].isalnum() else f"layer{name}"


class _Writer:
    """Writes calls down as nodes."""

    def __init__(self, input_name: str):
        self.input_name = input_name
        self.nodes = {}
        self.names = {}  # of the nodes that return values

    def write(self, call: Call) -> None:
        _refuse(call)
        inputs = [self.names[value] for value in call.inputs]
        rows, name = _read_call(call), _node_name(call.operation.name)
        if not isinstance(rows, dict):
            self.names[call.outputs[0]] = self._add(name, rows, inputs)
            return
        for value, key in zip(call.outputs, sorted(rows)):  # as Keras sorts them
            self.names[value] = self._add(f"{name}_{key}", [rows[key]], inputs)

    def _add(self, layer_name: str, rows: list[tuple], inputs: list[str]) -> str:
        """Adds the nodes of a layer; returns the name of the last."""
        for op, weights, options in rows:
            name = layer_name
            while name in self.nodes or name == self.input_name:
                name = f"{name}_{op}"
            self.nodes[name] = Node(name, op, tuple(inputs), weights, options)
            inputs = [name]
        return inputs[0]


def read_model(model: keras.Model, height: int, width: int) -> Graph:
    """Reads a network of one image input.

    Args:
        model: functional or sequential, also with such models as layers.
        height: of the image in pixels.
        width: likewise.

    Returns:
        Its `Graph`, in float64. What has no row in `READERS` is a node `keras`, which
        computes what Keras does, in float32.

    Raises:
        UnknownLayer: if a layer does what no file can do; the message names it.
        ValueError: if the model is of a class with a `call` of its own.
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


def kept_layers(graph: Graph) -> list[str]:
    """Returns the names of the layers that compute what Keras does."""
    return [node.name for node in graph.nodes.values() if node.op == "keras"]
