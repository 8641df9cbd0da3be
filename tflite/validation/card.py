"""The card of a converted file: what it takes, returns and consists of."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import keras_mobilevit
from keras_mobilevit.litert import LiteRTModel
from tflite.validation import op_stats
from tflite.validation.checksum import sha256

TFLITE_MAKERS = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer", "numpy")
COREML_MAKERS = ("coremltools", "keras", "numpy")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of packages, and of this one."""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"keras_mobilevit": keras_mobilevit.__version__, **found}


def _tensor(name: str, details, meaning: str) -> dict:
    described = {
        "name": name,
        "shape": [int(side) for side in details["shape"]],
        "dtype": np.dtype(details["dtype"]).name,
        "meaning": meaning,
    }
    scale, zero_point = details["quantization"]
    if scale:
        described |= {
            "scale": float(scale),
            "zero_point": int(zero_point),
            "quantization": "round(value / scale) + zero_point, clipped to the type",
        }
    return described


def _position(litert: LiteRTModel, details) -> dict:
    """Returns the index of an output in `get_output_details()`, if there are several.

    TFLite's order there is not that of the signature, which has the names.
    """
    order = [x["index"] for x in litert.interpreter.get_output_details()]
    return {"position": order.index(details["index"])} if len(order) > 1 else {}


def describe_file(path, meanings: dict[str, str], input_max: float) -> dict:
    """Returns a `.tflite` file's entries of the card.

    `meanings` describe the outputs; `input_max`, 255 or 1, is the images' largest
    value.
    """
    litert = LiteRTModel(path)
    colors = "gray" if litert.input_shape[-1] == 1 else "RGB"
    image = f"{colors} image, values in [0, {input_max:g}]"
    return {
        "input": _tensor("images", litert.input, image) | {"largest_value": input_max},
        "outputs": [
            _tensor(name, details, meanings[name]) | _position(litert, details)
            for name, details in litert.outputs.items()
        ],
        "ops": op_stats.count_ops(path),
        "float_ops": op_stats.count_float_ops(path),
        "foreign_ops": op_stats.custom_ops(op_stats.count_ops(path)),
        "max_rank": op_stats.max_rank(path),
        "xnnpack": {
            "partitions": litert.xnnpack_partitions(),
            "ops_outside": litert.ops_outside_xnnpack(),
        },
        "bytes": Path(path).stat().st_size,
        "sha256": sha256(path),
        "versions": versions(TFLITE_MAKERS),
    }


def _package_input(program) -> dict:
    (given,) = (i for i in program.description.input if i.name == program.input)
    image = given.type.imageType
    sizes = [(s.width, s.height) for s in image.enumeratedSizes.sizes]
    return {
        "name": given.name,
        "type": "image",
        "color": image.ColorSpace.Name(image.colorSpace),
        "default_size": [image.width, image.height],
        "sizes": sorted(map(list, sizes or [(image.width, image.height)])),
        "largest_value": 255,
    }


def _shape(array) -> list[int | None] | None:
    """Returns an output's shape, with `None` for sides that depend on the image."""
    ranges = array.shapeRange.sizeRanges
    if ranges:
        return [r.lowerBound if r.lowerBound == r.upperBound else None for r in ranges]
    return list(array.shape) or None


def _package_labels(program) -> list[str]:
    found = [o.inputs["classes"] for o in program.operations if o.kind == "classify"]
    return [str(label) for labels in [*found, program.classes] for label in labels]


def _package_nms(program) -> dict:
    nms = program.nms
    if nms is None:
        return {}
    described = {
        "where": "inside",
        "score_threshold": nms.confidenceThreshold,
        "iou_threshold": nms.iouThreshold,
        "per_class": nms.pickTop.perClass,
    }
    return {"nms": described}


# Operations that may run in float32 after a float16 network: decoding of boxes, and
# labels.
POSTPROCESSING = {
    *("add", "classify", "clip", "concat", "exp", "mul", "split", "squeeze", "sub")
}


def _casts(program) -> tuple[int, int]:
    """Counts the casts inside a program, and those at its ends.

    Core ML passes images, probabilities and boxes in float32.
    """
    ends = {program.input, *program.outputs}
    scaled = [o for o in program.operations if o.kind in ("mul", "add")]
    for operation in scaled:  # scaling of the pixels
        if operation.inputs["x"][0] in ends:
            ends.add(operation.outputs[0])
    for operation in reversed(program.operations):
        is_float32 = np.float16 not in operation.dtypes
        is_after = operation.kind in POSTPROCESSING and ends & {*operation.outputs}
        if is_after and is_float32:
            given = [x for x in operation.inputs.values() if isinstance(x, list)]
            ends.update(*given)
    casts = [o for o in program.operations if o.kind == "cast"]
    at_ends = [o for o in casts if ends & {*o.inputs["x"], *o.outputs}]
    return len(casts) - len(at_ends), len(at_ends)


def describe_package(path, meanings: dict[str, str], input_max: float) -> dict:
    """Describes a Core ML package; see `describe_file`."""
    from tflite.validation.mil_evaluator import unknown_operations
    from tflite.validation.mil_reader import OPSET_IOS, read_program

    program = read_program(path)
    casts, casts_at_ends = _casts(program)
    return {
        "input": _package_input(program),
        "outputs": [
            {
                "name": output.name,
                "type": output.type.WhichOneof("Type"),
                "shape": _shape(output.type.multiArrayType),
            }
            for output in program.description.output
        ],
        "network_returns": " and ".join(meanings),
        # A package without labels keeps the labels of the training.
        **({"labels": labels} if (labels := _package_labels(program)) else {}),
        **_package_nms(program),
        "ios": OPSET_IOS[program.opset],
        "ops": op_stats.count(operation.kind for operation in program.operations),
        "foreign_ops": unknown_operations(program),
        "casts": casts,
        "casts_at_ends": casts_at_ends,
        "max_rank": max(
            [rank for operation in program.operations for rank in operation.ranks]
            + [array.ndim for array in program.constants.values()]
        ),
        "bytes": sum(f.stat().st_size for f in Path(path).rglob("*") if f.is_file()),
        "sha256": sha256(path),
        "versions": versions(COREML_MAKERS),
    }
