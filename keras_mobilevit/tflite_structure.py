"""Checks the structure of a `.tflite` file before LiteRT reads it.

LiteRT trusts the offsets in a file: a damaged one can end the process without a word,
or take all memory. Files of any converter are accepted.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_mobilevit.files import check_file

IDENTIFIER = b"TFL3"  # at the bytes 4 to 7
MAX_FILE_BYTES = 2**31  # the offsets in a FlatBuffer reach no further
# Four bytes for each value. The largest of this project's networks, a segmenter of
# MobileViTv2 in its widest form at 512x512 pixels, stay below a quarter of both.
MAX_TENSOR_BYTES = 2**29
MAX_TOTAL_BYTES = 2**32
MAX_SIDES = 32  # of a tensor; LiteRT's operations take at most eight
# What a file lists, unpacked. One part of a file may be listed any number of times, so
# a few kilobytes can list millions of tensors. The networks of this project have some
# 1,500 tensors and operations.
TABLE_BYTES = 1000  # of a tensor or an operation, about
MAX_LISTED_BYTES = 10**8


def check_structure(path: str | os.PathLike) -> None:
    """Raises a ValueError if a file is not a whole TFLite model."""
    check_file(path, MAX_FILE_BYTES)
    content = Path(path).read_bytes()
    if content[4:8] != IDENTIFIER:
        raise ValueError(
            f"{path} is not a TFLite model. Expected a file of tflite/convert.py or of "
            "another TFLite converter."
        )
    try:
        shapes = _walk(content)
    except _TooMuchError as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # any type: an offset may lead to any value
        raise ValueError(
            f"{path} is not a TFLite model, or is damaged. Copy or convert it again."
        ) from error
    sizes = [4 * math.prod(map(abs, shape)) for shape in shapes]  # unknown sides: -1
    for found, most, what in (
        (max(sizes), MAX_TENSOR_BYTES, "a tensor"),
        (sum(sizes), MAX_TOTAL_BYTES, "its tensors"),
    ):
        if found > most:
            raise ValueError(
                f"{path}: {what} would take {found / 1e6:,.0f} MB. Expected at most "
                f"{most / 1e6:,.0f} MB. The file is damaged, or is not for a phone."
            )


class _TooMuchError(ValueError):
    """Tells that a file lists too much to unpack it."""


def _walk(content: bytes) -> list[list[int]]:
    """Reads all that a file holds except its weights; returns the tensors' shapes."""
    from ai_edge_litert import schema_py_generated as schema

    shapes = []
    listed = 0
    for part in _parts(schema.Model.GetRootAs(content, 0), len(content)):
        listed += _unpacked_bytes(part)
        if listed > MAX_LISTED_BYTES:
            raise _TooMuchError(
                f"lists more than {MAX_LISTED_BYTES / 1e6:,.0f} MB of tensors, "
                "operations and names. The file is damaged, or is not for a phone. "
                "Copy or convert it again."
            )
        if isinstance(part, schema.TensorT):
            shapes.append([] if part.shape is None else list(map(int, part.shape)))
    if not shapes:
        raise ValueError("graphs without tensors")
    return shapes


def _parts(model: Any, size: int) -> Iterator[Any]:
    """Unpacks a model of `size` bytes, one part after the other."""
    from ai_edge_litert import schema_py_generated as schema

    buffers = model.BuffersLength()
    for index in range(buffers):
        _check_weights(model.Buffers(index), size)
    for index in range(model.OperatorCodesLength()):
        yield schema.OperatorCodeT.InitFromObj(model.OperatorCodes(index))
    for index in range(model.MetadataLength()):
        yield schema.MetadataT.InitFromObj(model.Metadata(index))
    for index in range(model.SignatureDefsLength()):
        yield from _signature_parts(model.SignatureDefs(index))
    # A graph whose outputs are constant has no operators.
    if not (buffers and model.SubgraphsLength()):
        raise ValueError("an empty model")
    for index in range(model.SubgraphsLength()):
        yield from _graph_parts(model.Subgraphs(index), buffers)


def _signature_parts(signature: Any) -> Iterator[Any]:
    from ai_edge_litert import schema_py_generated as schema

    yield signature.SignatureKey()
    for index in range(signature.InputsLength()):
        yield schema.TensorMapT.InitFromObj(signature.Inputs(index))
    for index in range(signature.OutputsLength()):
        yield schema.TensorMapT.InitFromObj(signature.Outputs(index))


def _graph_parts(graph: Any, buffers: int) -> Iterator[Any]:
    from ai_edge_litert import schema_py_generated as schema

    if graph.TensorsIsNone():
        raise ValueError("a graph without tensors")
    tensors = graph.TensorsLength()
    ends = [
        None if graph.InputsIsNone() else graph.InputsAsNumpy(),
        None if graph.OutputsIsNone() else graph.OutputsAsNumpy(),
    ]
    yield [graph.Name(), *ends]
    for index in range(tensors):
        tensor = schema.TensorT.InitFromObj(graph.Tensors(index))
        if not 0 <= tensor.buffer < buffers:
            raise IndexError(tensor.buffer)
        if tensor.shape is not None and len(tensor.shape) > MAX_SIDES:
            raise ValueError(f"{len(tensor.shape)} sides")
        tensor.name.decode("utf-8")
        yield tensor
    for found in ends:
        _check_indices(found, tensors)
    for index in range(graph.OperatorsLength()):
        operator = schema.OperatorT.InitFromObj(graph.Operators(index))
        _check_indices(operator.inputs, tensors)
        _check_indices(operator.outputs, tensors)
        yield operator


def _unpacked_bytes(part: Any) -> int:
    """Returns about how much memory an unpacked part takes."""
    if isinstance(part, bytes):
        return len(part)
    if isinstance(part, list):
        return sum(map(_unpacked_bytes, part))
    if isinstance(part, np.ndarray):
        return part.size  # a view of the file: it only takes time
    if hasattr(part, "__dict__"):
        return TABLE_BYTES + sum(map(_unpacked_bytes, vars(part).values()))
    return 0


def _check_weights(buffer: Any, size: int) -> None:
    if not buffer.DataIsNone():
        buffer.DataAsNumpy()  # a view; an error if it leaves the file
    if buffer.Offset() + buffer.Size() > size:  # weights that follow the model
        raise IndexError(buffer.Offset())


def _check_indices(found: np.ndarray | None, tensors: int) -> None:
    """Checks that a list names tensors of its graph; -1 is an absent input."""
    values = np.array([] if found is None else found)
    if values.size and not -1 <= values.min() <= values.max() < tensors:
        raise IndexError(values)
