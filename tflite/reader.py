"""Reads a trained Keras network as a `tflite.graph.Graph`."""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_mobilevit.backend import Activation, BatchNormalization, DilatedConv2D
from keras_mobilevit.deeplab import CLASSIFIER, ResizeLike, is_segmenter
from keras_mobilevit.layers import DotProductAttention, Fold, Unfold
from keras_mobilevit.ssdlite import SplitPredictions, is_detector
from tflite.baselines import TokenEmbedding
from tflite.graph import Graph, Node

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
    """A layer that cannot be read, by name."""


def _weights(**variables) -> dict[str, np.ndarray]:
    """Takes the values of variables, in the precision in which rewrites compute."""
    return {
        name: np.asarray(variable.numpy(), np.float64)
        for name, variable in variables.items()
        if variable is not None
    }


def _activation_name(layer) -> str:
    function = layers.Activation(layer.activation).get_config()["activation"]
    if function not in ACTIVATIONS:
        raise UnknownLayer(
            f"Layer {layer.name!r} has the activation {function!r}. Expected one of: "
            f"{', '.join(ACTIVATIONS)}."
        )
    return function


def _with_activation(layer, op: str, weights: dict, options: dict) -> list[tuple]:
    """A linear operation, and after it the layer's activation if it has one."""
    rows = [(op, weights, options)]
    if layer.activation not in (None, keras.activations.linear):
        rows.append(("activation", {}, {"function": _activation_name(layer)}))
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
    return _reshape(layer, layer.output.shape[1:])


def _read_softmax(layer) -> list[tuple]:
    _require_last_axis(layer, "is a softmax")
    return [("activation", {}, {"function": "softmax"})]


def _read_pooling(layer) -> list[tuple]:
    _require_channels_last(layer)
    return [("global_average", {}, {"keepdims": layer.keepdims})]


def _read_rescaling(layer) -> list[tuple]:
    scale, offset = (np.asarray(v, np.float64) for v in (layer.scale, layer.offset))
    if max(scale.ndim, offset.ndim) > 1:
        raise UnknownLayer(f"Layer {layer.name!r} scales by more than channels.")
    return [("rescale", {"scale": scale, "offset": offset}, {})]


def _read_normalization(layer) -> list[tuple]:
    _require_last_axis(layer, "normalizes")
    if layer.invert:
        raise UnknownLayer(f"Layer {layer.name!r} inverts a normalization.")
    mean, variance = (
        np.ravel(keras.ops.convert_to_numpy(values)).astype(np.float64)
        for values in (layer.mean, layer.variance)
    )
    scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
    return [("rescale", {"scale": scale, "offset": -mean * scale}, {})]


def _read_embedding(layer) -> list[tuple]:
    embeddings = keras.ops.convert_to_numpy(layer.embeddings()).astype(np.float64)
    return [("pad_tokens", {}, {}), ("positions", {"positions": embeddings}, {})]


def _read_activation(layer) -> list[tuple]:
    return [("activation", {}, {"function": _activation_name(layer)})]


def _identity(layer) -> list[tuple]:
    return []


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
    layers.Dropout: _identity,
    layers.Flatten: _read_flatten,
    layers.GlobalAveragePooling2D: _read_pooling,
    layers.LayerNormalization: _read_layer_norm,
    layers.Multiply: lambda layer: [("multiply", {}, {})],
    layers.Normalization: _read_normalization,
    layers.Rescaling: _read_rescaling,
    layers.Reshape: lambda layer: _reshape(layer, layer.target_shape),
    layers.ZeroPadding2D: _read_padding,
    DotProductAttention: lambda layer: [
        ("attention", {}, {"num_heads": layer.num_heads, "scaled": False})
    ],
    Fold: lambda layer: [("fold", {}, {"patch_size": layer.patch_size})],
    TokenEmbedding: _read_embedding,
    ResizeLike: lambda layer: [("resize_like", {}, {})],
    SplitPredictions: _split_predictions,
    layers.SpatialDropout2D: _identity,
    Unfold: lambda layer: [("unfold", {}, {"patch_size": layer.patch_size})],
}

