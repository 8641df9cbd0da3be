"""Measures the latency of models: here, on a phone on a cable, or in any browser.

Examples:
  python tflite/benchmark.py out/best_160_fp32.tflite out/best_160_int8-mixed.tflite
  python tflite/benchmark.py out/mobilevit_s_256_fp32.tflite out/timm_s.onnx
  python tflite/benchmark.py --target=android out/*.tflite --output=latency.jsonl
  python tflite/benchmark.py --target=browser --host=0.0.0.0 out/best_160_fp32.tflite
  python tflite/benchmark.py --target=coreml out/best_160_coreml.mlpackage
  python tflite/benchmark.py --suite=paper --target=android --output=latency.jsonl
  python tflite/report.py latency.jsonl --output=latency.html

host (the default): each .tflite runs with LiteRT and XNNPACK, each .onnx once with
ONNX Runtime and once with OpenVINO, in processes of their own that take turns. A busy
machine makes all of them slower: compare within one call, by the last column, the
median relative to the first row's.

android: finds the phone with adb, copies files that it has not got yet, runs TFLite's
benchmark_model there with the CPU and with the GPU, several times with pauses, and says
when the phone was throttled. Needs USB debugging.

browser: serves a page that runs the files with LiteRT.js on WebAssembly and WebGPU.
Only this machine reaches it unless --host says otherwise. WebGPU and threads take
localhost (of a phone on a cable: `adb reverse tcp:PORT tcp:PORT`) or --certificate.

coreml: takes a Mac, and measures each package with the CPU, the GPU beside it and the
Neural Engine beside it; docs/coreml.md has the steps.

--suite=paper measures what table 3 of the paper compares, and more: MobileNetV2,
MobileNetV3-Large, EfficientNet-B0, DeiT-Tiny, PiT-Tiny and MobileViT, converted the
same way (into --suite_dir, once), in 32 bits and in int8-mixed.

Prints a table, times in milliseconds, and with --output adds a JSON line a measurement.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "numpy"  # nothing needs TensorFlow, which is slow

import collections
import dataclasses
import datetime
import json
import platform
import statistics

from absl import app, flags

from keras_mobilevit.litert import read_card
from tflite.drivers import target_flags, targets
from tflite.drivers.measurement import MEASURED
from tflite.suites import suites
from train.run.console import print_any_name, readable
from train.run.tables import format_cell

INTERRUPTED = 130  # exit code, as of a shell


def format_table(measurements: list, columns) -> str:
    """Lays measurements out as text, times in milliseconds.

    Several of one file on one device become a row of their medians. The ratio is to the
    first row of the device.

    Args:
        measurements: what was measured.
        columns: `(heading, field)` pairs.
    """
    measured = [m for m in measurements if m.status == MEASURED]
    names, rows = _short_names(measured), {}
    for m in measured:
        key = f"{names[m.file]} {m.variant}"
        device = rows.setdefault((m.device, m.device_id), {})
        device.setdefault(key, []).append(m)
    width = max(len(name) for device in rows.values() for name in device)
    headings = [*(heading for heading, _ in columns), "ratio"]
    lines = []
    for (device, _), groups in rows.items():
        lines.append(f"{device}, milliseconds")
        lines.append("file".ljust(width) + "".join(f"{name:>11}" for name in headings))
        first = None
        for name, group in groups.items():
            values = [_median(group, field) for _, field in columns]
            median = _median(group, "median_ms")
            first = first or median
            values.append(median / first if median and first else None)
            cells = "".join(f"{format_cell(value):>11}" for value in values)
            lines.append(name.ljust(width) + cells)
    return "\n".join(lines)


def _short_names(measurements: list) -> dict[str, str]:
    """Returns the files' names by their paths; the paths where names are the same."""
    paths = dict.fromkeys(m.file for m in measurements)
    counts = collections.Counter(Path(path).name for path in paths)
    return {p: Path(p).name if counts[Path(p).name] == 1 else p for p in paths}


def _median(group: list, field: str):
    values = [getattr(m, field) for m in group]
    return None if None in values else statistics.median(values)


