"""Measures the latency of models on this machine's CPU, one against the other.

Examples:

  python tflite/benchmark.py out/best_48_fp32.tflite
  python tflite/benchmark.py a.tflite b.tflite --num_threads=2 --runs=200
  python tflite/peers.py --model=mobilevit_s --output=out/timm_s.onnx
  python tflite/benchmark.py out/mobilevit_s_256_fp32.tflite out/timm_s.onnx

Each .tflite runs with LiteRT and XNNPACK, each .onnx once with ONNX Runtime and once
with OpenVINO, in processes of their own that take turns. Prints a table, and with
--output adds one JSON line a row. A busy machine makes all of them slower: compare
within one call, by the last column, the median relative to the first row's.
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

from tflite.drivers import host
from tflite.drivers.runtimes import runtimes_of

COLUMNS = (
    # heading, field
    ("init", "init_ms"),
    ("first", "first_ms"),
    ("warm-up", "warmup_ms"),
    ("mean", "mean_ms"),
    ("median", "median_ms"),
    ("p5", "p5_ms"),
    ("p95", "p95_ms"),
    ("memory MB", "peak_memory_mb"),
    ("partitions", "xnnpack_partitions"),
)


def format_table(measurements: list) -> str:
    """Lays measurements out as text, times in milliseconds."""
    names = [f"{Path(m.file).name} {m.runtime}" for m in measurements]
    width = max(map(len, names))
    headings = [*(name for name, _ in COLUMNS), "ratio"]
    lines = ["file".ljust(width) + "".join(f"{name:>11}" for name in headings)]
    for name, measurement in zip(names, measurements):
        values = [getattr(measurement, field) for _, field in COLUMNS]
        values.append(measurement.median_ms / measurements[0].median_ms)
        lines.append(name.ljust(width) + "".join(f"{_cell(v):>11}" for v in values))
    return "\n".join(lines)


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def define_flags() -> None:
    flags.DEFINE_integer("num_threads", 1, "CPU threads.", lower_bound=1)
    flags.DEFINE_integer("runs", 50, "Measured invocations of each.", lower_bound=1)
    flags.DEFINE_integer(
        "warmup_runs", 5, "Invocations before them, not measured.", lower_bound=1
    )
    flags.DEFINE_integer(
        "rounds", 10, "Turns in which each does its runs.", lower_bound=1
    )
    flags.DEFINE_string("output", None, "File that gets one JSON line a measurement.")


def main(argv) -> None:
    args = flags.FLAGS
    if len(argv) < 2:
        raise app.UsageError("Name at least one .tflite or .onnx file.")
    machine = {"machine": platform.machine(), "system": platform.platform()}
    try:
        missing = [path for path in argv[1:] if not Path(path).is_file()]
        if missing:
            raise ValueError(f"There is no file {', '.join(missing)}.")
        contenders = [(path, name) for path in argv[1:] for name in runtimes_of(path)]
        with open(args.output or os.devnull, "a") as output:
            measurements = host.measure_all(
                contenders, args.num_threads, args.runs, args.warmup_runs, args.rounds
            )
            for measurement in measurements:
                line = json.dumps(dataclasses.asdict(measurement) | machine)
                output.write(line + "\n")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    print(format_table(measurements))


if __name__ == "__main__":
    define_flags()
    app.run(main)
