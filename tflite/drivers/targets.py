"""The table of the kinds of devices that can measure files."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from tflite.drivers import android, browser, coreml, host
from tflite.drivers.measurement import Measurement
from tflite.drivers.options import read_flags

_RUNS = (
    # heading, field of a `Measurement`
    ("mean", "mean_ms"),
    ("median", "median_ms"),
    ("p5", "p5_ms"),
    ("p95", "p95_ms"),
)
_TIMES = (("first", "first_ms"), ("warm-up", "warmup_ms"), *_RUNS)
_TFLITE_COLUMNS = (
    ("init", "init_ms"),
    *_TIMES,
    ("memory MB", "peak_memory_mb"),
    ("partitions", "partitions"),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of device."""

    purpose: str
    options: type  # dataclass; each of its fields is a flag
    measure: Callable[[list[str], Any], Iterator[Measurement]]
    suffixes: tuple[str, ...]  # of the files that it takes
    columns: tuple[tuple[str, str], ...]  # `(heading, field)`, before the ratio
    runs_until_interrupted: bool = False  # whether Ctrl-C is the usual end
    # Whether an accelerator that refuses a file is a result, not a failure.
    may_refuse: bool = False
    # Raises an error if nothing can be measured, before any file is read.
    check: Callable[[Any], None] = lambda options: None


TARGETS = {
    "host": Target(
        purpose="this machine's CPU",
        options=host.HostOptions,
        measure=host.measure,
        suffixes=(".tflite", ".onnx"),
        columns=_TFLITE_COLUMNS,
    ),
    "android": Target(
        purpose="an Android phone on a cable",
        options=android.AndroidOptions,
        measure=android.measure,
        suffixes=(".tflite",),
        columns=_TFLITE_COLUMNS,
        may_refuse=True,
        check=android.check,
    ),
    "browser": Target(
        purpose="every browser that opens a page",
        options=browser.BrowserOptions,
        measure=browser.measure,
        suffixes=(".tflite",),
        columns=(("init", "init_ms"), *_TIMES, ("difference", "max_abs_difference")),
        runs_until_interrupted=True,
        may_refuse=True,
        check=browser.check,
    ),
    "coreml": Target(
        purpose="this Mac, or an iPhone or iPad on a cable",
        options=coreml.CoreMLOptions,
        measure=coreml.measure,
        suffixes=(".mlpackage",),
        columns=(("load", "init_ms"), ("first", "first_ms"), *_RUNS),
    ),
}


def _names(target: Target) -> set[str]:
    return {field.name for field in dataclasses.fields(target.options)}


def read_options(values: flags.FlagValues) -> Any:
    """Returns the options of the chosen target, and refuses flags for another one."""
    chosen = TARGETS[values.target]
    for name in sorted(set().union(*map(_names, TARGETS.values())) - _names(chosen)):
        if values[name].value is not None:
            users = [key for key, row in TARGETS.items() if name in _names(row)]
            kinds = " or ".join(users)
            raise ValueError(f"--{name} is for --target={kinds}: remove it.")
    return read_flags(chosen.options, values)


def check_paths(paths: list[str], target: str) -> None:
    """Raises a ValueError if a file is missing, or is for another target."""
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        raise ValueError(f"There is no file {', '.join(missing)}.")
    for path in paths:
        suffix = Path(path).suffix
        if suffix in TARGETS[target].suffixes:
            continue
        others = [key for key, row in TARGETS.items() if suffix in row.suffixes]
        hint = f" Use --target={' or '.join(others)} for it." if others else ""
        if suffix == ".keras":
            hint = " Convert it first with tflite/convert.py."
        raise ValueError(
            f"--target={target} takes {' or '.join(TARGETS[target].suffixes)} files. "
            f"Received: {path}.{hint}"
        )
