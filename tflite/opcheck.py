"""What a `.tflite` file is made of, and whether a phone can run it."""

import collections
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

_OP_NAMES = {
    value: name
    for name, value in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}


def count_ops(path) -> dict[str, int]:
    """Counts the operations of a file's graphs by name, the most frequent first.

    A custom operation stands under its own name; `Flex...` is one of TensorFlow's,
    which needs a runtime that most applications do not ship.
    """
    model = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes())
    names = []
    for code in model.operatorCodes:
        # Old files hold the code in the one-byte field.
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        is_custom = builtin == schema.BuiltinOperator.CUSTOM
        names.append(code.customCode.decode() if is_custom else _OP_NAMES[builtin])
    counts = collections.Counter(
        names[operator.opcodeIndex]
        for graph in model.subgraphs
        for operator in graph.operators
    )
    return dict(counts.most_common())


def max_rank(path) -> int:
    """Returns the highest rank of any tensor; GPU delegates refuse more than 4."""
    model = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes())
    return max(
        len(tensor.shape)
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.shape is not None
    )


def refuse_custom_ops(ops: dict[str, int]) -> None:
    """Raises a ValueError if any operation is not one of TFLite's own."""
    custom = sorted(set(ops) - set(_OP_NAMES.values()))
    if custom:
        raise ValueError(
            f"The file needs operations that TFLite does not have: {', '.join(custom)}."
        )
