"""Maps the variables of Keras layers to the tensors of PyTorch checkpoints."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from keras_mobilevit.configs import Family
from keras_mobilevit.weights.names import (
    CHECKPOINT_FORMATS,
    CheckpointFormat,
    is_backbone,
)

# By kind of layer: the names of the variables in Keras and in PyTorch.
_LINEAR = {"kernel": "weight", "bias": "bias"}
_NORM = {"gamma": "weight", "beta": "bias"}
_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_VARIABLES: dict[type, dict[str, str]] = {
    layers.Conv2D: _LINEAR,
    layers.DepthwiseConv2D: _LINEAR,
    layers.Dense: _LINEAR,
    layers.LayerNormalization: _NORM,
    layers.GroupNormalization: _NORM,
    layers.BatchNormalization: _BATCH_NORM,
}

# PyTorch's axes in Keras's order: OIHW to HWIO; C1HW to HWC1; (out, in) to (in, out).
_KERNEL_AXES: dict[type, tuple[int, ...]] = {
    layers.Conv2D: (2, 3, 1, 0),
    layers.DepthwiseConv2D: (2, 3, 0, 1),
    layers.Dense: (1, 0),
}


class TensorLocation(NamedTuple):
    """The tensor of a PyTorch checkpoint that holds a variable's values.

    Attributes:
        name: name of the tensor.
        shape: shape of the tensor, in PyTorch's order.
        axes: PyTorch's axes in Keras's order; `None` if both orders are the same.
        rows: the part of the tensor's first axis that belongs to the variable. A fused
            projection holds query, key and value.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    rows: slice

    def to_keras(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the variable's values."""
        tensor = tensor[self.rows]
        return np.transpose(tensor, self.axes) if self.axes else tensor

    def from_keras(self, value: np.ndarray) -> np.ndarray:
        """Returns the variable's rows of the tensor."""
        return np.transpose(value, np.argsort(self.axes)) if self.axes else value


def _layer_class(layer: layers.Layer) -> type | None:
    """Returns the class in `_VARIABLES` that a layer is an instance of."""
    return next((base for base in type(layer).__mro__ if base in _VARIABLES), None)


def variable_names(layer: layers.Layer) -> dict[str, str]:
    """Returns PyTorch's names of a layer's variables by Keras's; {} for others."""
    base = _layer_class(layer)
    names = _VARIABLES[base] if base else {}
    if base in (layers.Conv2D, layers.DepthwiseConv2D) and not layer.use_bias:
        return {"kernel": names["kernel"]}  # batch normalization follows
    return names


def _locate(
    layer: layers.Layer, variable: keras.Variable, source: CheckpointFormat
) -> tuple[TensorLocation, int]:
    """Returns the location of a variable as if its tensor held nothing else.

    The second value is its position among the parts of a fused projection.
    """
    # Layers without a name in the checkpoint keep their own, so that an error message
    # can report them as missing.
    module, _, part = source.modules.get(layer.name, layer.name).partition("#")
    name = f"{module}.{variable_names(layer).get(variable.name, variable.name)}"
    base = _layer_class(layer)
    axes = _KERNEL_AXES.get(base) if base and variable.name == "kernel" else None
    shape = tuple(variable.shape)
    if axes:
        shape = tuple(shape[axes.index(i)] for i in range(len(axes)))
    return TensorLocation(name, shape, axes, slice(None)), int(part or 0)


def locate_variables(
    owners: list[layers.Layer], source: CheckpointFormat
) -> list[tuple[layers.Layer, keras.Variable, TensorLocation]]:
    """Returns the layers' variables, each with its place in a checkpoint."""
    found = [(x, v, *_locate(x, v, source)) for x in owners for v in x.weights]
    parts: dict[str, dict[int, int]] = {}  # rows of each part, by the tensor's name
    for *_, location, part in found:
        rows = location.shape[0] if location.shape else 1
        parts.setdefault(location.name, {})[part] = rows
    located = []
    for layer, variable, location, part in found:
        counts = parts[location.name]
        if len(counts) > 1:
            start = sum(count for other, count in counts.items() if other < part)
            location = location._replace(
                shape=(sum(counts.values()), *location.shape[1:]),
                rows=slice(start, start + counts[part]),
            )
        located.append((layer, variable, location))
    return located


def weighted_layers(
    model: keras.Model, is_selected: Callable[[str], bool] = lambda name: True
) -> list[layers.Layer]:
    """Returns the layers that have weights and whose name is selected."""
    return [x for x in model.layers if x.weights and is_selected(x.name)]


def family_of(model: keras.Model) -> Family | None:
    """Returns the family whose backbone a model has; `None` for other networks."""
    names = {layer.name for layer in weighted_layers(model, is_backbone)}
    found = (x.family for x in CHECKPOINT_FORMATS if x.backbone == names)
    return next(found, None)
