"""Checks the structure of a `.tflite` file before LiteRT reads it.

LiteRT trusts the offsets in a file: a damaged one can end the process without a word,
or take all memory. Files of any converter are accepted.
"""

import math
import os
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


def _walk(content: bytes) -> list[list[int]]:
    """Reads all that a file holds except its weights; returns the tensors' shapes."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    buffers = model.BuffersLength()
    for index in range(buffers):
        _check_weights(model.Buffers(index), len(content))
    for index in range(model.OperatorCodesLength()):
        schema.OperatorCodeT.InitFromObj(model.OperatorCodes(index))
    for index in range(model.MetadataLength()):
        schema.MetadataT.InitFromObj(model.Metadata(index))
    for index in range(model.SignatureDefsLength()):
        schema.SignatureDefT.InitFromObj(model.SignatureDefs(index))
    # A graph whose outputs are constant has no operators.
    if not (buffers and model.SubgraphsLength()):
        raise ValueError("an empty model")
    shapes = []
    for index in range(model.SubgraphsLength()):
        graph = schema.SubGraphT.InitFromObj(model.Subgraphs(index))
        for tensor in graph.tensors:
            if not 0 <= tensor.buffer < buffers:
                raise IndexError(tensor.buffer)
            tensor.name.decode("utf-8")
            shapes.append([] if tensor.shape is None else list(map(int, tensor.shape)))
        _check_indices(graph)
    if not shapes:
        raise ValueError("graphs without tensors")
    return shapes


def _check_weights(buffer: Any, size: int) -> None:
    if not buffer.DataIsNone():
        buffer.DataAsNumpy()  # a view; an error if it leaves the file
    if buffer.Offset() + buffer.Size() > size:  # weights that follow the model
        raise IndexError(buffer.Offset())


def _check_indices(graph: Any) -> None:
    """Checks that operators name tensors of their graph; -1 is an absent input."""
    lists = [graph.inputs, graph.outputs]
    for operator in graph.operators or []:
        lists += [operator.inputs, operator.outputs]
    for found in lists:
        values = np.array([] if found is None else found)
        if values.size and not -1 <= values.min() <= values.max() < len(graph.tensors):
            raise IndexError(values)