# `x + y` and `x * y` are no layers and have no public type. By their name: the
# operation between tensors, and the scale and offset that a number stands for.
OPERATORS: dict[str, tuple] = {
    "Add": ("add", lambda number: (1.0, number)),
    "Multiply": ("multiply", lambda number: (number, 0.0)),
}


def _is_operator(operation) -> bool:
    is_layer = isinstance(operation, layers.Layer)
    return not is_layer and type(operation).__name__ in OPERATORS


def _read_operator(operation, arguments) -> list[tuple]:
    op, scale_and_offset = OPERATORS[type(operation).__name__]
    numbers = [x for x in arguments if not keras.utils.is_keras_tensor(x)]
    if not numbers:
        return [(op, {}, {})]
    (number,) = numbers
    if np.ndim(number):
        raise UnknownLayer(f"{operation.name!r} is with an array, not with a number.")
    scale, offset = (np.array(v, np.float64) for v in scale_and_offset(number))
    return [("rescale", {"scale": scale, "offset": offset}, {})]


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


class _Reader:
    """Follows a model's calls and writes them down as nodes."""

    def __init__(self, input_name: str):
        self.input_name = input_name
        self.nodes = {}
        self.sources = {}  # names of the nodes that made the tensors, by their id
        self.tensors = []  # kept, so that no id is used twice
        self.originals = {}  # layers of the model by the id of their copy
        self.called = set()  # ids of the layers that were followed

    def follow(self, model: keras.Model, inputs):
        """Calls copies of a model's layers, so that the model stays as it is."""
        functional = keras.Model(model.inputs, outputs_of(model), name=model.name)
        return keras.models.clone_model(
            functional,
            input_tensors=inputs,
            clone_function=self._copy,
            call_function=self._call,
        ).outputs

    def _copy(self, layer):
        if isinstance(layer, keras.Model):
            return layer  # its own layers are copied when it is called
        if type(layer) not in READERS and not _is_operator(layer):
            raise UnknownLayer(
                f"Layer {layer.name!r} of type {type(layer).__name__} has no mobile "
                "form here."
            )
        copy = type(layer).from_config(layer.get_config())
        self.originals[id(copy)] = layer
        return copy

    def _call(self, layer, *arguments, **options):
        inputs = [
            x for x in keras.tree.flatten(arguments) if keras.utils.is_keras_tensor(x)
        ]
        if any(keras.utils.is_keras_tensor(x) for x in keras.tree.flatten(options)):
            raise UnknownLayer(f"Layer {layer.name!r} is called with keywords.")
        if id(layer) in self.called:
            raise UnknownLayer(f"Layer {layer.name!r} is used more than once.")
        self.called.add(id(layer))
        if isinstance(layer, keras.Model):
            outputs = self.follow(layer, list(inputs))
            if len(outputs) != 1:
                raise UnknownLayer(f"Model {layer.name!r} has several outputs.")
            return outputs[0]
        outputs = layer(*arguments)
        original = self.originals[id(layer)]
        if _is_operator(original):
            rows = _read_operator(original, arguments)
        else:
            rows = READERS[type(original)](original)
        names = [self.name_of(x) for x in inputs]
        if isinstance(rows, dict):
            for key, row in rows.items():
                name = self._add(f"{original.name}_{key}", [row], names)
                self._remember(outputs[key], name)
        else:
            self._remember(outputs, self._add(original.name, rows, names))
        return outputs

    def _remember(self, tensor, name: str) -> None:
        self.sources[id(tensor)] = name
        self.tensors.append(tensor)

    def name_of(self, tensor) -> str:
        return self.sources[id(tensor)]

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
        Its `Graph`, in float64.

    Raises:
        UnknownLayer: if a layer is not one of `READERS` nor of `OPERATORS`; the
            message names it.
    """
    reader = _Reader("images")
    images = keras.Input(batch_shape=(1, height, width, model.inputs[0].shape[-1]))
    reader.sources[id(images)] = reader.input_name
    outputs = reader.follow(model, [images])
    return Graph(
        input_name=reader.input_name,
        input_shape=tuple(images.shape[1:]),
        nodes=reader.nodes,
        outputs=tuple(reader.name_of(tensor) for tensor in outputs),
    )
