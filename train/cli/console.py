"""The output of a program: names in any script, no messages of its libraries."""

import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from absl import logging as absl_logging

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # 0: all messages, 1: no INFO, 2: errors only
FLUSH_SECONDS = 1.0
# Messages that C++ libraries print before they read LOG_LEVEL, and two errors that only
# say that this machine has no GPU. Python's own messages name .py files.
START_UP_LINE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|[IW]\d{4} [\d:.]+ +\d+ \S+\.(cc|cu|cpp|h):\d+\]"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: [IW] "
    rb"|To enable the following instructions: "
    rb"|.*Unable to register cu\w+ (factory|plugin)"
    rb"|.*failed call to cuInit: .*(UNKNOWN ERROR \(303\)|CUDA_ERROR_NO_DEVICE)"
)


def readable(text: str) -> str:
    """Returns a text with file names as UTF-8 has them.

    Where the locale is not UTF-8, Python represents each foreign byte of a name by a
    surrogate, which cannot be written to a file.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _Formatter(logging.Formatter):
    """Lays out a message as `18:30:12 warning: ...`."""

    def format(self, record: logging.LogRecord) -> str:
        is_info = record.levelno == logging.INFO
        record.level = "" if is_info else f"{record.levelname.lower()}: "
        return super().format(record)


class _BarSafeStream(io.TextIOBase):
    """Standard error, on which messages appear above a progress bar."""

    def write(self, text: str) -> int:
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(text, file=sys.stderr, end="")
        else:
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _OnceFilter(logging.Filter):
    """Drops a warning whose text was logged before."""

    def __init__(self):
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_repeated = record.levelno == logging.WARNING and text in self._seen
        self._seen.add(text)
        return not is_repeated


def set_up_logging() -> None:
    """Makes log messages short, keeps bars whole, and logs equal warnings once."""
    absl_logging.use_absl_handler()
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Formatter("%(asctime)s %(level)s%(message)s", "%H:%M:%S"))
    handler.python_handler.stream = _BarSafeStream()
    absl_logging.get_absl_logger().addFilter(_OnceFilter())


def tell(text: str) -> None:
    """Prints what a long work does now, for someone who waits at a terminal."""
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Loads libraries without the lines that they print when they start.

    Import TensorFlow, Keras, JAX or LiteRT inside the context. Errors of the libraries
    and everything that Python prints still appear, also if the process crashes: a
    second process copies standard error line by line. TF_CPP_MIN_LOG_LEVEL=0 shows all
    lines.
    """
    level = os.environ.setdefault(LOG_LEVEL, "2")
    is_started = "tensorflow" in sys.modules or threading.active_count() > 1
    if level == "0" or is_started or not hasattr(os, "fork"):
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(target)
        _copy_lines(source, terminal)
    os.dup2(target, 2)
    os.close(source)
    os.close(target)
    try:
        yield
        if "tensorflow" in sys.modules:  # looks for GPUs now, and says so
            sys.modules["tensorflow"].config.list_physical_devices()
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        _await_end(child)


def _copy_lines(source: int, target: int) -> NoReturn:
    """Copies all lines but `START_UP_LINE` until the other end closes, and exits."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the other process decides
        with os.fdopen(source, "rb") as lines:
            for line in lines:
                if not START_UP_LINE.match(line):
                    os.write(target, line)
    finally:
        os._exit(0)


def _await_end(child: int) -> None:
    """Waits until the copy is complete, unless another process still writes."""
    deadline = time.monotonic() + FLUSH_SECONDS
    while not os.waitpid(child, os.WNOHANG)[0] and time.monotonic() < deadline:
        time.sleep(0.001)
