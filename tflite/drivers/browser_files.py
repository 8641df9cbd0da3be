"""Reads the files that the page measures, and what the page must know about them."""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tflite.drivers.browser_results import MAX_OUTPUTS, MAX_TEXT, PageFile

if TYPE_CHECKING:
    from keras_mobilevit.litert import LiteRTModel

IMAGE_TYPES = REAL_TYPES = ("float32", "int8", "uint8")
EXPECTED = (
    "Expected a classifier with one output (1, classes), or a detector with boxes "
    "(1, n, 4) and scores (1, n, classes), or with boxes (1, n, 4), scores (1, n) and "
    "classes (1, n), or a segmenter with logits (1, rows, columns, classes), or "
    "with uint8 classes (1, height, width) of its images."
)
OUTPUT_TYPES = {  # by task and output; all others have `REAL_TYPES`
    ("detection", "classes"): ("float32", "int32"),
    ("segmentation", "classes"): ("uint8",),
}
# Between compared values. A prime: a step with a factor in common with the number of
# classes would skip some classes.
OUTPUT_STEP = 1_000_003
# Value i of the test image is (SQUARE * i^2 + LINEAR * i) mod 256.
TEST_IMAGE = {"square": 31, "linear": 17}
NUM_COLORS = 256  # more classes repeat them


def page_constants() -> dict[str, Any]:
    """Returns constants that Python and the page share."""
    from keras_mobilevit.drawing import BACKGROUND, OPACITY, class_color

    return {
        "max_outputs": MAX_OUTPUTS,
        "output_step": OUTPUT_STEP,
        "test_image": TEST_IMAGE,
        "max_text": MAX_TEXT,
        "drawing": {
            "colors": [class_color(label) for label in range(NUM_COLORS)],
            "opacity": OPACITY,
            "background": BACKGROUND,
        },
    }


def nms_options(card: dict) -> dict[str, Any]:
    """Returns the options of non-maximum suppression that the page applies."""
    from keras_mobilevit import detection

    options = {
        "iou_threshold": detection.IOU_THRESHOLD,
        "pre_nms_top_k": detection.PRE_NMS_TOP_K,
        "max_detections": detection.MAX_DETECTIONS,
    } | card.get("nms", {})
    if "candidates" in options:  # the name in older cards
        options["pre_nms_top_k"] = options.pop("candidates")
    return options


def make_test_image(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the image that the page measures with, values in [0, 255]."""
    index = np.arange(math.prod(shape), dtype=np.int64)
    values = TEST_IMAGE["square"] * index**2 + TEST_IMAGE["linear"] * index
    return (values % 256).reshape(shape).astype(np.float32)


def _describe_tensor(details: dict) -> dict[str, Any]:
    scale, zero_point = details["quantization"]
    return {
        "shape": [int(side) for side in details["shape"]],
        "dtype": np.dtype(details["dtype"]).name,
        "scale": float(scale),
        "zero_point": int(zero_point),
    }


def _is_detector(outputs: dict[str, list[int]]) -> bool:
    """Returns whether the outputs with these shapes are a detector's."""
    boxes = outputs.get("boxes", [])
    if len(boxes) != 3 or boxes[::2] != [1, 4]:
        return False
    if set(outputs) == {"boxes", "scores"}:
        return len(outputs["scores"]) == 3 and outputs["scores"][:2] == boxes[:2]
    expected = {"boxes": boxes, "scores": boxes[:2], "classes": boxes[:2]}
    return outputs in (expected, expected | {"count": [1]})


def _is_segmenter(outputs: dict[str, list[int]], image: list[int]) -> bool:
    """Returns whether the outputs with these shapes are a segmenter's."""
    if set(outputs) == {"logits"}:
        return len(outputs["logits"]) == 4 and outputs["logits"][0] == 1
    return outputs == {"classes": image[:3]}


def _task(path: str, outputs: list[dict], image: list[int]) -> str:
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


def _check_input(path: str, model: "LiteRTModel") -> None:
    shape, dtype = model.input_shape, np.dtype(model.input["dtype"]).name
    if dtype not in IMAGE_TYPES:
        raise ValueError(
            f"{path} takes {dtype} images. Expected {' or '.join(IMAGE_TYPES)}."
        )
    if len(shape) != 4 or shape[0] != 1 or shape[-1] != 3:
        raise ValueError(
            f"{path} takes {shape}. Expected one RGB image: (1, height, width, 3)."
        )


def _compared_values(path: str, outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns at most `MAX_OUTPUTS` values, which the browser's are compared with."""
    if not all(np.all(np.isfinite(x)) for x in outputs.values()):
        raise ValueError(f"{path} returns NaN or infinite values.")
    if {"classes", "scores"} <= set(outputs):
        # A list of objects: those with equal scores may change places.
        outputs = {"scores": outputs["scores"]}
    values = np.concatenate([x.ravel() for x in outputs.values()])
    if values.size <= MAX_OUTPUTS:
        return values
    return values[np.arange(MAX_OUTPUTS, dtype=np.int64) * OUTPUT_STEP % values.size]


def read_file(path: str, index: int) -> PageFile:
    """Reads a `.tflite` and the optional card beside it, and runs it once.

    `index` names the file in the page's addresses.
    """
    from keras_mobilevit.litert import LiteRTModel, read_card  # loads Keras

    content = Path(path).read_bytes()
    model = LiteRTModel(path)
    card = read_card(path)
    _check_input(path, model)
    outputs = [
        {"name": name} | _describe_tensor(details)
        for name, details in model.outputs.items()
    ]
    largest = card.get("input", {}).get("largest_value", 255)
    image_input = _describe_tensor(model.input)
    description = {
        "name": Path(path).name,
        "url": f"files/{index}.tflite",
        "task": _task(path, outputs, image_input["shape"]),
        "input": image_input | {"largest_value": largest},
        "outputs": outputs,
        "labels": card.get("labels", []),
        "crop": card.get("crop", 1.0),
        "nms": nms_options(card),
        "activation": card.get("activation", ""),
        "align_corners": card.get("align_corners", False),
    }
    image = make_test_image(model.input_shape) * np.float32(largest / 255)
    return PageFile(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        content=content,
        description=description,
        outputs=_compared_values(path, model.predict(image)),
    )
