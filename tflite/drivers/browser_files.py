"""Reads the files that the page measures, and what the page has to know of them."""

import hashlib
import math
from pathlib import Path

import numpy as np

from keras_mobilevit.litert import LiteRTModel, read_card
from tflite.drivers.browser_results import MAX_OUTPUTS, PageFile

IMAGE_TYPES = REAL_TYPES = ("float32", "int8", "uint8")
EXPECTED = (
    "Expected a classifier with one output (1, classes), or a detector with boxes "
    "(1, n, 4) and scores (1, n, classes), or with boxes (1, n, 4), scores (1, n) and "
    "int32 classes (1, n), or a segmenter with logits (1, rows, columns, classes), or "
    "with uint8 classes (1, height, width) of its images."
)
OUTPUT_TYPES = {  # by task and output; of any other `REAL_TYPES`
    ("detection", "classes"): ("int32",),
    ("segmentation", "classes"): ("uint8",),
}
# A prime: a step that has a factor in common with the number of classes would leave
# out some of them. As in tflite/web/runtime.js.
STEP = 1_000_003


def test_pixels(shape) -> np.ndarray:
    """Returns the picture that the page measures with, values in [0, 255]."""
    index = np.arange(math.prod(shape), dtype=np.int64)
    return ((31 * index**2 + 17 * index) % 256).reshape(shape).astype(np.float32)


def _tensor(details: dict) -> dict:
    scale, zero_point = details["quantization"]
    return {
        "shape": [int(side) for side in details["shape"]],
        "dtype": np.dtype(details["dtype"]).name,
        "scale": float(scale),
        "zero_point": int(zero_point),
    }


def _is_detector(outputs: dict[str, list[int]]) -> bool:
    """Tells whether shapes, by the outputs' names, are those of a detector."""
    boxes = outputs.get("boxes", [])
    if len(boxes) != 3 or boxes[::2] != [1, 4]:
        return False
    if set(outputs) == {"boxes", "scores"}:
        return len(outputs["scores"]) == 3 and outputs["scores"][:2] == boxes[:2]
    expected = {"boxes": boxes, "scores": boxes[:2], "classes": boxes[:2]}
    return outputs == expected


def _is_segmenter(outputs: dict[str, list[int]], image: list[int]) -> bool:
    """Tells the same of a segmenter, for images of a shape."""
    if set(outputs) == {"logits"}:
        return len(outputs["logits"]) == 4 and outputs["logits"][0] == 1
    return outputs == {"classes": image[:3]}


def _task(path: str, outputs: list[dict], image: list[int]) -> str:
    """Returns the task of a file with these outputs: the page shows three."""
    shapes = {output["name"]: output["shape"] for output in outputs}
    if [(len(shape), shape[:1]) for shape in shapes.values()] == [(2, [1])]:
        task = "classification"
    elif _is_detector(shapes):
        task = "detection"
    elif _is_segmenter(shapes, image):
        task = "segmentation"
    else:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{path} returns {found}. {EXPECTED}")
    for output in outputs:
        types = OUTPUT_TYPES.get((task, output["name"]), REAL_TYPES)
        if output["dtype"] not in types:
            raise ValueError(
                f"{path} returns {output['name']} as {output['dtype']}. Expected "
                f"{' or '.join(types)}."
            )
    return task


def _check_input(path: str, model: LiteRTModel) -> None:
    shape, dtype = model.input_shape, np.dtype(model.input["dtype"]).name
    if dtype not in IMAGE_TYPES:
        raise ValueError(
            f"{path} takes {dtype} images. Expected {' or '.join(IMAGE_TYPES)}."
        )
    if len(shape) != 4 or shape[0] != 1 or shape[-1] != 3:
        raise ValueError(
            f"{path} takes {shape}. Expected one RGB image: (1, height, width, 3)."
        )


def _compared(path: str, outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the values that a browser's are compared with: some of many."""
    if not all(np.all(np.isfinite(x)) for x in outputs.values()):
        raise ValueError(f"{path} returns numbers that are not finite.")
    if {"classes", "scores"} <= set(outputs):
        # A list: objects that score alike may trade places.
        outputs = {"scores": outputs["scores"]}
    values = np.concatenate([x.ravel() for x in outputs.values()])
    if values.size <= MAX_OUTPUTS:
        return values
    return values[np.arange(MAX_OUTPUTS, dtype=np.int64) * STEP % values.size]


def read_file(path: str, index: int) -> PageFile:
    """Reads a `.tflite` and the card beside it, and runs it once.

    Args:
        path: of the file; the card is optional.
        index: of the file, in the addresses of the page.

    Raises:
        ValueError: if it is no classifier, detector or segmenter of one image.
    """
    content = Path(path).read_bytes()
    model = LiteRTModel(path)
    card = read_card(path)
    _check_input(path, model)
    outputs = [{"name": n} | _tensor(details) for n, details in model.outputs.items()]
    largest = card.get("input", {}).get("largest_value", 255)
    taken = _tensor(model.input)
    description = {
        "name": Path(path).name,
        "url": f"files/{index}.tflite",
        "task": _task(path, outputs, taken["shape"]),
        "input": taken | {"largest_value": largest},
        "outputs": outputs,
        "labels": card.get("labels", []),
        "crop": card.get("crop", 1.0),
        "nms": card.get("nms", {}),
        "activation": card.get("activation", ""),
    }
    image = test_pixels(model.input_shape) * np.float32(largest / 255)
    compared = _compared(path, model.predict(image))
    fingerprint = hashlib.sha256(content).hexdigest()
    return PageFile(path, fingerprint, content, description, compared)
