"""Measures files on this machine's CPU."""

import contextlib
import importlib
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tflite.drivers.measurement import (
    MEASURED,
    NOT_MEASURED,
    Measurement,
    summary,
)
from tflite.drivers.runtimes import RUNTIMES
from tflite.validation.checksum import sha256


def _this_machine() -> str:
    """Returns the processor and the system by name."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text("utf-8", "replace")
        found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
        processor = found[1] if found else processor
    return f"{processor}, {os.cpu_count()} threads, {platform.system()}"


def _peak_memory_mb() -> float | None:
    """Reads the peak of this process alone, which getrusage inherits from a parent."""
    status = Path("/proc/self/status")
    if not status.exists():  # Linux only
        return None
    text = status.read_text("utf-8", "replace")
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    return int(line) * 1024 / 1e6


def _milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


class _Failure(Exception):
    """Why a file is not measured."""


def _serve(
    connection, path: str, runtime_name: str, num_threads: int, warmup_runs: int
):
    """Loads a model, then runs it as often as it is asked to. In a process of its own.

    Answers with what happened until the model was warm, then to each number with as
    many times, then to None with the peak of the memory.
    """
    try:
        _answer_turns(connection, path, runtime_name, num_threads, warmup_runs)
    except ValueError as error:
        connection.send(_Failure(str(error)))
    except Exception as error:  # of a runtime's own kinds, or of the memory
        connection.send(_Failure(f"{type(error).__name__}: {error}"))


def _answer_turns(connection, path, runtime_name, num_threads, warmup_runs):
    runtime = RUNTIMES[runtime_name]
    with contextlib.suppress(ImportError):  # the runtime itself says so better
        importlib.import_module(runtime.module)
    memory = _peak_memory_mb()
    start = time.perf_counter()
    session = runtime.load(path, num_threads)
    init_ms = (time.perf_counter() - start) * 1e3
    # Any values do: the time of these operations does not depend on them.
    image = np.random.default_rng(0).uniform(0, 255, session.input_shape)
    image = image.astype(session.dtype)

    def invoke():
        session.invoke(image)

    first_ms = _milliseconds(invoke)
    warmup = [_milliseconds(invoke) for _ in range(warmup_runs)]
    connection.send(
        {
            "init_ms": init_ms,
            "first_ms": first_ms,
            "warmup_ms": float(np.mean(warmup)),
            "partitions": session.xnnpack_partitions,
        }
    )
    while (runs := connection.recv()) is not None:
        invoke()  # what ran in between has filled the caches
        connection.send([_milliseconds(invoke) for _ in range(runs)])
    connection.send(None if memory is None else _peak_memory_mb() - memory)


class _Contender:
    """One file on one runtime, in a process of its own that waits for its turns.

    Attributes:
        reason: why it takes no more turns, or "".
    """

    def __init__(self, path: str, runtime: str, num_threads: int, warmup_runs: int):
        self.path, self.runtime, self.num_threads = path, runtime, num_threads
        self.times, self.start, self.memory, self.reason = [], {}, None, ""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve,
            args=(theirs, path, runtime, num_threads, warmup_runs),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def _receive(self):
        """Returns an answer; `None`, and keeps why, if there will be no more."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            answer = _Failure(
                f"Measuring {self.path} with {self.runtime} ended with exit code "
                f"{self.process.exitcode}."
            )
        if isinstance(answer, _Failure):
            self.reason, answer = str(answer), None
        return answer

    def load(self) -> None:
        self.start = self._receive() or {}

    def take_turn(self, runs: int) -> None:
        if not self.reason:
            self._send(runs)
            self.times += self._receive() or []

    def _send(self, message) -> None:
        with contextlib.suppress(BrokenPipeError):  # `_receive` reports what died
            self.connection.send(message)

    def finish(self) -> Measurement:
        """Ends the process, and returns what it measured, or why nothing."""
        if not self.reason:
            self._send(None)
            self.memory = self._receive()
            self.process.join()
        if self.reason:
            found = {"status": NOT_MEASURED, "reason": self.reason}
        else:
            found = {"peak_memory_mb": self.memory, **self.start}
            found |= summary(self.times)
        return Measurement(
            file=self.path,
            sha256=sha256(self.path),
            runtime=self.runtime,
            num_threads=self.num_threads,
            device=_this_machine(),
            **found,
        )


def measure_all(
    contenders: list[tuple[str, str]],
    num_threads: int = 1,
    runs: int = 50,
    warmup_runs: int = 5,
    rounds: int = 10,
) -> Iterator[Measurement]:
    """Measures files against each other: all are loaded, then they take turns.

    What else the machine does meanwhile meets all of them alike, so that their ratio
    tells more than their times. Each has a process of its own, so that memory and start
    are its own.

    Args:
        contenders: `(path, runtime)` pairs, the runtime a key of `RUNTIMES`.
        num_threads: CPU threads.
        runs: measured invocations of each, at least 1.
        warmup_runs: invocations before them, at least 1.
        rounds: turns of each, at most as many as runs.

    Yields:
        A `Measurement` for each. One whose file is no such model, whose runtime is not
        installed or whose process died says so; the others are measured.

    Raises:
        ValueError: if the machine has fewer threads.
    """
    if num_threads > os.cpu_count():
        raise ValueError(
            f"This machine has {os.cpu_count()} CPU threads. "
            f"Received: num_threads={num_threads}."
        )
    started = []
    try:
        for path, runtime in tqdm(contenders, "loading", disable=None, leave=False):
            started.append(_Contender(str(path), runtime, num_threads, warmup_runs))
            started[-1].load()
        shares = np.diff(
            np.linspace(0, runs, min(rounds, runs) + 1).round().astype(int)
        )
        for share in tqdm(shares, "measuring", disable=None, leave=False):
            for contender in started:
                contender.take_turn(int(share))
        for contender in started:
            yield contender.finish()
    finally:
        for contender in started:
            contender.process.terminate()


def measure(path, num_threads: int = 1, runs: int = 50, warmup_runs: int = 5):
    """Measures one `.tflite` file; see `measure_all`.

    Raises:
        ValueError: if it cannot be measured.
    """
    contenders = [(str(path), "litert")]
    (found,) = measure_all(contenders, num_threads, runs, warmup_runs)
    if found.status != MEASURED:
        raise ValueError(found.reason)
    return found
