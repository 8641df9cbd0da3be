"""Layers that no rewrite knows: a node computes what Keras itself does."""

import inspect

import keras
import tensorflow as tf

from keras_mobilevit.calls import Call, Value


def keras_rows(call: Call) -> list[tuple] | dict[str, tuple]:
    """Returns the node of a call, one for each of its outputs."""
    rows = [_row(call, index) for index in range(len(call.outputs))]
    if len(rows) == 1:
        return rows
    return {f"output{index:03}": row for index, row in enumerate(rows)}


def _row(call: Call, index: int) -> tuple:
    run = _function(call.operation)

    def output(*inputs):
        values = iter(inputs)
        args, kwargs = keras.tree.map_structure(
            lambda x: next(values) if isinstance(x, Value) else x,
            (call.args, call.kwargs),
        )
        return keras.tree.flatten(run(*args, **kwargs))[index]

    return ("keras", {}, {"run": output, "dtypes": _dtypes(call)})


def _dtypes(call: Call) -> tuple[str, ...]:
    """Returns the types in which a call takes its inputs: no float but float32."""
    given = [x.dtype for x in keras.tree.flatten(call.operation.input)]
    return tuple("float32" if "float" in dtype else dtype for dtype in given)


def _function(operation):
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
        state = [[tf.constant(array) for array in group] for group in variables]
        outputs, _ = operation.stateless_call(*state, *args, **(kwargs | options))
        return outputs

    return run
