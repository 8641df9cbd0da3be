"""What a page posts, checked: nothing that a stranger sends gets further."""

import dataclasses
import json
import re

import numpy as np

from tflite.drivers.measurement import (
    NOT_MEASURED,
    Measurement,
    printable,
    summary,
)

ACCELERATORS = ("wasm", "webgpu")
MAX_THREADS = 256
MAX_RUNS = 10_000
MAX_OUTPUTS = 4096  # as in tflite/web/runtime.js
MAX_OUTPUT = 1e30
MAX_TEXT = 500
MAX_MS = 1e7
# Of the largest output, or of the pixels of a class map: more is another network, also
# in the 16 bits of a GPU.
TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrowserMeasurement(Measurement):
    """One file's latency in a browser.

    `accelerator` is `wasm` or `webgpu`; `init_ms` is loading the file's bytes into a
    model that is ready to run, without the download.

    Attributes:
        user_agent: by which the browser calls itself.
        gpu: by which it calls the GPU, if it tells.
        has_fine_clock: whether the page was isolated, and its clock so to be trusted
            with less than a millisecond.
        max_abs_difference: of an output from LiteRT's on this machine, for a test
            picture. Of a class map, whose numbers are no amounts, the part of the
            pixels with another class: a few at borders change it with any rounding.
        max_abs_output: largest output of LiteRT's there; 1 of a class map.
        classes_compared: how many classes LiteRT finds there, of a file that returns a
            class map.
        unlabelled_class: one that has no label, if such a file returns any: an argmax
            on WebGPU took the zeros that fill up the logits for a class.
        visit: of the page, random; what it measures twice has another.
    """

    runtime: str = "litert.js"
    user_agent: str = ""
    gpu: str = ""
    has_fine_clock: bool | None = None
    max_abs_difference: float | None = None
    max_abs_output: float | None = None
    classes_compared: int | None = None
    unlabelled_class: int | None = None
    visit: str = ""

    def notes(self) -> list[str]:
        found = super().notes()
        if self.has_fine_clock is False:
            found.append("the clock is coarse: the page is not on HTTPS or localhost")
        return found + self._notes_on_outputs()

    def _notes_on_outputs(self) -> list[str]:
        found = []
        if self.classes_compared == 1:
            found.append("the test picture has one class, so that it compares little")
        if self.unlabelled_class is not None:
            found.append(
                f"it returns class {self.unlabelled_class}, which has no label"
            )
        difference, largest = self.max_abs_difference, self.max_abs_output
        if difference is not None and difference > TOLERANCE * largest:
            found.append(
                f"{100 * difference:.3g} % of its pixels differ from LiteRT's in class"
                if self.classes_compared
                else f"its outputs differ from LiteRT's by up to {difference:.3g}, "
                f"where the largest is {largest:.3g}"
            )
        return found


@dataclasses.dataclass(frozen=True)
class PageFile:
    """A file that the page measures.

    Attributes:
        path: of the `.tflite`.
        sha256: of its content.
        content: that is served, whatever becomes of the file.
        description: what the page is told of it.
        outputs: LiteRT's for the test picture, as real values: one output after the
            other, some of the values if there are many. Of a list of objects only the
            scores: those that score alike may trade places.
    """

    path: str
    sha256: str
    content: bytes
    description: dict
    outputs: np.ndarray

    @property
    def is_class_map(self) -> bool:
        """Whether the outputs are the classes of pixels."""
        names = [output["name"] for output in self.description["outputs"]]
        return self.description["task"] == "segmentation" and names == ["classes"]


def _number(result: dict, name: str) -> float:
    value = result.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is no number.")
    if not 0 <= value <= MAX_MS:
        raise ValueError(f"{name} is {value}. Expected 0 to {MAX_MS:g}.")
    return float(value)


