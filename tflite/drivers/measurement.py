"""The result of measuring one file, the same for all drivers."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

MEASURED, NOT_MEASURED = "measured", "not measured"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Latency of one file. Times are in milliseconds, memory in MB (10**6 bytes).

    A value that the driver does not know is `None`.
    """

    file: str
    sha256: str
    runtime: str  # `litert`, `onnxruntime`, `coreml`, ...
    accelerator: str = "cpu"  # what the runtime could use: `cpu`, `gpu`, ...
    num_threads: int | None = None
    status: str = MEASURED  # or `NOT_MEASURED`
    reason: str = ""  # why the file was not measured
    device: str = ""  # name and system
    device_id: str = ""  # distinguishes devices of the same name
    runs: int = 0  # the measured ones
    init_ms: float | None = None  # from the file to a model that is ready to run
    first_ms: float | None = None
    warmup_ms: float | None = None  # mean between the first and the measured runs
    mean_ms: float | None = None  # mean, median and percentiles: of the measured runs
    median_ms: float | None = None
    p5_ms: float | None = None
    p95_ms: float | None = None
    peak_memory_mb: float | None = None  # how much loading and running raised it
    partitions: int | None = None  # pieces of the graph that the delegate runs
    fully_accelerated: bool | None = None  # it runs every operation

    @property
    def variant(self) -> str:
        """Distinguishes measurements of the same file."""
        parts = [self.runtime, self.accelerator]
        if self.num_threads is not None:
            parts.append(f"x{self.num_threads}")
        return " ".join(parts)

    @property
    def name(self) -> str:
        """The file's name and the variant."""
        return f"{Path(self.file).name} {self.variant}"

    def notes(self) -> list[str]:
        """Returns what a reader must know beside the numbers."""
        notes = [self.reason] if self.reason else []
        if self.fully_accelerated is False:
            notes.append("the accelerator does not run every operation")
        return notes


def printable(text: str) -> str:
    """Removes characters that control a terminal from foreign text."""
    return "".join(character for character in text if character.isprintable())


def print_progress(measurement: Measurement) -> None:
    """Prints a result while others are still measured."""
    median = measurement.median_ms
    result = measurement.reason if median is None else f"{median:.2f} ms"
    text = f"{measurement.device}: {measurement.name}: {result}"
    tqdm.write(text, file=sys.stderr)


def summarize(times: Sequence[float]) -> dict:
    """Returns the fields of a `Measurement` for times in milliseconds."""
    return {
        "runs": len(times),
        "mean_ms": float(np.mean(times)),
        "median_ms": float(np.median(times)),
        "p5_ms": float(np.percentile(times, 5)),
        "p95_ms": float(np.percentile(times, 95)),
    }
