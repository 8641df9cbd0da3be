"""The tables of TFLite's metadata schema, and their encoding as a FlatBuffer.

The attributes of each class are the fields of the table of the same name, in the order
of the schema: a FlatBuffer finds a field by its position. Fields that no file of this
project uses are left out at the end of a table.

Sources: `metadata_schema.fbs` (version 1.5.0) and `image_segmenter_metadata_schema.fbs`
in https://github.com/google-ai-edge/mediapipe/tree/master/mediapipe/tasks/metadata
"""

import dataclasses
import enum
from typing import Any

import flatbuffers
from flatbuffers import number_types

MODEL_IDENTIFIER = b"M001"
SEGMENTER_IDENTIFIER = b"V001"
PARSER_VERSION = "1.5.0"  # of the schema; older parsers do not know all fields


class FileType(enum.IntEnum):
    """`AssociatedFileType`: what a file beside the model is for."""

    TENSOR_AXIS_LABELS = 2  # the names of the places along the last axis
    TENSOR_VALUE_LABELS = 3  # the names of the values


class ColorSpace(enum.IntEnum):
    """`ColorSpaceType` of an image."""

    RGB = 1
    GRAYSCALE = 2


class BoxType(enum.IntEnum):
    """`BoundingBoxType`: the meaning of the four numbers of a box."""

    BOUNDARIES = 1  # left, top, right, bottom


class Activation(enum.IntEnum):
    """The function that a segmenter's application puts after the file's outputs."""

    SOFTMAX = 2


@dataclasses.dataclass(frozen=True)
class AssociatedFile:
    """A file that is appended to the model."""

    name: str
    description: str = ""
    type: FileType | None = None


@dataclasses.dataclass(frozen=True)
class FeatureProperties:
    """The content is numbers."""

    UNION_TYPE = 1


@dataclasses.dataclass(frozen=True)
class ImageSize:
    """The sides of an image in pixels."""

    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class ImageProperties:
    """The content is an image."""

    UNION_TYPE = 2
    color_space: ColorSpace
    default_size: ImageSize


@dataclasses.dataclass(frozen=True)
class BoundingBoxProperties:
    """The content is boxes; `index` has the places of the four numbers of `type`."""

    UNION_TYPE = 3
    index: tuple[int, ...]
    type: BoxType


@dataclasses.dataclass(frozen=True)
class Content:
    """The content of a tensor."""

    content_properties: FeatureProperties | ImageProperties | BoundingBoxProperties


@dataclasses.dataclass(frozen=True)
class NormalizationOptions:
    """The application passes `(pixel - mean) / std`, with pixels in [0, 255]."""

    UNION_TYPE = 1
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ProcessUnit:
    """A step before the model."""

    options: NormalizationOptions


@dataclasses.dataclass(frozen=True)
class Stats:
    """The largest and the smallest value of a tensor."""

    max: tuple[float, ...]
    min: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class TensorMetadata:
    """An input or an output."""

    name: str
    description: str = ""
    dimension_names: None = None
    content: Content = Content(FeatureProperties())
    process_units: tuple[ProcessUnit, ...] = ()
    stats: Stats | None = None
    associated_files: tuple[AssociatedFile, ...] = ()


@dataclasses.dataclass(frozen=True)
class CustomMetadata:
    """Metadata of another schema, encoded."""

    name: str
    data: bytes


@dataclasses.dataclass(frozen=True)
class SubGraphMetadata:
    """A graph; inputs and outputs have the order of the graph's own."""

    name: None = None
    description: None = None
    input_tensor_metadata: tuple[TensorMetadata, ...] = ()
    output_tensor_metadata: tuple[TensorMetadata, ...] = ()
    associated_files: None = None
    input_process_units: None = None
    output_process_units: None = None
    input_tensor_groups: None = None
    output_tensor_groups: None = None
    custom_metadata: tuple[CustomMetadata, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelMetadata:
    """A `.tflite` file."""

    name: str
    description: str
    version: str
    subgraph_metadata: tuple[SubGraphMetadata, ...]
    author: str
    license: str
    associated_files: None = None
    min_parser_version: str = PARSER_VERSION


@dataclasses.dataclass(frozen=True)
class ImageSegmenterOptions:
    """MediaPipe's own metadata of a segmenter."""

    activation: Activation
    min_parser_version: str = "1.0.0"


def encode(table: Any, identifier: bytes) -> bytes:
    """Encodes a table and all that it contains.

    Args:
        table: an instance of a class of this module.
        identifier: the four bytes that tell which schema it is.
    """
    builder = flatbuffers.Builder()
    builder.Finish(_add_table(builder, table), identifier)
    return bytes(builder.Output())


def _add_table(builder: flatbuffers.Builder, table: Any) -> int:
    """Writes a table; returns its offset, as all functions here do."""
    # What a table refers to is written before the table itself.
    slots: list[tuple[str, Any]] = []
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if hasattr(value, "UNION_TYPE"):
            slots.append(("Uint8", value.UNION_TYPE))
        if isinstance(value, enum.IntEnum):
            slots.append(("Int8", int(value)))
        elif isinstance(value, int):
            slots.append(("Uint32", value))
        else:
            slots.append(("UOffsetTRelative", _add_object(builder, value)))
    builder.StartObject(len(slots))
    for position, (kind, value) in enumerate(slots):
        if value is not None:
            getattr(builder, f"Prepend{kind}Slot")(position, value, 0)
    return builder.EndObject()


def _add_object(builder: flatbuffers.Builder, value: Any) -> int | None:
    """Writes a string, bytes, a vector or a table; `None` for an empty one."""
    if value is None or value in ("", b"", ()):
        return None
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, bytes):
        return _add_numbers(builder, tuple(value), number_types.Uint8Flags, 16)
    if isinstance(value, tuple):
        return _add_vector(builder, value)
    return _add_table(builder, value)


def _add_vector(builder: flatbuffers.Builder, values: tuple) -> int:
    if isinstance(values[0], float):
        return _add_numbers(builder, values, number_types.Float32Flags)
    if isinstance(values[0], int):
        return _add_numbers(builder, values, number_types.Uint32Flags)
    offsets = [_add_table(builder, value) for value in values]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _add_numbers(
    builder: flatbuffers.Builder, values: tuple, flags: Any, alignment: int = 1
) -> int:
    builder.StartVector(flags.bytewidth, len(values), max(flags.bytewidth, alignment))
    for value in reversed(values):  # a FlatBuffer is written from its end
        builder.Prepend(flags, value)
    return builder.EndVector()
