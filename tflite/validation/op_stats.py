"""What a `.tflite` file is made of, and whether a phone can run it."""

import collections
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

_OP_NAMES = {
    value: name
    for name, value in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}
_FLOATS = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)


def op_name(model, operator) -> str:
    """Returns the name of an operation; a custom one has its own."""
    code = model.operatorCodes[operator.opcodeIndex]
    # Old files hold the code in the one-byte field.
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    is_custom = builtin == schema.BuiltinOperator.CUSTOM
    return code.customCode.decode() if is_custom else _OP_NAMES[builtin]


def _read(path):
    return schema.ModelT.InitFromPackedBuf(Path(path).read_bytes())


def count(names) -> dict[str, int]:
    """Counts names, the most frequent first."""
    return dict(collections.Counter(names).most_common())


def count_ops(path) -> dict[str, int]:
    """Counts the operations of a file's graphs by name, the most frequent first.

    A custom operation stands under its own name; `Flex...` is one of TensorFlow's,
    which needs a runtime that most applications do not ship.
    """
    model = _read(path)
    graphs = model.subgraphs
    return count(op_name(model, op) for graph in graphs for op in graph.operators)


def count_float_ops(path) -> dict[str, int]:
    """Counts the operations that return floats, in an integer file its float islands.

    Not counted are those that only change the type.
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
    """Returns the highest rank of any tensor; GPU delegates refuse more than 4."""
    return max(
        len(tensor.shape)
        for graph in _read(path).subgraphs
        for tensor in graph.tensors
        if tensor.shape is not None
    )


def foreign_ops(ops: dict[str, int]) -> list[str]:
    """Returns those of counted operations that are not TFLite's own."""
    return sorted(set(ops) - set(_OP_NAMES.values()))
