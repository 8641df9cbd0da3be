"""Adds metadata and files to a `.tflite` file.

The metadata is an entry of the model's FlatBuffer. Files follow the FlatBuffer as a
ZIP archive, which a reader finds from the end of the file.
"""

import io
import zipfile
from collections.abc import Mapping

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

ENTRY = "TFLITE_METADATA"
# A fixed date, so that the same model gives the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def read_model(content: bytes) -> schema.ModelT:
    """Reads a model with all of its weights.

    The quantizer puts large weights behind the FlatBuffer, where `InitFromPackedBuf`
    does not look for them.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for buffer in model.buffers:
        if isinstance(buffer.data, bytearray):  # slow to encode byte by byte
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    return model


def write_model(model: schema.ModelT) -> bytes:
    """Encodes a model; all of its weights are inside the FlatBuffer."""
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def output_names(content: bytes) -> list[str]:
    """Returns the names of the outputs in the signature, in the order of the graph."""
    model = read_model(content)
    names: dict[int, list[str]] = {}
    for output in model.signatureDefs[0].outputs:
        names.setdefault(output.tensorIndex, []).append(output.name.decode())
    # A tensor that is returned twice has two names.
    return [names[index].pop(0) for index in model.subgraphs[0].outputs]


def input_shape(content: bytes) -> tuple[int, ...]:
    """Returns the shape of a model's only input."""
    (graph,) = read_model(content).subgraphs
    return tuple(int(side) for side in graph.tensors[graph.inputs[0]].shape)


def add_entry(content: bytes, name: str, value: bytes) -> bytes:
    """Adds an entry to the metadata of a model."""
    model = read_model(content)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(value, np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name.encode(), len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    return write_model(model)


def append_files(content: bytes, files: Mapping[str, str]) -> bytes:
    """Appends texts as files, `{name: text}`.

    They are not compressed, because readers on phones map them into memory.
    """
    if not files:
        return content
    target = io.BytesIO(content)
    with zipfile.ZipFile(target, "a") as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system = 0  # or the bytes would depend on the system
            archive.writestr(info, text.encode())
    return target.getvalue()
