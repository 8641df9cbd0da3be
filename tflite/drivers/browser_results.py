"""Checks what a page posts: anyone on the network may send anything."""

import collections
import dataclasses
import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from tflite.drivers.measurement import NOT_MEASURED, Measurement, printable, summarize

ACCELERATORS = ("wasm", "webgpu")
MAX_THREADS = 256
MAX_RUNS = 10_000
MAX_OUTPUTS = 4096  # values of the outputs that are compared
MAX_OUTPUT = 1e30
MAX_TEXT = 500  # characters
MAX_MS = 1e7
# A record has about a kilobyte, so these are 10 MB; a suite of 22 files on 100 devices
# has less than half.
MAX_RESULTS = 10_000
# A page can post this fast only that an accelerator is missing, once for each file.
PACE_S, MIN_PACE = 10, 60
# Relative to the largest output; or the fraction of a class map's pixels. A larger
# difference means that the network is wrong, even in the 16 bits of a GPU.
TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrowserMeasurement(Measurement):
    """Latency of one file in a browser.

    `accelerator` is `wasm` or `webgpu`. `init_ms` is the time to load a model from the
    file's bytes, without the download.
    """

    runtime: str = "litert.js"
    user_agent: str = ""  # name that the browser gives itself
    gpu: str = ""  # name that the browser gives the GPU
    has_fine_clock: bool | None = None  # below 1 ms, as the page was isolated
    # Largest difference from LiteRT's output on this machine, for a test image. For a
    # class map the fraction of pixels with another class; rounding changes a few pixels
    # at borders.
    max_abs_difference: float | None = None
    max_abs_output: float | None = None  # LiteRT's largest; 1 for a class map
    classes_compared: int | None = None  # classes in LiteRT's class map
    # A class without a label in the class map. WebGPU's argmax once took the zeros that
    # pad the logits for a class.
    unlabeled_class: int | None = None
    visit: str = ""  # random name of one measurement by one page

    def notes(self) -> list[str]:
        """Returns what a reader must know beside the numbers."""
        found = super().notes()
        if self.has_fine_clock is False:
            found.append("the clock is coarse: the page is not on HTTPS or localhost")
        if self.classes_compared == 1:
            found.append("the test image has one class: the comparison says little")
        if self.unlabeled_class is not None:
            found.append(f"class {self.unlabeled_class} of its output has no label")
        difference, largest = self.max_abs_difference, self.max_abs_output
        if difference is None or largest is None or difference <= TOLERANCE * largest:
            return found
        if self.classes_compared:
            found.append(
                f"{100 * difference:.3g} % of its pixels have another class than "
                "LiteRT's"
            )
        else:
            found.append(
                f"its outputs differ from LiteRT's by up to {difference:.3g}; the "
                f"largest output is {largest:.3g}"
            )
        return found


@dataclasses.dataclass(frozen=True)
class PageFile:
    """A file that the page measures."""

    path: str
    sha256: str
    content: bytes  # that the page downloads
    description: dict  # properties of the file for the page
    # LiteRT's real values for the test image, at most `MAX_OUTPUTS` of all outputs. For
    # a list of objects only the scores: objects with equal scores may change places.
    outputs: np.ndarray

    @property
    def is_class_map(self) -> bool:
        """Whether the output is the class of each pixel."""
        names = [output["name"] for output in self.description["outputs"]]
        return self.description["task"] == "segmentation" and names == ["classes"]


def _number(result: dict, name: str) -> float:
    value = result.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is not a number.")
    if not 0 <= value <= MAX_MS:
        raise ValueError(f"{name} is {value}. Expected 0 to {MAX_MS:g}.")
    return float(value)


def _numbers(
    result: dict, name: str, most: int, low: float, high: float
) -> list[float]:
    values = result.get(name)
    if not isinstance(values, list) or not 1 <= len(values) <= most:
        raise ValueError(f"{name} is not a list of 1 to {most} numbers.")
    if not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{name} has values that are not numbers.")
    if not all(low <= value <= high for value in values):
        raise ValueError(f"{name} has values outside {low:g} to {high:g}.")
    return values


