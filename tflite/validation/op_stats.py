"""Counts the operations of a `.tflite` file and finds those that phones may lack."""

import collections
from collections.abc import Iterable
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

_OP_NAMES = {
    value: name
    for name, value in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}
_FLOATS = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)


def op_name(model, operator) -> str:
    """Returns the name of an operation; a custom operation has a name of its own."""
    code = model.operatorCodes[operator.opcodeIndex]
    # Old files hold the code in the one-byte field.
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    is_custom = builtin == schema.BuiltinOperator.CUSTOM
    return code.customCode.decode() if is_custom else _OP_NAMES[builtin]


def _read(path):
    return schema.ModelT.InitFromPackedBuf(Path(path).read_bytes())


def count(names: Iterable[str]) -> dict[str, int]:
    """Counts names, the most frequent first."""
    return dict(collections.Counter(names).most_common())


def count_ops(path) -> dict[str, int]:
    """Counts a file's operations by name, the most frequent first.

    A custom operation counts under its own name. `Flex...` is a TensorFlow operation;
    most applications do not ship the runtime that it needs.
    """
    model = _read(path)
    graphs = model.subgraphs
    return count(op_name(model, op) for graph in graphs for op in graph.operators)


def count_float_ops(path) -> dict[str, int]:
    """Counts the operations that return floats, except `DEQUANTIZE`.

    In an integer file these are the parts that stayed in floats.
    """
    model = _read(path)
    return count(
        op_name(model, operator)
        for graph in model.subgraphs
        for operator in graph.operators
        if graph.tensors[operator.outputs[0]].type in _FLOATS
        and op_name(model, operator) != "DEQUANTIZE"
    )


def max_rank(path) -> int:
    """Returns the highest rank of a tensor; GPU delegates refuse more than 4."""
    return max(
        len(tensor.shape)
        for graph in _read(path).subgraphs
        for tensor in graph.tensors
        if tensor.shape is not None
    )


def custom_ops(ops: Iterable[str]) -> list[str]:
    """Returns the names that are not TFLite's built-in operations, sorted."""
    return sorted(set(ops) - set(_OP_NAMES.values()))
