"""Processes that measure, one for each candidate, in turns.

A candidate keeps its process, since loading a library and compiling a step takes longer
than a turn. This module loads no library that is measured.
"""

import contextlib
import dataclasses
import importlib.metadata
import multiprocessing
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

LAST_LINES = 15  # of the output of a crashed worker
CLOSING_SECONDS = 10
# Environment of the workers, unless the user sets these variables.
DEFAULTS = {
    # Processes that share a GPU must not each take all of its memory.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # PyTorch's threads spin while they wait for each other. On cores that had other
    # work too a step then took 50 times as long; GOMP_SPINCOUNT=300000 restores it.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The measurement that a worker makes.

    `start`, a function of a module, loads the library that is measured. It takes
    `settings`, which have `threads`; it returns information on the candidate and a
    function that measures one turn. That function takes a request and returns a dict
    with `seconds`.
    """

    start: Callable[[dict], tuple[dict, Callable[[dict], dict]]]
    settings: dict
    # Variables of the worker, set before a library is loaded.
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def available_cores() -> list[int]:
    """Lists the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor() -> str:
    """Returns the name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def describe(packages: Iterable[str], gpu: str = "") -> dict:
    """Returns the device and the versions of packages, for a record."""
    return {
        "accelerator": "gpu" if gpu else "cpu",
        "device": gpu or processor(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def set_tensorflow_threads(count: int) -> None:
    """Sets the sizes of TensorFlow's thread pools."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)


def seconds_of(function: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _serve(connection: Connection, log: str, candidate: Candidate) -> None:
    """Sends the information and then the answer to each request: the worker's end."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    # Every library sizes its thread pools by the cores, also one without a setting.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, available_cores()[: candidate.settings["threads"]])
    try:
        answer, measure = candidate.start(candidate.settings)
        while True:
            connection.send(answer)
            answer = measure(connection.recv())
    except EOFError:  # the other end is closed
        return
    except (ValueError, OSError, ImportError) as error:
        connection.send(ValueError(str(error)))


class Worker:
    """A process that measures one candidate on request.

    Its `info` is what the candidate's `start` returned.

    Raises:
        ValueError: if the candidate refuses its settings.
        RuntimeError: if the process crashes.
    """

    def __init__(self, name: str, candidate: Candidate):
        self.name = name
        # Python's processes inherit standard error, which a progress bar uses.
        handle, self._log = tempfile.mkstemp()
        os.close(handle)
        context = multiprocessing.get_context("spawn")  # loads nothing in advance
        # Not a daemon, since torch's loader starts processes of its own.
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, self._log, candidate)
        )
        try:
            with _environment({**DEFAULTS, **os.environ, **candidate.environment}):
                self._process.start()
            other.close()
            self.info = self._receive()
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict) -> dict:
        """Sends a request, and waits for its answer."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._connection.send(request)
        return self._receive()

    def _receive(self) -> dict:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise RuntimeError(self._crash_report()) from error
        if isinstance(answer, ValueError):
            raise ValueError(f"{self.name}: {answer}")
        return answer

    def _crash_report(self) -> str:
        self._process.join()
        lines = Path(self._log).read_text("utf-8", errors="replace").splitlines()
        last = "".join(f"\n  {line}" for line in lines[-LAST_LINES:])
        return (
            f"The process that measures {self.name} ended with exit code "
            f"{self._process.exitcode}. Its last lines:{last or ' none.'}"
        )

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        if self._process.pid is not None:
            self._process.join(CLOSING_SECONDS)
            self._process.kill()
            self._process.join()
        Path(self._log).unlink(missing_ok=True)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets the environment that a new process inherits."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def started(candidates: Mapping[str, Candidate]) -> Iterator[list[Worker]]:
    """Starts a worker for each candidate, and ends them."""
    with contextlib.ExitStack() as stack:
        workers = []
        for name in tqdm(candidates, "starting", disable=None, leave=False):
            workers.append(Worker(name, candidates[name]))
            stack.callback(workers[-1].close)
        yield workers


def measure_in_turns(
    workers: list[Worker], request: dict, rounds: int
) -> dict[str, list[float]]:
    """Measures seconds by name, in turns, so that other load slows all alike."""
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for _ in tqdm(range(rounds), "measuring", disable=None, leave=False):
        for worker in workers:
            seconds[worker.name] += worker.ask(request)["seconds"]
    return seconds
