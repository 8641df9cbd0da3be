"""Measures the latency of models: on this machine, on a phone, or in a browser.

Examples:
  python tflite/benchmark.py out/best_160_fp32.tflite out/best_160_int8-mixed.tflite
  python tflite/benchmark.py out/mobilevit_s_256_fp32.tflite out/timm_s.onnx
  python tflite/benchmark.py --target=android out/*.tflite --output=latency.jsonl
  python tflite/benchmark.py --target=browser --host=0.0.0.0 out/best_160_fp32.tflite
  python tflite/benchmark.py --target=coreml out/best_160_coreml.mlpackage
  python tflite/benchmark.py --suite=paper --target=android --output=latency.jsonl
  python tflite/report.py latency.jsonl --output=latency.html

--target=host (the default) runs each .tflite with LiteRT and XNNPACK, and each .onnx
with ONNX Runtime and with OpenVINO. The files take turns, each in its own process.
Other load on the machine slows all of them. So compare files within one call, by the
last column: the ratio of the median to that of the first row.

--target=android finds the phone with adb and copies the files to it. It runs TFLite's
benchmark_model with the CPU and with the GPU, several times with pauses, and reports
throttling. The phone needs USB debugging.

--target=browser serves a page that runs the files with LiteRT.js on WebAssembly and
WebGPU. Only this machine can open it unless --host says otherwise. WebGPU and threads
need localhost (for a phone on a cable: `adb reverse tcp:PORT tcp:PORT`) or
--certificate.

--target=coreml needs a Mac. It measures each package with the CPU, with the CPU and the
GPU, and with the CPU and the Neural Engine; docs/coreml.md has the steps.

--suite=paper measures the networks in table 3 of the paper and others: MobileNetV2,
MobileNetV3-Large, EfficientNet-B0, DeiT-Tiny, PiT-Tiny, MobileViT and MobileViTv2. It
converts all of them once into --suite_dir, in 32 bits and in int8-mixed.

Prints a table with times in milliseconds. Appends one JSON line per measurement to
--output.
"""

import importlib.util
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    # TensorFlow is slow to load and not needed, but Keras's NumPy backend takes JAX.
    has_jax = importlib.util.find_spec("jax") is not None
    os.environ["KERAS_BACKEND"] = "numpy" if has_jax else "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import collections
import dataclasses
import datetime
import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags, logging

from tflite.drivers import targets
from tflite.drivers.measurement import MEASURED, Measurement
from tflite.drivers.options import flag_groups
from tflite.suites import suites
from train.cli import tables
from train.cli.command import INTERRUPTED, run_command
from train.cli.console import readable
from train.cli.json_lines import append_text, check_output


def format_table(
    measurements: Iterable[Measurement], columns: Sequence[tuple[str, str]]
) -> str:
    """Formats measurements as text, one table per device, times in milliseconds.

    Several measurements of a file on a device become one row of medians. The ratio is
    to the first row of the device. `columns` are `(heading, field)` pairs.
    """
    measured = [m for m in measurements if m.status == MEASURED]
    names = _short_names(measured)
    rows: dict[tuple[str, str], dict[str, list[Measurement]]] = {}
    for m in measured:
        device = rows.setdefault((m.device, m.device_id), {})
        device.setdefault(f"{names[m.file]} {m.variant}", []).append(m)
    headings = ["file", *(heading for heading, _ in columns), "ratio"]
    texts = []
    for (title, _), groups in rows.items():
        lines: list[list] = []
        first = None
        for name, group in groups.items():
            median = _median(group, "median_ms")
            first = first or median
            ratio = median / first if median and first else None
            lines.append([name, *(_median(group, f) for _, f in columns), ratio])
        texts += [f"{title}, milliseconds", tables.format_table(headings, lines)]
    return "\n".join(texts)


def _short_names(measurements: Iterable[Measurement]) -> dict[str, str]:
    """Returns a short name for each path; the path itself if names are the same."""
    paths = dict.fromkeys(m.file for m in measurements)
    counts = collections.Counter(Path(path).name for path in paths)
    return {p: Path(p).name if counts[Path(p).name] == 1 else p for p in paths}


def _median(group: Iterable[Measurement], field: str) -> float | None:
    values = [getattr(m, field) for m in group]
    return None if None in values else statistics.median(values)


def _read_card(path: str) -> dict[str, Any]:
    """Reads the card of a file; what is no card must not lose a measurement."""
    from keras_mobilevit.litert import read_card  # loads Keras

    try:
        return read_card(path)
    except (ValueError, OSError) as error:
        logging.warning("The records do not describe the model. %s", error)
        return {}


