"""Maps the variables of Keras layers to the tensors of PyTorch checkpoints."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from keras_mobilevit.weights.names import CheckpointFormat

# By kind of layer: the names of the variables in Keras and in PyTorch.
_CONV = {"kernel": "weight"}
_DENSE = {"kernel": "weight", "bias": "bias"}
_LAYER_NORM = {"gamma": "weight", "beta": "bias"}
_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_VARIABLES: dict[type, dict[str, str]] = {
    layers.Conv2D: _CONV,
    layers.DepthwiseConv2D: _CONV,
    layers.Dense: _DENSE,
    layers.LayerNormalization: _LAYER_NORM,
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
        third: which third of the tensor belongs to the variable; `None` if all does. A
            fused projection holds query, key and value.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    third: int | None

    def to_keras(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the variable's values."""
        if self.third is not None:
            tensor = np.split(tensor, 3)[self.third]
        return np.transpose(tensor, self.axes) if self.axes else tensor

    def from_keras(self, value: np.ndarray) -> np.ndarray:
        """Returns the tensor, or the variable's third of it."""
        return np.transpose(value, np.argsort(self.axes)) if self.axes else value


def _layer_class(layer: layers.Layer) -> type | None:
    """Returns the class in `_VARIABLES` that a layer is an instance of."""
    return next((base for base in type(layer).__mro__ if base in _VARIABLES), None)


def variable_names(layer: layers.Layer) -> dict[str, str]:
    """Returns PyTorch's names of a layer's variables by Keras's; {} for others."""
    base = _layer_class(layer)
    return _VARIABLES[base] if base else {}


def locate(
    layer: layers.Layer, variable: keras.Variable, source: CheckpointFormat
) -> TensorLocation:
    """Returns the tensor that holds a variable in a checkpoint.

    Layers without a name in the checkpoint keep their own name, so that an error
    message can report them as missing.
    """
    module = source.modules.get(layer.name, layer.name)
    module, _, third = module.partition("#")
    name = f"{module}.{variable_names(layer).get(variable.name, variable.name)}"
    base = _layer_class(layer)
    axes = _KERNEL_AXES.get(base) if base and variable.name == "kernel" else None
    shape = tuple(variable.shape)
    if axes:
        shape = tuple(shape[axes.index(i)] for i in range(len(axes)))
    if third:
        shape = (3 * shape[0], *shape[1:])
    return TensorLocation(name, shape, axes, int(third) if third else None)


def weighted_layers(
    model: keras.Model, is_selected: Callable[[str], bool] = lambda name: True
) -> list[layers.Layer]:
    """Returns the layers that have weights and whose name is selected."""
    return [x for x in model.layers if x.weights and is_selected(x.name)]
