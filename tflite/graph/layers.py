"""The Keras layers that the reader knows, each as the operations that it consists of.

A layer without a row in `LAYERS` is computed by Keras itself, see `fallback.py`.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_mobilevit.backend import Activation, BatchNormalization, DilatedConv2D
from keras_mobilevit.deeplab import ResizeLike
from keras_mobilevit.layers import (
    ContextPooling,
    DotProductAttention,
    Fold,
    ResizeToMultiple,
    Unfold,
)
from keras_mobilevit.ssdlite import SplitPredictions
from tflite.graph.tf_ops import ACTIVATIONS
from tflite.graph.token_embedding import TokenEmbedding


class UnknownLayer(ValueError):
    """A layer has no row here, or no file can express it; the message names it."""


@dataclasses.dataclass(frozen=True)
class Step:
    """An operation of a layer: a `Node` that has neither name nor inputs yet."""

    op: str
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)


# The steps of a layer, each taking the output of the one before. A dict has one step
# for each output of the layer; each takes the layer's inputs.
Steps = list[Step] | dict[str, Step]


def variables(**named) -> dict[str, np.ndarray]:
    """Returns the values of variables in float64, in which rewrites compute."""
    return {
        name: np.asarray(variable.numpy(), np.float64)
        for name, variable in named.items()
        if variable is not None
    }


def _activation(layer) -> Step:
    function = layers.Activation(layer.activation).get_config()["activation"]
    if function in ACTIVATIONS:
        return Step("activation", options={"function": function})
    return Step("keras", options={"run": layer.activation, "dtypes": ("float32",)})


def _linear(layer, op: str, options: dict | None = None) -> Steps:
    weights = variables(kernel=layer.kernel, bias=layer.bias)
    steps = [Step(op, weights, options or {})]
    if layer.activation not in (None, keras.activations.linear):
        steps.append(_activation(layer))
    return steps


def _require_channels_last(layer) -> None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise UnknownLayer(f"Layer {layer.name!r} is not channels-last.")


def _require_last_axis(layer, what: str) -> None:
    axes = tuple(np.atleast_1d(layer.axis))
    if axes not in ((-1,), (len(layer.input.shape) - 1,)):
        raise UnknownLayer(
            f"Layer {layer.name!r} {what} over axis {layer.axis}, not over the last."
        )


def _convolution_options(layer) -> dict:
    _require_channels_last(layer)
    return {
        "strides": tuple(layer.strides),
        "padding": layer.padding.upper(),
        "dilations": tuple(layer.dilation_rate),
    }


def _conv(layer) -> Steps:
    if layer.groups != 1:
        raise UnknownLayer(f"Layer {layer.name!r} is a convolution in groups.")
    return _linear(layer, "conv", _convolution_options(layer))


def _batch_norm(layer) -> Steps:
    _require_last_axis(layer, "normalizes")
    weights = variables(
        gamma=layer.gamma,
        beta=layer.beta,
        mean=layer.moving_mean,
        variance=layer.moving_variance,
    )
    mean = weights["mean"]
    defaults = {"gamma": np.ones_like(mean), "beta": np.zeros_like(mean)}
    return [Step("batch_norm", defaults | weights, {"epsilon": layer.epsilon})]


def _layer_norm(layer) -> Steps:
    _require_last_axis(layer, "normalizes")
    if layer.rms_scaling:
        raise UnknownLayer(f"Layer {layer.name!r} is an RMS normalization.")
    weights = variables(gamma=layer.gamma, beta=layer.beta)
    return [Step("layer_norm", weights, {"epsilon": layer.epsilon})]


def _group_norm(layer) -> Steps:
    _require_last_axis(layer, "normalizes")
    if layer.groups != 1:
        raise UnknownLayer(f"Layer {layer.name!r} normalizes in groups.")
    weights = variables(gamma=layer.gamma, beta=layer.beta)
    return [Step("image_norm", weights, {"epsilon": layer.epsilon})]


def _relu(layer) -> Steps:
    function = {None: "relu", 6.0: "relu6"}.get(layer.max_value)
    if function is None or layer.negative_slope or layer.threshold:
        raise UnknownLayer(f"Layer {layer.name!r} is neither ReLU nor ReLU6.")
    return [Step("activation", options={"function": function})]


def _softmax(layer) -> Steps:
    _require_last_axis(layer, "is a softmax")
    return [Step("activation", options={"function": "softmax"})]


def _concatenate(layer) -> Steps:
    rank = len(layer.output.shape)
    if layer.axis in (-1, rank - 1):
        return [Step("concat")]
    if rank == 3 and layer.axis in (1, -2):
        return [Step("join_tokens")]
    raise UnknownLayer(f"Layer {layer.name!r} joins along axis {layer.axis}.")


def _reshape(layer, shape) -> Steps:
    """Reshapes everything but the batch; `shape` may have a -1."""
    keeps_channels = layer.input.shape[-1] == shape[-1]
    options = {"shape": tuple(shape), "keeps_channels": keeps_channels}
    return [Step("reshape", options=options)]


def _flatten(layer) -> Steps:
    _require_channels_last(layer)
    return _reshape(layer, [side or -1 for side in layer.output.shape[1:]])


def _elementwise(op: str) -> Callable[[keras.Layer], Steps]:
    def read(layer) -> Steps:
        if len({len(x.shape) for x in keras.tree.flatten(layer.input)}) != 1:
            raise UnknownLayer(
                f"Layer {layer.name!r} combines tensors of different ranks."
            )
        return [Step(op)]

    return read


def _token_embedding(layer) -> Steps:
    embeddings = keras.ops.convert_to_numpy(layer.embeddings()).astype(np.float64)
    return [Step("pad_tokens"), Step("positions", {"positions": embeddings})]


def _split_predictions(layer) -> Steps:
    numbers = layer.input.shape[-1]
    return {
        "offsets": Step("slice_channels", options={"start": 0, "stop": 4}),
        "logits": Step("slice_channels", options={"start": 4, "stop": numbers}),
    }


def _options(op: str, *attributes: str) -> Callable[[keras.Layer], Steps]:
    """Makes the reader of a layer without weights, whose attributes are options."""

    def read(layer) -> Steps:
        _require_channels_last(layer)
        return [Step(op, options={name: getattr(layer, name) for name in attributes})]

    return read


LAYERS: dict[type, Callable[[keras.Layer], Steps]] = {
    layers.Activation: lambda layer: [_activation(layer)],
    Activation: lambda layer: [_activation(layer)],
    layers.Add: _elementwise("add"),
    layers.BatchNormalization: _batch_norm,
    BatchNormalization: _batch_norm,
    layers.Concatenate: _concatenate,
    ContextPooling: _options("context"),
    layers.Conv2D: _conv,
    layers.Cropping1D: _options("crop_tokens", "cropping"),
    layers.Dense: lambda layer: _linear(layer, "dense"),
    layers.DepthwiseConv2D: lambda layer: _linear(
        layer, "depthwise", _convolution_options(layer)
    ),
    DilatedConv2D: _conv,
    DotProductAttention: lambda layer: [
        Step("attention", options={"num_heads": layer.num_heads, "scaled": False})
    ],
    layers.Flatten: _flatten,
    Fold: _options("fold", "patch_size"),
    layers.GlobalAveragePooling2D: _options("global_average", "keepdims"),
    layers.GroupNormalization: _group_norm,
    layers.LayerNormalization: _layer_norm,
    layers.Multiply: _elementwise("multiply"),
    layers.ReLU: _relu,
    layers.Reshape: lambda layer: _reshape(layer, layer.target_shape),
    ResizeLike: _options("resize_like", "align_corners"),
    ResizeToMultiple: _options("resize_to_multiple", "patch_size"),
    layers.Softmax: _softmax,
    SplitPredictions: _split_predictions,
    TokenEmbedding: _token_embedding,
    Unfold: _options("unfold", "patch_size", "per_image"),
    layers.ZeroPadding2D: _options("pad", "padding"),
}

# `x + y` and `x * y` of tensors are not layers, and their types are not public. From
# the name of the type to the operation.
OPERATORS = {"Add": "add", "Multiply": "multiply"}
