"""Measures the latency of `.tflite` files on this machine.

Examples:

  python tflite/benchmark.py out/best_48_fp32.tflite
  python tflite/benchmark.py a.tflite b.tflite --num_threads=2 --runs=200

Each file runs in a process of its own with LiteRT and XNNPACK. Prints a table, and with
--output adds one JSON line a file. A busy machine makes all of it slower: compare files
of one call, by their ratio.
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
from tqdm import tqdm

from tflite.drivers import host

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
    width = max(len("file"), *(len(Path(m.file).name) for m in measurements))
    lines = ["file".ljust(width) + "".join(f"{name:>11}" for name, _ in COLUMNS)]
    for measurement in measurements:
        values = (getattr(measurement, field) for _, field in COLUMNS)
        cells = (
            f"{v:>11.2f}" if isinstance(v, float) else f"{v!s:>11}" for v in values
        )
        lines.append(Path(measurement.file).name.ljust(width) + "".join(cells))
    return "\n".join(lines)


def define_flags() -> None:
    flags.DEFINE_integer("num_threads", 1, "CPU threads.", lower_bound=1)
    flags.DEFINE_integer("runs", 50, "Measured invocations.", lower_bound=1)
    flags.DEFINE_integer(
        "warmup_runs", 5, "Invocations before them, not measured.", lower_bound=1
    )
    flags.DEFINE_string("output", None, "File that gets one JSON line a measurement.")


def main(argv) -> None:
    args = flags.FLAGS
    if len(argv) < 2:
        raise app.UsageError("Name at least one .tflite file.")
    machine = {"machine": platform.machine(), "system": platform.platform()}
    measurements = []
    try:
        missing = [path for path in argv[1:] if not Path(path).is_file()]
        if missing:
            raise ValueError(f"There is no file {', '.join(missing)}.")
        with open(args.output or os.devnull, "a") as output:
            for path in tqdm(argv[1:], unit="file", disable=None, leave=False):
                measurement = host.measure(
                    path, args.num_threads, args.runs, args.warmup_runs
                )
                measurements.append(measurement)
                line = json.dumps(dataclasses.asdict(measurement) | machine)
                tqdm.write(line)
                output.write(line + "\n")
                output.flush()
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    print(format_table(measurements))


if __name__ == "__main__":
    define_flags()
    app.run(main)
