"""Measures files on this machine's CPU."""

import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tflite.drivers.measurement import NOT_MEASURED, Measurement, summarize
from tflite.drivers.options import RunOptions, option
from tflite.drivers.runtimes import RUNTIMES, runtimes_of
from tflite.validation.checksum import sha256


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostOptions(RunOptions):
    """Options of `--target=host`."""

    rounds: int = option(
        10,
        "Turns of each file. The runs are divided among them.",
        lower_bound=1,
    )


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A file and the runtime that runs it."""

    path: str
    runtime: str = "litert"  # key of `RUNTIMES`


def _device_name() -> str:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text("utf-8", "replace")
        found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
        processor = found[1] if found else processor
    return f"{processor}, {os.cpu_count()} threads, {platform.system()}"


def _peak_memory_mb() -> float | None:
    """Returns this process's peak. getrusage would include the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():  # Linux only
        return None
    text = status.read_text("utf-8", "replace")
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    return int(line) * 1024 / 1e6


def _milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


class _Failure(Exception):
    """Why a file is not measured."""


def _serve(connection: Connection, candidate: Candidate, options: HostOptions) -> None:
    """Loads a model and runs it on request, in its own process.

    Sends how the model was loaded and warmed up. Then answers each number with as many
    times, and `None` with the peak of the memory. Sends a `_Failure` if it fails.
    """
    try:
        _answer_requests(connection, candidate, options)
    except ValueError as error:
        connection.send(_Failure(str(error)))
    except Exception as error:  # each runtime has its own kinds
        connection.send(_Failure(f"{type(error).__name__}: {error}"))


def _answer_requests(
    connection: Connection, candidate: Candidate, options: HostOptions
) -> None:
    runtime = RUNTIMES[candidate.runtime]
    with contextlib.suppress(ImportError):  # `load` says what to install
        for module in runtime.modules:
            importlib.import_module(module)
    memory = _peak_memory_mb()
    start = time.perf_counter()
    session = runtime.load(candidate.path, options.num_threads)
    init_ms = (time.perf_counter() - start) * 1e3
    # The time of these operations does not depend on the values.
    image = np.random.default_rng(0).uniform(0, 255, session.input_shape)
    image = image.astype(session.dtype)

    def invoke() -> None:
        session.invoke(image)

    first_ms = _milliseconds(invoke)
    warmup = [_milliseconds(invoke) for _ in range(options.warmup_runs)]
    connection.send(
        {
            "init_ms": init_ms,
            "first_ms": first_ms,
            "warmup_ms": float(np.mean(warmup)),
            "partitions": session.xnnpack_partitions,
        }
    )
    while (runs := connection.recv()) is not None:
        invoke()  # other candidates have filled the caches
        connection.send([_milliseconds(invoke) for _ in range(runs)])
    peak = _peak_memory_mb()
    connection.send(None if memory is None or peak is None else peak - memory)


def _defect(candidate: Candidate) -> str:
    """Returns why LiteRT must not read a file, or nothing.

    The file is checked here, because in the worker the check would count as memory.
    """
    if candidate.runtime == "litert":
        from keras_mobilevit.tflite_structure import check_structure  # loads Keras

        # Without LiteRT, `load` says what to install.
        if importlib.util.find_spec("ai_edge_litert") is not None:
            try:
                check_structure(candidate.path)
            except (ValueError, OSError) as error:
                return str(error)
    return ""


class _Worker:
    """The process of one candidate. It waits between its rounds."""

    def __init__(self, candidate: Candidate, options: HostOptions):
        self.candidate, self.options = candidate, options
        self.times: list[float] = []
        self.start: dict[str, Any] = {}
        self.reason = _defect(candidate)  # why it measures no more
        context = multiprocessing.get_context("spawn")
        self.connection, remote = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(remote, candidate, options), daemon=True
        )
        if not self.reason:
            self.process.start()
        remote.close()

    def _receive(self) -> Any:
        """Returns an answer. After a failure keeps its reason and returns `None`."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            answer = _Failure(
                f"Measuring {self.candidate.path} with {self.candidate.runtime} ended "
                f"with exit code {self.process.exitcode}."
            )
        if isinstance(answer, _Failure):
            self.reason, answer = str(answer), None
        return answer

    def load(self) -> None:
        if not self.reason:
            self.start = self._receive() or {}

    def run_round(self, runs: int) -> None:
        if not self.reason:
            self._send(runs)
            self.times += self._receive() or []

    def _send(self, message: int | None) -> None:
        with contextlib.suppress(BrokenPipeError):  # `_receive` keeps the reason
            self.connection.send(message)

    def finish(self) -> Measurement:
        """Ends the process. Returns its measurement, or why there is none."""
        fields: dict[str, Any] = {}
        if not self.reason:
            self._send(None)
            fields = {"peak_memory_mb": self._receive(), **self.start}
            fields |= summarize(self.times)
            self.process.join()
        if self.reason:
            fields = {"status": NOT_MEASURED, "reason": self.reason}
        return Measurement(
            file=self.candidate.path,
            sha256=sha256(self.candidate.path),
            runtime=self.candidate.runtime,
            num_threads=self.options.num_threads,
            device=_device_name(),
            **fields,
        )


def measure_all(
    candidates: Iterable[Candidate], options: HostOptions | None = None
) -> Iterator[Measurement]:
    """Measures candidates side by side: all are loaded, then they take turns.

    Other load on the machine affects all of them alike, so their ratios are more
    reliable than their times. Each has its own process, memory and start. A measurement
    says why a candidate could not be measured: the file is damaged, the runtime is not
    installed or the process died.
    """
    options = options or HostOptions()
    threads = os.cpu_count() or 1
    if options.num_threads > threads:
        raise ValueError(
            f"This machine has {threads} CPU threads. "
            f"Received: num_threads={options.num_threads}."
        )
    rounds = min(options.rounds, options.runs)
    counts = np.diff(np.linspace(0, options.runs, rounds + 1).round().astype(int))
    workers = []
    try:
        for candidate in tqdm(candidates, "loading", disable=None, leave=False):
            workers.append(_Worker(candidate, options))
            workers[-1].load()
        for count in tqdm(counts, "measuring", disable=None, leave=False):
            for worker in workers:
                worker.run_round(int(count))
        for worker in workers:
            yield worker.finish()
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.terminate()


def measure(paths: list[str], options: HostOptions) -> Iterator[Measurement]:
    """Measures each file with every runtime that takes it; see `measure_all`."""
    candidates = [Candidate(path, name) for path in paths for name in runtimes_of(path)]
    return measure_all(candidates, options)
