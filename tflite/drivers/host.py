"""Measures a `.tflite` on this machine with LiteRT's CPU runtime."""

import dataclasses
import hashlib
import multiprocessing
import os
import re
import time
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One file's latency; times in milliseconds, memory in MB (10**6 bytes).

    Attributes:
        file: path of the model.
        sha256: of the file.
        num_threads: CPU threads.
        runs: measured invocations.
        init_ms: from the file to a ready interpreter.
        first_ms: the first invocation.
        warmup_ms: mean of the following ones that are not measured.
        mean_ms, median_ms, p5_ms, p95_ms: of the measured invocations.
        peak_memory_mb: by how much loading and running raised the peak resident
            memory of a fresh process; `None` where the system does not tell.
        xnnpack_partitions: pieces of the graph that XNNPACK runs.
    """

    file: str
    sha256: str
    num_threads: int
    runs: int
    init_ms: float
    first_ms: float
    warmup_ms: float
    mean_ms: float
    median_ms: float
    p5_ms: float
    p95_ms: float
    peak_memory_mb: float | None
    xnnpack_partitions: int


def _peak_memory_mb() -> float | None:
    """Reads the peak of this process alone, which getrusage inherits from a parent."""
    status = Path("/proc/self/status")
    if not status.exists():  # Linux only
        return None
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    return int(line) * 1024 / 1e6


def _milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def _measure_here(path: str, num_threads: int, runs: int, warmup_runs: int, queue):
    try:
        queue.put(_measure(path, num_threads, runs, warmup_runs))
    except ValueError as error:
        queue.put(error)


def _measure(path: str, num_threads: int, runs: int, warmup_runs: int) -> Measurement:
    import ai_edge_litert.interpreter  # noqa: F401  loaded before the clock starts

    from train.litert import LiteRTModel

    memory = _peak_memory_mb()
    start = time.perf_counter()
    model = LiteRTModel(path, num_threads)
    init_ms = (time.perf_counter() - start) * 1e3
    # Any values do: the time of these operations does not depend on them.
    image = np.random.default_rng(0).uniform(0, 255, model.input_shape)
    image = image.astype(model.input["dtype"])

    def invoke():
        model.invoke(image)

    first_ms = _milliseconds(invoke)
    warmup = [_milliseconds(invoke) for _ in range(warmup_runs)]
    times = [_milliseconds(invoke) for _ in range(runs)]
    return Measurement(
        file=path,
        sha256=hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        num_threads=num_threads,
        runs=runs,
        init_ms=init_ms,
        first_ms=first_ms,
        warmup_ms=float(np.mean(warmup)),
        mean_ms=float(np.mean(times)),
        median_ms=float(np.median(times)),
        p5_ms=float(np.percentile(times, 5)),
        p95_ms=float(np.percentile(times, 95)),
        peak_memory_mb=None if memory is None else _peak_memory_mb() - memory,
        xnnpack_partitions=model.xnnpack_partitions(),
    )


def measure(
    path, num_threads: int = 1, runs: int = 50, warmup_runs: int = 5
) -> Measurement:
    """Measures a file in a process of its own, so that memory and start are its own.

    Args:
        path: of the `.tflite`.
        num_threads: CPU threads.
        runs: measured invocations, at least 1.
        warmup_runs: invocations before them, at least 1.

    Returns:
        The `Measurement`.

    Raises:
        ValueError: if the file is no TFLite model, or the machine has fewer threads.
        RuntimeError: if the process died.
    """
    if num_threads > os.cpu_count():
        raise ValueError(
            f"This machine has {os.cpu_count()} CPU threads. "
            f"Received: num_threads={num_threads}."
        )
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(
        target=_measure_here,
        args=(str(Path(path)), num_threads, runs, warmup_runs, queue),
    )
    process.start()
    result = None
    while result is None and (process.is_alive() or not queue.empty()):
        try:
            result = queue.get(timeout=1)
        except Exception as error:  # queue.Empty while the process still works
            if not process.is_alive() and queue.empty():
                raise RuntimeError(
                    f"Measuring {path} ended with exit code {process.exitcode}."
                ) from error
    process.join()
    if isinstance(result, ValueError):
        raise result
    if result is None:
        raise RuntimeError(f"Measuring {path} ended with code {process.exitcode}.")
    return result
