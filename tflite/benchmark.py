"""Measures the latency of models on this machine's CPU, or of Core ML packages.

Examples:

  python tflite/benchmark.py out/best_48_fp32.tflite
  python tflite/benchmark.py a.tflite b.tflite --num_threads=2 --runs=200
  python tflite/peers.py --model=mobilevit_s --output=out/timm_s.onnx
  python tflite/benchmark.py out/mobilevit_s_256_fp32.tflite out/timm_s.onnx
  python tflite/benchmark.py --target=coreml out/best_160_coreml.mlpackage
  python tflite/benchmark.py --target=coreml --device=iphone --team=ABCDE12345 \\
      out/best_160_coreml.mlpackage

Each .tflite runs with LiteRT and XNNPACK, each .onnx once with ONNX Runtime and once
with OpenVINO, in processes of their own that take turns. A busy machine makes all of
them slower: compare within one call, by the last column, the median relative to the
first row's.

--target=coreml takes a Mac, and measures each .mlpackage with the CPU, the GPU beside
it and the Neural Engine beside it, on this Mac or on an iPhone or iPad on a cable; it
names the operations that Core ML keeps off the Neural Engine. docs/coreml.md has the
steps, also for Xcode's own performance report.

Prints a table, times in milliseconds, and with --output adds a JSON line a row.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
import json
import platform

from absl import app, flags

from tflite.drivers import coreml, host
from tflite.drivers.runtimes import runtimes_of

HOST_RUNS = 50
HOST_COLUMNS = (
    # heading, field
    ("init", "init_ms"),
    ("first", "first_ms"),
    ("warm-up", "warmup_ms"),
    ("mean", "mean_ms"),
    ("median", "median_ms"),
    ("p5", "p5_ms"),
    ("p95", "p95_ms"),
    ("memory MB", "peak_memory_mb"),
    ("partitions", "partitions"),
)
COREML_COLUMNS = (
    ("load", "init_ms"),
    ("first", "first_ms"),
    ("mean", "mean_ms"),
    ("median", "median_ms"),
    ("p5", "p5_ms"),
    ("p95", "p95_ms"),
)


def format_table(measurements: list, columns) -> str:
    """Lays measurements out as text, times in milliseconds.

    Args:
        measurements: what was measured.
        columns: `(heading, field)` pairs.
    """
    names = [f"{Path(m.file).name} {m.variant}" for m in measurements]
    width = max(map(len, names))
    headings = [*(name for name, _ in columns), "ratio"]
    lines = ["file".ljust(width) + "".join(f"{name:>11}" for name in headings)]
    for name, measurement in zip(names, measurements):
        values = [getattr(measurement, field) for _, field in columns]
        values.append(measurement.median_ms / measurements[0].median_ms)
        lines.append(name.ljust(width) + "".join(f"{_cell(v):>11}" for v in values))
    return "\n".join(lines)


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _measure_on_host(paths: list[str], args):
    """Returns measurements and the text that shows them."""
    for name in ("compute_units", "device", "team"):
        if args[name].present:
            raise ValueError(f"--{name} is for --target=coreml: leave it away.")
    contenders = [(path, name) for path in paths for name in runtimes_of(path)]
    measurements = host.measure_all(
        contenders,
        args.num_threads,
        args.runs or HOST_RUNS,
        args.warmup_runs,
        args.rounds,
    )
    return measurements, format_table(measurements, HOST_COLUMNS)


def _measure_packages(paths: list[str], args):
    others = [path for path in paths if Path(path).suffix != ".mlpackage"]
    if others:
        raise ValueError(f"{others[0]} is no .mlpackage, which --target=coreml takes.")
    for name in ("num_threads", "warmup_runs", "rounds"):
        if args[name].present:
            raise ValueError(f"--{name} is for --target=host: leave it away.")
    coreml.check_units(args.compute_units)
    if not coreml.is_available():
        return coreml.not_measured(paths, args.compute_units), ""
    measurements = coreml.measure_all(
        paths, args.compute_units, args.device, args.team, args.runs or coreml.RUNS
    )
    table = format_table(measurements, COREML_COLUMNS)
    off_engine = [
        f"not on the Neural Engine: {o}" for m in measurements for o in m.off_engine
    ]
    return measurements, "\n".join([table, *off_engine])


TARGETS = {"host": _measure_on_host, "coreml": _measure_packages}


def define_flags() -> None:
    flags.DEFINE_enum("target", "host", list(TARGETS), "What measures the files.")
    flags.DEFINE_integer("num_threads", 1, "CPU threads.", lower_bound=1)
    flags.DEFINE_integer(
        "runs",
        None,
        f"Measured invocations of each. By default {HOST_RUNS}, of packages "
        f"{coreml.RUNS} as in the paper.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "warmup_runs", 5, "Invocations before them, not measured.", lower_bound=1
    )
    flags.DEFINE_integer(
        "rounds", 10, "Turns in which each does its runs.", lower_bound=1
    )
    flags.DEFINE_list(
        "compute_units",
        list(coreml.COMPUTE_UNITS),
        "Core ML: what may run the packages, one after the other.",
    )
    flags.DEFINE_enum(
        "device",
        coreml.THIS_MAC,
        coreml.DEVICES,
        "Core ML: this Mac, or the first such device on a cable.",
    )
    flags.DEFINE_string(
        "team", "", "Core ML: development team that signs the runner for --device."
    )
    flags.DEFINE_string("output", None, "File that gets one JSON line a measurement.")


def main(argv) -> None:
    args = flags.FLAGS
    paths = argv[1:]
    if not paths:
        raise app.UsageError("Name at least one .tflite, .onnx or .mlpackage.")
    machine = {"machine": platform.machine(), "system": platform.platform()}
    try:
        missing = [path for path in paths if not Path(path).exists()]
        if missing:
            raise ValueError(f"There is no file {', '.join(missing)}.")
        with open(args.output or os.devnull, "a") as output:
            measurements, shown = TARGETS[args.target](paths, args)
            for measurement in measurements:
                line = {"target": args.target} | dataclasses.asdict(measurement)
                output.write(json.dumps(line | machine) + "\n")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    if not shown:
        sys.exit(f"error: not measured. {coreml.NEEDED}")
    print(shown)


if __name__ == "__main__":
    define_flags()
    app.run(main)
