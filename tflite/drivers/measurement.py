"""What a driver returns for a file, the same for all of them."""

import dataclasses

import numpy as np

MEASURED, NOT_MEASURED = "measured", "not measured"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One file's latency; times in milliseconds, memory in MB (10**6 bytes).

    What a driver does not learn is `None`.

    Attributes:
        file: path of the model.
        sha256: of its content.
        runtime: what ran it: `litert`, `onnxruntime`, `coreml`, ...
        accelerator: what the runtime could use: `cpu`, `gpu`, `npu`, ...
        num_threads: CPU threads.
        status: `measured` or `not measured`.
        reason: why not.
        device: name and system of the device.
        device_id: what tells it from another of that name, if anything does.
        runs: measured inferences.
        init_ms: from the file to a model that is ready to run.
        first_ms: the first inference.
        warmup_ms: mean of the following ones that are not measured.
        mean_ms, median_ms, p5_ms, p95_ms: of the measured ones.
        peak_memory_mb: by how much loading and running raised the peak.
        partitions: pieces of the graph that the delegate of the accelerator runs.
        fully_accelerated: whether nothing ran outside of it.
    """

    file: str
    sha256: str
    runtime: str
    accelerator: str = "cpu"
    num_threads: int | None = None
    status: str = MEASURED
    reason: str = ""
    device: str = ""
    device_id: str = ""
    runs: int = 0
    init_ms: float | None = None
    first_ms: float | None = None
    warmup_ms: float | None = None
    mean_ms: float | None = None
    median_ms: float | None = None
    p5_ms: float | None = None
    p95_ms: float | None = None
    peak_memory_mb: float | None = None
    partitions: int | None = None
    fully_accelerated: bool | None = None

    @property
    def variant(self) -> str:
        """What tells two measurements of a file apart."""
        parts = [self.runtime, self.accelerator]
        if self.num_threads is not None:
            parts.append(f"x{self.num_threads}")
        return " ".join(parts)

    def notes(self) -> list[str]:
        """What a reader must know beside the numbers."""
        parts = ["parts of it ran elsewhere"] if self.fully_accelerated is False else []
        return [self.reason, *parts] if self.reason else parts


def printable(text: str) -> str:
    """Drops what could steer a terminal, from words that come from elsewhere."""
    return "".join(character for character in text if character.isprintable())


def summary(times) -> dict:
    """Returns the fields of a `Measurement` that times in milliseconds give."""
    return {
        "runs": len(times),
        "mean_ms": float(np.mean(times)),
        "median_ms": float(np.median(times)),
        "p5_ms": float(np.percentile(times, 5)),
        "p95_ms": float(np.percentile(times, 95)),
    }
