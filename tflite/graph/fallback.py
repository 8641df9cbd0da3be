"""Layers that the table of layers lacks: a node calls Keras itself."""

import inspect
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_mobilevit.calls import Call, Value
from tflite.graph.layers import Step, Steps


def keras_steps(call: Call) -> Steps:
    """Returns the step of a call, or one for each of its outputs."""
    steps = [_step(call, index) for index in range(len(call.outputs))]
    if len(steps) == 1:
        return steps
    return {f"output{index:03}": step for index, step in enumerate(steps)}


def _step(call: Call, index: int) -> Step:
    run = _function(call.operation)

    def output(*inputs):
        values = iter(inputs)
        args, kwargs = keras.tree.map_structure(
            lambda x: next(values) if isinstance(x, Value) else x,
            (call.args, call.kwargs),
        )
        return keras.tree.flatten(run(*args, **kwargs))[index]

    dtypes = tuple(
        "float32" if "float" in x.dtype else x.dtype
        for x in keras.tree.flatten(call.operation.input)
    )
    return Step("keras", options={"run": output, "dtypes": dtypes})


def _function(operation: keras.Operation) -> Callable:
    """Makes a function of a layer at inference, with its weights as constants."""
    if not isinstance(operation, keras.Layer):
        return operation
    variables = [
        [keras.ops.convert_to_numpy(variable) for variable in group]
        for group in (operation.trainable_variables, operation.non_trainable_variables)
    ]
    options = {}
    if "training" in inspect.signature(operation.call).parameters:
        options["training"] = False

    def run(*args, **kwargs):
        trainable, other = ([tf.constant(x) for x in group] for group in variables)
        outputs, _ = operation.stateless_call(
            trainable, other, *args, **(kwargs | options)
        )
        return outputs

    return run