def make_record(
    measurement: Measurement, target: str, card: dict[str, Any]
) -> dict[str, Any]:
    """Returns a measurement for JSON, with fields of the file's card."""
    return {
        "target": target,
        **dataclasses.asdict(measurement),
        "setting": measurement.variant,
        "notes": measurement.notes(),
        "model": card.get("model", Path(measurement.file).stem),
        "weights": card.get("weights", ""),
        "format": card.get("format", ""),
        "size": card.get("parity", {}).get("size"),
        "top1": (card.get("accuracy") or {}).get("top1"),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        "measured_by": platform.platform(),
    }


def end_last_line(path: str) -> None:
    """Ends the last line of a file, which an interrupted run may have left open.

    A file that does not exist is created, which tells whether it can be.
    """
    is_file = Path(path).is_file()
    is_open = is_file and Path(path).read_bytes()[-1:] not in (b"", b"\n")
    append_text(path, "\n" if is_open else "")


def measure(
    paths: list[str],
    target: str,
    target_options: Any,
    output: str | None,
    measurements: list[Measurement],
) -> None:
    """Measures files, appends them to a list, and writes each record at once."""
    if output:
        end_last_line(output)
    cards = {
        Path(path): _read_card(path) for path in paths
    }  # before anything is measured
    for measurement in targets.TARGETS[target].measure(paths, target_options):
        measurements.append(measurement)
        record = make_record(measurement, target, cards[Path(measurement.file)])
        line = json.dumps(record, allow_nan=False, ensure_ascii=False)
        if output:
            append_text(output, readable(f"{line}\n"))


def print_results(measurements: list[Measurement], target: str) -> None:
    """Prints the table and the notes."""
    print(format_table(measurements, targets.TARGETS[target].columns))
    notes = [f"{m.name}: {note}" for m in measurements for note in m.notes()]
    for note in dict.fromkeys(notes):
        print(note)


def _failure(measurements: list[Measurement], may_refuse: bool) -> str | None:
    """Returns an error with the reasons of what was not measured, or `None`.

    With `may_refuse` it is enough that one file was measured.
    """
    failed = [m for m in measurements if m.status != MEASURED]
    if not failed or (may_refuse and len(failed) < len(measurements)):
        return None
    count = f"{len(failed)} of {len(measurements)} "
    count = "" if len(failed) == len(measurements) else count
    if len({m.reason for m in failed}) == 1:
        return f"error: {count}not measured. {failed[0].reason}"
    reasons = [f"  {m.name}: {m.reason}" for m in failed]
    return "\n".join([f"error: {count}not measured.", *reasons])


def define_flags() -> None:
    """Defines the flags of every target."""
    kinds = targets.TARGETS
    purposes = "; ".join(f"{name}: {row.purpose}" for name, row in kinds.items())
    flags.DEFINE_enum("target", "host", list(kinds), f"Where to measure. {purposes}.")
    flags.DEFINE_enum(
        "suite",
        None,
        list(suites.SUITES),
        "Measure the networks of this suite instead of files.",
    )
    flags.DEFINE_string(
        "suite_dir", "runs/suite", "Folder of the suite's converted files."
    )
    flags.DEFINE_string(
        "output", None, "The .jsonl file that gets one more line per measurement."
    )


def _paths(argv: list[str], args: flags.FlagValues) -> list[str]:
    if args.suite and argv:
        raise ValueError(f"--suite has its own files. Remove {' '.join(argv)}.")
    if args.suite:
        return suites.prepare(args.suite, Path(args.suite_dir).expanduser())
    if not argv:
        suffixes = " or ".join(targets.TARGETS[args.target].suffixes)
        raise ValueError(f"Name at least one {suffixes} file (or see --help).")
    targets.check_paths(argv, args.target)
    return argv


def main(argv: list[str]) -> None:
    """Measures files with the flags, and prints the results."""
    args = flags.FLAGS
    target = targets.TARGETS[args.target]
    measurements: list[Measurement] = []
    error_text: str | int | None = None
    missing = None
    output = args.output and os.path.expanduser(args.output)
    try:
        if output:  # a suite takes long to convert
            check_output(output, argv[1:])
        target_options = targets.read_options(args)
        target.check(target_options)
        paths = _paths(argv[1:], args)
        missing = suites.missing(args.suite, paths) if args.suite else None
        measure(paths, args.target, target_options, output, measurements)
    except KeyboardInterrupt:
        is_usual = measurements and target.runs_until_interrupted
        error_text = None if is_usual else INTERRUPTED
        print("ended" if is_usual else "interrupted", file=sys.stderr)
    except (ValueError, RuntimeError, OSError) as error:
        error_text = f"error: {error}"
    failure = _failure(measurements, target.may_refuse) if measurements else None
    if any(m.status == MEASURED for m in measurements):
        print_results(measurements, args.target)
    sys.exit(error_text or failure or missing)


if __name__ == "__main__":
    options = {name: row.options for name, row in targets.TARGETS.items()}
    groups = {"For every target": define_flags} | flag_groups(options)
    run_command(main, __doc__ or "", groups, takes_files=True)
