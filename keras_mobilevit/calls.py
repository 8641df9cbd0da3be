"""The calls of a Keras model, and of models within it, as one flat list."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import keras

from keras_mobilevit.backend import Tensor


@dataclasses.dataclass(frozen=True)
class Value:
    """An output of a call, or an input of the model."""

    number: int


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer, or of an operation such as `x + y`.

    The arguments have `Value`s in place of tensors. The outputs have the order of
    `keras.tree.flatten`. `trained_by` is the name of the layer, or of the model around
    it, that is called with `training=True`; `None` at inference.
    """

    operation: keras.Operation
    args: tuple
    kwargs: dict
    outputs: tuple[Value, ...]
    trained_by: str | None = None

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The values among the arguments, in the order of `keras.tree.flatten`."""
        found = keras.tree.flatten((self.args, self.kwargs))
        return tuple(x for x in found if isinstance(x, Value))


@dataclasses.dataclass(frozen=True)
class Calls:
    """A model as a flat list: each call is after the calls whose outputs it takes."""

    inputs: tuple[Value, ...]
    calls: tuple[Call, ...]
    outputs: tuple[Value, ...]


def list_calls(model: keras.Model, outputs: list | None = None) -> Calls:
    """Lists the calls of a functional or sequential model.

    The model is not changed. Functional and sequential models within it are replaced by
    their own calls, to any depth; a nested model of another kind is one call. The
    outputs are `outputs`, by default the model's. Raises a ValueError if the model
    itself is of another kind.
    """
    if not is_functional(model):
        raise ValueError(
            f"Model {model.name!r} is of the class {type(model).__name__}, whose "
            "call() is code that cannot be read. Build the model as "
            "keras.Model(inputs, outputs) or keras.Sequential, with an Input of images."
        )
    recorder = _Recorder()
    inputs = [recorder.new_value() for _ in model.inputs]
    found = recorder.follow(model, inputs, outputs or model.outputs)
    return Calls(tuple(inputs), tuple(recorder.calls), tuple(found))


def is_functional(layer: Any) -> bool:
    """Tells whether a layer is a functional or sequential model."""
    if not isinstance(layer, keras.Model) or not getattr(layer, "inputs", None):
        return False
    if isinstance(layer, keras.Sequential):
        return type(layer).call is keras.Sequential.call
    functional = type(keras.Model(layer.inputs, layer.outputs))
    return type(layer).call is functional.call


class _StandIn(keras.Operation):
    """Connects tensors in place of an operation whose output shapes are known."""

    def __init__(self, outputs: list):
        super().__init__()
        self.specs = outputs

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> list:
        """Returns the given outputs."""
        return self.specs


class _Recorder:
    """Records the calls of a model."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._values: dict[int, Value] = {}  # by the id of their Keras tensor
        self._tensors: list = []  # keeps the tensors alive, so that ids stay unique
        self._numbers = itertools.count()

    def new_value(self) -> Value:
        return Value(next(self._numbers))

    def _remember(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._tensors.append(tensor)

    def follow(
        self,
        model: keras.Model,
        inputs: Sequence[Value],
        outputs: list,
        trained_by: str | None = None,
    ) -> list[Value]:
        """Records the calls from a model's inputs to `outputs`, tensors within it.

        Returns the values of these tensors.
        """
        tensors = [
            keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in model.inputs
        ]
        for tensor, value in zip(tensors, inputs):
            self._remember(tensor, value)
        clone = keras.models.clone_model(
            keras.Model(model.inputs, outputs),
            input_tensors=tensors,
            clone_function=lambda operation: operation,
            call_function=functools.partial(self._call, trained_by),
        )
        return [self._values[id(tensor)] for tensor in clone.outputs]

    def _call(
        self,
        trained_by: str | None,
        operation: keras.Operation,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Records a call, and returns tensors in place of its outputs."""
        trained_by = _trained_by(operation, args, kwargs, trained_by)
        found_args, found_kwargs = keras.tree.map_structure(
            lambda x: self._values.get(id(x), x), (args, kwargs)
        )
        specs = [
            keras.KerasTensor(x.shape, x.dtype)
            for x in keras.tree.flatten(operation.output)
        ]
        values = tuple(self.new_value() for _ in specs)
        call = Call(operation, found_args, found_kwargs, values, trained_by)
        outputs: Sequence[Value] = values
        if is_functional(operation) and len(operation.inputs) == len(call.inputs):
            outputs = self.follow(operation, call.inputs, operation.outputs, trained_by)
        else:
            self.calls.append(call)
        made = _StandIn(specs)(*args, **kwargs)
        for tensor, value in zip(made, outputs):
            self._remember(tensor, value)
        return made


def _trained_by(
    operation: keras.Operation, args: tuple, kwargs: dict, around: str | None
) -> str | None:
    """Returns the name of the layer or model that asks for training in a call."""
    if not isinstance(operation, keras.Layer):
        return around
    signature = inspect.signature(operation.call)
    parameter = signature.parameters.get("training")
    if parameter is None or parameter.default is True:  # as image augmentations have
        return around
    own = signature.bind_partial(*args, **kwargs).arguments.get("training")
    if own is None:
        return around
    return (around or operation.name) if own else None