def _text(result: dict, name: str) -> str:
    value = result.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{name} is not text of at most {MAX_TEXT} characters.")
    return printable(value)


def _num_threads(result: dict) -> int:
    value = result.get("num_threads")
    if type(value) is not int or not 1 <= value <= MAX_THREADS:
        raise ValueError(f"num_threads is not a number from 1 to {MAX_THREADS}.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number.")


def _device_name(device: dict) -> str:
    user_agent = _text(device, "user_agent")
    system = re.search(r"\(([^)]*)\)", user_agent)
    name = _text(device, "platform") or (system[1] if system else "")
    known = re.findall(r"(Edg|Chrome|CriOS|Firefox|Version)/(\d+)", user_agent)
    browser = " ".join(known[-1]).replace("Version", "Safari") if known else ""
    return ", ".join(filter(None, [_text(device, "model"), name, browser]))


def _comparison(file: PageFile, outputs: np.ndarray) -> dict:
    """Returns the fields that compare outputs with LiteRT's."""
    if file.is_class_map:
        labels, last = len(file.description["labels"]), int(outputs.max())
        return {
            "max_abs_difference": float(np.mean(outputs != file.outputs)),
            "max_abs_output": 1.0,
            "classes_compared": len(np.unique(file.outputs)),
            "unlabeled_class": last if labels and last >= labels else None,
        }
    return {
        "max_abs_difference": float(np.abs(outputs - file.outputs).max()),
        "max_abs_output": float(np.abs(file.outputs).max()),
    }


class ResultLimits:
    """Counts results, and refuses those that no page would post.

    A page posts one result for each file and accelerator. It measures them one after
    the other, and gives itself another name when it starts again.
    """

    def __init__(self, everything: int):
        self._pace = max(MIN_PACE, 2 * everything)  # results of an address in `PACE_S`
        self._seen: set[tuple[str, str, str]] = set()
        self._times: dict[str, collections.deque[float]] = {}
        self._lock = threading.Lock()

    def add(self, measurement: BrowserMeasurement, address: str, now: float) -> None:
        """Counts a result that came from an address; `now` is in seconds.

        Raises a ValueError if there are too many.
        """
        key = (measurement.visit, measurement.file, measurement.accelerator)
        with self._lock:
            if len(self._seen) >= MAX_RESULTS:
                raise ValueError(
                    f"There are {MAX_RESULTS} results, the maximum. Start the command "
                    "again."
                )
            if key in self._seen:
                raise ValueError("This page has posted this result before.")
            times = self._times.setdefault(address, collections.deque())
            while times and times[0] <= now - PACE_S:
                times.popleft()
            if len(times) >= self._pace:
                raise ValueError(
                    f"More than {self._pace} results in {PACE_S} seconds. Expected "
                    "those of one browser."
                )
            times.append(now)
            self._seen.add(key)


def parse_result(
    content: bytes,
    files: list[PageFile],
    accelerators: Sequence[str] = ACCELERATORS,
) -> BrowserMeasurement:
    """Reads a posted result; raises a ValueError if the page would not post this.

    `accelerators` are those that the page was asked to measure with.
    """
    try:
        result = json.loads(content, parse_constant=_refuse_constant)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"The result is not JSON: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("device"), dict):
        raise ValueError("The result is not an object with a device.")
    index, accelerator = result.get("file"), result.get("accelerator")
    if type(index) is not int or not 0 <= index < len(files):
        raise ValueError(f"There is no file {index!r}.")
    if accelerator not in accelerators:
        raise ValueError(
            f"There is no accelerator {accelerator!r}. Expected one of: "
            f"{', '.join(accelerators)}."
        )
    file, device = files[index], result["device"]
    common: dict[str, Any] = {
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
    if reason := _text(result, "error"):
        return BrowserMeasurement(status=NOT_MEASURED, reason=reason, **common)
    times = _numbers(result, "times_ms", MAX_RUNS, 0, MAX_MS)
    values = _numbers(result, "output", MAX_OUTPUTS, -MAX_OUTPUT, MAX_OUTPUT)
    outputs = np.array(values, np.float64)
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
        **summarize(times),
    )
