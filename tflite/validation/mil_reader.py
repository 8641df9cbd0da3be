"""Reads the MIL program and the weights of a saved `.mlpackage`.

It parses the published protocol buffers and the layout of the weight file, and asks
nothing of the converter. So it sees what is in the package, not what the converter
meant to write.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from coremltools.proto import MIL_pb2, Model_pb2, NonMaximumSuppression_pb2

from tflite.validation.metadata_keys import CLASS_COUNT, PREVIEW_LABELS

_TYPES = MIL_pb2.DataType
DTYPES = {
    _TYPES.Value(dtype.__name__.upper()): dtype
    for dtype in (
        *(np.float16, np.float32, np.int8, np.int16, np.int32, np.int64),
        *(np.uint8, np.uint16, np.uint32),
    )
} | {_TYPES.BOOL: np.bool_, _TYPES.STRING: np.str_}
# Integers of fewer than 8 bits are packed, the lowest bits first.
PACKED_BITS = {_TYPES.Value(f"UINT{bits}"): bits for bits in (1, 2, 3, 4, 6)}
OPSET_IOS = {"CoreML6": 16, "CoreML7": 17, "CoreML8": 18, "CoreML9": 26}
BLOB_SENTINEL = 0xDEADBEEF  # the first field of each weight's header
BLOB_HEADER = np.dtype(
    [("sentinel", "<u4"), ("dtype", "<u4"), ("bytes", "<u8"), ("offset", "<u8")]
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program, such as `conv`.

    `inputs` has the names of values, or a constant array, by parameter. `dtypes` and
    `ranks` are those of the outputs; the type of a dictionary is `None`.
    """

    kind: str
    inputs: dict[str, list[str] | np.ndarray]
    outputs: tuple[str, ...]
    dtypes: tuple[type | None, ...]
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """The main function of a package.

    `description` has the package's inputs, outputs and metadata. `opset` is a key of
    `OPSET_IOS`. `operations` lacks the constants. `nms` is a detector's non-maximum
    suppression, which takes the outputs. `classes` is empty for a classifier.
    """

    description: Model_pb2.ModelDescription
    opset: str
    constants: dict[str, np.ndarray]
    operations: list[Operation]
    input: str
    outputs: tuple[str, ...]
    nms: NonMaximumSuppression_pb2.NonMaximumSuppression | None = None
    classes: tuple[str, ...] = ()


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpacks the first `count` unsigned integers of `bits` bits to uint8."""
    stream = np.unpackbits(packed.view(np.uint8), bitorder="little")
    values = stream[: count * bits].reshape(count, bits)
    return np.packbits(values, axis=1, bitorder="little")[:, 0]


def _shape(tensor_type) -> tuple[int, ...]:
    return tuple(d.constant.size for d in tensor_type.dimensions)


def _decode(content: bytes, tensor_type) -> np.ndarray:
    shape, dtype = _shape(tensor_type), tensor_type.dataType
    if dtype in PACKED_BITS:
        packed = np.frombuffer(content, np.uint8)
        count = int(np.prod(shape))
        return unpack_bits(packed, PACKED_BITS[dtype], count).reshape(shape)
    if dtype not in DTYPES:
        raise ValueError(f"Weights of the type {_TYPES.Name(dtype)} are not supported.")
    return np.frombuffer(content, DTYPES[dtype]).reshape(shape)


class _Decoder:
    """Decodes the values of one package; paths of weight files start at `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, bytes] = {}

    def _blob(self, value) -> bytes:
        name = value.blobFileValue.fileName.removeprefix("@model_path/")
        if name not in self.files:
            file = self.folder / name
            self.files[name] = file.read_bytes() if file.is_file() else b""
        content, offset = self.files[name], value.blobFileValue.offset
        if offset + BLOB_HEADER.itemsize <= len(content):
            (header,) = np.frombuffer(content, BLOB_HEADER, 1, offset)
            start, end = int(header["offset"]), int(header["offset"] + header["bytes"])
            if header["sentinel"] == BLOB_SENTINEL and end <= len(content):
                return content[start:end]
        raise ValueError(f"{self.folder / name} is missing, truncated or damaged.")

    def value(self, value) -> np.ndarray:
        """Returns a constant as an array."""
        if value.type.WhichOneof("type") == "listType":  # class names
            items = value.immediateValue.list.values
            return np.array([self.value(item) for item in items])
        tensor_type = value.type.tensorType
        if value.WhichOneof("value") == "blobFileValue":
            return _decode(self._blob(value), tensor_type)
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind == "bytes":
            return _decode(tensor.bytes.values, tensor_type)
        values = getattr(tensor, kind).values
        dtype = DTYPES[tensor_type.dataType]
        return np.array(list(values), dtype).reshape(_shape(tensor_type))

    def operation(self, spec) -> Operation:
        """Returns an operation with its constant inputs as arrays."""
        inputs: dict[str, list[str] | np.ndarray] = {
            name: self.value(value)
            for name, value in spec.attributes.items()
            if name != "name"
        }
        for name, argument in spec.inputs.items():
            bindings = argument.arguments
            if len(bindings) == 1 and bindings[0].WhichOneof("binding") == "value":
                inputs[name] = self.value(bindings[0].value)
            else:
                inputs[name] = [binding.name for binding in bindings]
        tensors = [output.type.tensorType for output in spec.outputs]
        return Operation(
            kind=spec.type,
            inputs=inputs,
            outputs=tuple(output.name for output in spec.outputs),
            dtypes=tuple(DTYPES.get(tensor.dataType) for tensor in tensors),
            ranks=tuple(tensor.rank for tensor in tensors),
        )


def _read_specification(package: Path) -> tuple[Model_pb2.Model, Path]:
    try:
        manifest = json.loads((package / "Manifest.json").read_text("utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        file = package / "Data" / entry["path"]
        specification = Model_pb2.Model()
        specification.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf raises types of its own
        raise ValueError(f"{package} is not a Core ML package: {error}") from error
    return specification, file.parent


def _find_program(specification, package: Path):
    """Returns a package's ML Program, and its non-maximum suppression or `None`."""
    models = specification.pipeline.models or [specification]
    kinds = [model.WhichOneof("Type") for model in models]
    if kinds == ["mlProgram"]:
        return models[0].mlProgram, None
    if kinds == ["mlProgram", "nonMaximumSuppression"]:
        return models[0].mlProgram, models[1].nonMaximumSuppression
    raise ValueError(
        f"{package} holds neither an ML Program nor an ML Program followed by "
        f"non-maximum suppression. Found: {', '.join(map(str, kinds))}."
    )


def _class_names(specification, nms) -> tuple[str, ...]:
    """Returns the names of the classes, without the labels of empty columns."""
    metadata = specification.description.metadata.userDefined
    if nms is None:
        preview = json.loads(metadata.get(PREVIEW_LABELS, "{}"))
        return tuple(preview.get("labels", ()))
    labels, count = nms.stringClassLabels.vector, metadata.get(CLASS_COUNT)
    return tuple(labels[: int(count)] if count else labels)


def read_program(package) -> Program:
    """Reads a `.mlpackage`.

    Raises a ValueError if it is not a Core ML package, or its weights are damaged.
    """
    specification, folder = _read_specification(Path(package))
    program, nms = _find_program(specification, Path(package))
    function = program.functions["main"]
    (image,) = function.inputs
    block = function.block_specializations[function.opset]
    decoder = _Decoder(folder)
    operations = [decoder.operation(spec) for spec in block.operations]
    return Program(
        description=specification.description,
        opset=function.opset,
        constants={
            operation.outputs[0]: np.asarray(operation.inputs["val"])
            for operation in operations
            if operation.kind == "const"
        },
        operations=[o for o in operations if o.kind != "const"],
        input=image.name,
        outputs=tuple(block.outputs),
        nms=nms,
        classes=_class_names(specification, nms),
    )
