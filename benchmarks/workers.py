"""Processes that measure, one for each contender, and that take turns.

Each side writes a JSON object a line: the settings and then requests for a turn go to
the worker's standard input, answers come from its standard output. This module holds
both ends, and loads no library that is measured.
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
LAST_LINES = 15  # of a dead worker's errors that are shown
CLOSING_SECONDS = 10
# What workers get, unless it is set otherwise.
DEFAULTS = {
    # Processes that share a GPU must not each take all of its memory.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # PyTorch's threads spin while they wait for each other. On cores that had other
    # work too a step then took 50 times as long; GOMP_SPINCOUNT=300000 restores it.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def available_cores() -> list[int]:
    """Lists the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count()))


def keep_to_cores(count: int) -> None:
    """Keeps this process and what it starts to so many cores, where Linux can.

    Every library sizes its thread pools by that, also one that has no setting for it.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, available_cores()[:count])


def processor() -> str:
    """Returns the CPU by name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(
            r"^model name\s*: (.+)$", cpuinfo.read_text("utf-8"), re.MULTILINE
        )
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Returns `{package: version}` of what is installed."""
    return {package: importlib.metadata.version(package) for package in packages}


def seconds_of(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def serve(start: Callable) -> None:
    """Answers until standard input ends: the worker's end.

    Args:
        start: from the settings, a dict with the number of `threads` among others, to
            a greeting and a function from a request to its answer, all of them dicts.
            It loads the library that is measured. Its `ValueError`, `OSError` and
            `ImportError` are told to the other end; another error ends the process.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    settings = json.loads(sys.stdin.readline())
    keep_to_cores(settings["threads"])
    turn = None

    def answer(request: dict) -> dict:
        nonlocal turn
        if turn is not None:
            return turn(request)
        greeting, turn = start(request)
        return greeting

    for request in itertools.chain([settings], map(json.loads, sys.stdin)):
        try:
            answered = answer(request)
        except (ValueError, OSError, ImportError) as error:
            answered = {"error": str(error)}
        print(json.dumps(answered), file=answers, flush=True)


class Worker:
    """A process that measures one contender when it is asked to.

    Args:
        name: of the contender.
        command: what to run; it calls `serve`.
        settings: what its `start` takes.
        environment: variables that it gets besides this process's.

    Attributes:
        greeting: what its `start` told.

    Raises:
        ValueError: if it refused the settings.
        RuntimeError: if it died.
    """

    def __init__(self, name: str, command: list, settings: dict, environment: dict):
        self.name = name
        self._errors = tempfile.TemporaryFile()  # a pipe would fill up
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**DEFAULTS, **os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.greeting = self.ask(settings)
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict) -> dict:
        """Sends a request and waits for its answer."""
        with contextlib.suppress(BrokenPipeError):  # the answer is missing then
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._obituary())
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.name}: {answer['error']}")
        return answer

    def _obituary(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        last = "".join(f"\n  {line}" for line in lines[-LAST_LINES:])
        return (
            f"The process that measures {self.name} ended with exit code {code}. "
            f"Its last lines:{last or ' none.'}"
        )

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


@contextlib.contextmanager
def started(module: str, contenders: dict) -> Iterator[list]:
    """Starts a worker for each contender, and ends them.

    Args:
        module: which workers run; it calls `serve`.
        contenders: by name, the settings and the environment of each; see `Worker`.

    Yields:
        The workers.
    """
    command = [sys.executable, "-m", module]
    with contextlib.ExitStack() as stack:
        workers = []
        for name in tqdm(contenders, "starting", disable=None, leave=False):
            workers.append(Worker(name, command, *contenders[name]))
            stack.callback(workers[-1].close)
        yield workers


def take_turns(workers: list, request: dict, rounds: int) -> dict[str, list[float]]:
    """Lets workers measure by turns, so that what else runs here meets all alike.

    Args:
        workers: from `started`.
        request: what each is asked in each round.
        rounds: turns of each.

    Returns:
        The seconds that they answered, by name.
    """
    seconds = {worker.name: [] for worker in workers}
    for _ in tqdm(range(rounds), "measuring", disable=None, leave=False):
        for worker in workers:
            seconds[worker.name] += worker.ask(request)["seconds"]
    return seconds