def make_record(measurement, target: str) -> dict:
    """Returns a measurement for JSON, with what the card beside the file knows."""
    card = read_card(measurement.file)
    known = {
        "model": card.get("model", Path(measurement.file).stem),
        "weights": card.get("weights", ""),
        "format": card.get("format", ""),
        "size": card.get("parity", {}).get("size"),
        "top1": (card.get("accuracy") or {}).get("top1"),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        "measured_by": platform.platform(),
    }
    told = {"setting": measurement.variant, "notes": measurement.notes()}
    return {"target": target} | dataclasses.asdict(measurement) | told | known


def check_output(path: str | None) -> None:
    """Raises a ValueError if records cannot be written there."""
    if path and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"There is no folder for --output={path}.")


def end_last_line(path: str | None) -> None:
    """Ends a line that a kill has cut, so that the next is not glued to it."""
    if (
        path
        and Path(path).is_file()
        and Path(path).read_bytes()[-1:] not in (b"", b"\n")
    ):
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n")


def measure(paths: list[str], args, measurements: list) -> None:
    """Measures files, and writes each record as it comes.

    Args:
        paths: of the files.
        args: flags.
        measurements: gets them.
    """
    end_last_line(args.output)
    with open(args.output or os.devnull, "a", encoding="utf-8") as output:
        for measurement in targets.TARGETS[args.target].measure(paths, args):
            measurements.append(measurement)
            record = make_record(measurement, args.target)
            line = json.dumps(record, allow_nan=False, ensure_ascii=False)
            output.write(readable(f"{line}\n"))
            output.flush()


def show(measurements: list, target: str) -> None:
    """Prints the table, and what must be known beside it."""
    print(format_table(measurements, targets.TARGETS[target].columns))
    notes = {
        f"{Path(m.file).name} {m.variant}: {note}": None
        for m in measurements
        for note in m.notes()
    }
    for note in notes:
        print(note)


def _failure(measurements: list, may_refuse: bool) -> str | None:
    """Returns what was not measured and why; `None` if that is no failure.

    Args:
        measurements: all of a call.
        may_refuse: whether some may be missing.
    """
    failed = [m for m in measurements if m.status != MEASURED]
    is_nothing = len(failed) == len(measurements)
    if not failed or (may_refuse and not is_nothing):
        return None
    count = "" if is_nothing else f"{len(failed)} of {len(measurements)} "
    reasons = dict.fromkeys(m.reason for m in failed)
    if len(reasons) == 1:
        return f"error: {count}not measured. {failed[0].reason}"
    return "\n".join(
        [f"error: {count}not measured."]
        + [f"  {Path(m.file).name} {m.variant}: {m.reason}" for m in failed]
    )


def define_flags() -> None:
    target_flags.define_flags()
    flags.DEFINE_enum(
        "suite", None, list(suites.SUITES), "Measure these models instead of files."
    )
    flags.DEFINE_string("suite_dir", "runs/suite", "Where their files are, or go.")
    flags.DEFINE_string("output", None, "File that gets one JSON line a measurement.")


def _paths(argv: list[str], args) -> list[str]:
    if args.suite and argv:
        raise ValueError("--suite brings its own files: name none.")
    if args.suite:
        return suites.prepare(args.suite, Path(args.suite_dir).expanduser())
    if not argv and not args.parse:
        suffixes = " or ".join(targets.TARGETS[args.target].suffixes)
        raise ValueError(f"Name at least one {suffixes} file (or see --help).")
    targets.check_paths(argv, args.target)
    return argv


def main(argv) -> None:
    print_any_name()
    args, measurements, code, missing = flags.FLAGS, [], None, None
    try:
        target_flags.expand_paths(args)
        check_output(args.output)
        targets.check_flags(args)
        paths = _paths(argv[1:], args)
        missing = suites.missing(args.suite, paths) if args.suite else None
        measure(paths, args, measurements)
    except KeyboardInterrupt:
        ends_so = measurements and targets.TARGETS[args.target].ends_by_hand
        code = None if ends_so else INTERRUPTED
        print("ended" if ends_so else "interrupted", file=sys.stderr)
    except (ValueError, RuntimeError, OSError) as error:
        code = f"error: {error}"
    target = targets.TARGETS[args.target]
    failure = _failure(measurements, target.may_refuse) if measurements else None
    if any(m.status == MEASURED for m in measurements):
        show(measurements, args.target)
    sys.exit(code or failure or missing)


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(target_flags)  # so that --help shows them
    app.run(main)