def _numbers(result: dict, name: str, most: int, low: float, high: float) -> list:
    values = result.get(name)
    if not isinstance(values, list) or not 1 <= len(values) <= most:
        raise ValueError(f"{name} is no list of 1 to {most} numbers.")
    if not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{name} has something else than numbers.")
    if not all(low <= value <= high for value in values):
        raise ValueError(f"{name} has something outside {low:g} to {high:g}.")
    return values


def _text(result: dict, name: str) -> str:
    value = result.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{name} is no text of at most {MAX_TEXT} characters.")
    return printable(value)


def _num_threads(result: dict) -> int:
    value = result.get("num_threads")
    if type(value) is not int or not 1 <= value <= MAX_THREADS:
        raise ValueError(f"num_threads is no number from 1 to {MAX_THREADS}.")
    return value


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number.")


def _device_name(device: dict) -> str:
    """Names a device and its browser."""
    user_agent = _text(device, "user_agent")
    system = re.search(r"\(([^)]*)\)", user_agent)
    name = _text(device, "platform") or (system[1] if system else "")
    known = re.findall(r"(Edg|Chrome|CriOS|Firefox|Version)/(\d+)", user_agent)
    browser = " ".join(known[-1]).replace("Version", "Safari") if known else ""
    return ", ".join(filter(None, [_text(device, "model"), name, browser]))


def _comparison(file: PageFile, outputs: np.ndarray) -> dict:
    """Returns the fields that say how outputs differ from LiteRT's."""
    if file.is_class_map:
        labels, last = len(file.description["labels"]), int(outputs.max())
        return {
            "max_abs_difference": float(np.mean(outputs != file.outputs)),
            "max_abs_output": 1.0,
            "classes_compared": len(np.unique(file.outputs)),
            "unlabelled_class": last if labels and last >= labels else None,
        }
    return {
        "max_abs_difference": float(np.abs(outputs - file.outputs).max()),
        "max_abs_output": float(np.abs(file.outputs).max()),
    }


def parse_result(content: bytes, files: list[PageFile]):
    """Checks what a page posted.

    Args:
        content: of the request.
        files: those that the page got.

    Returns:
        A `BrowserMeasurement`.

    Raises:
        ValueError: if it is anything that the page would not post.
    """
    try:
        result = json.loads(content, parse_constant=_refuse_constant)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"The result is no JSON: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("device"), dict):
        raise ValueError("The result is no object with a device.")
    index, accelerator = result.get("file"), result.get("accelerator")
    if type(index) is not int or not 0 <= index < len(files):
        raise ValueError(f"There is no file {index!r}.")
    if accelerator not in ACCELERATORS:
        raise ValueError(f"There is no accelerator {accelerator!r}.")
    file, device = files[index], result["device"]
    common = {
        "file": file.path,
        "sha256": file.sha256,
        "accelerator": accelerator,
        "num_threads": _num_threads(result) if accelerator == "wasm" else None,
        "visit": _text(result, "visit"),
        "device_id": _text(result, "browser"),
        "device": _device_name(device),
        "user_agent": _text(device, "user_agent"),
        "gpu": _text(device, "gpu"),
    }
    if error := _text(result, "error"):
        return BrowserMeasurement(status=NOT_MEASURED, reason=error, **common)
    times = _numbers(result, "times_ms", MAX_RUNS, 0, MAX_MS)
    outputs = _numbers(result, "output", MAX_OUTPUTS, -MAX_OUTPUT, MAX_OUTPUT)
    outputs = np.array(outputs, np.float64)
    if outputs.shape != file.outputs.shape:
        raise ValueError(
            f"output has {outputs.size} values. Expected: {file.outputs.size}."
        )
    return BrowserMeasurement(
        has_fine_clock=result.get("has_fine_clock") is True,
        init_ms=_number(result, "init_ms"),
        first_ms=_number(result, "first_ms"),
        warmup_ms=_number(result, "warmup_ms"),
        fully_accelerated=result.get("fully_accelerated") is True,
        **_comparison(file, outputs),
        **common,
        **summary(times),
    )
