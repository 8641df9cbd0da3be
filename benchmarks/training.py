"""Measures training: the step, and apart from it the pipeline that feeds it.

Examples:
  python benchmarks/training.py
  python benchmarks/training.py --model=mobilevit_xxs,mobilevit_s --sizes=128,160,192 \\
      --base_size=160 --batch_size=64 --output=steps.jsonl
  python benchmarks/training.py --runtimes=tensorflow,jax,timm --precision=mixed_bfloat16
  python benchmarks/training.py --what=inference --sizes=256 --batch_size=1
  python benchmarks/training.py --what=input --data=folder:photos

--what=step: images per second of a whole training step (forward, loss, backward, AdamW,
moving average of the weights) at every size of the multi-scale schedule, each with the
batch that the schedule gives it: with the TensorFlow that this project trains with,
with Keras's JAX backend, and with timm's model of the same name in PyTorch (takes
pip install '.[peers]'; it has no dropout, ours has). --what=inference: the forward
pass alone.

--what=input: images per second of pipelines that read JPEG files, crop at random,
resize and batch: the one that training uses (`ours`), the least that TensorFlow can do
(`bare`) and torchvision's, if that is installed. All read the same files, again and
again, so mostly from memory, and each is kept to as many cores as it has threads.

Each runs in a process of its own, and they take turns: a busy machine makes all of them
slower, so compare within one call. A ratio above 1 is faster than what it is named
after. --output adds a JSON line for each median.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "numpy"  # workers load TensorFlow, nothing does here
# Three times faster training on a CPU; read once, when a worker loads TensorFlow.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import datetime
import importlib.util
import json
from collections.abc import Iterator

import numpy as np
from absl import app, flags

from benchmarks import input_pipeline as benchmark_input
from benchmarks import steps as benchmark_steps
from benchmarks.workers import available_cores, started, take_turns
from keras_mobilevit.configs import MIN_SIZE, get_variant
from train.config import PRECISIONS
from train.data.sampler import batch_shapes
from train.run.tables import format_table

WHAT = ("step", "inference", "input")
STEPS, INPUT_STEPS = 5, 40  # a turn, unless it is said
INTERRUPTED = 130  # exit code, as of a shell
_PACKAGES = {"tensorflow": "tensorflow", "jax": "jax", "timm": "timm"}
_REFERENCES = ("bare", "timm", "torchvision")  # what others are compared with


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def choose_runtimes(names: list[str] | None) -> list[str]:
    """Returns the runtimes to measure: those named, or the usual ones.

    Raises:
        ValueError: if there is no such runtime, or it is not installed.
    """
    if names is None:
        if is_installed("timm"):
            return ["tensorflow", "timm"]
        print("timm is not measured, since it is not installed.")
        return ["tensorflow"]
    for name in names:
        if name not in _PACKAGES:
            raise ValueError(
                f"Unknown runtime {name!r} in --runtimes. Expected some of: "
                f"{', '.join(_PACKAGES)}."
            )
        if not is_installed(_PACKAGES[name]):
            extra = "peers" if name == "timm" else "dev"
            raise ValueError(
                f"{name} is not installed: pip install '.[{extra}]', or leave it out "
                "of --runtimes."
            )
    if not names:
        raise ValueError("--runtimes must name at least one. Received none.")
    return list(dict.fromkeys(names))


def choose_models(names: list[str]) -> list[str]:
    """Returns the variants to measure; a ValueError if there is one that is none."""
    if not names:
        raise ValueError("--model must name at least one variant. Received none.")
    return [get_variant(name).name for name in names]


def choose_threads(threads: int | None, default: int) -> int:
    """Returns the number of threads; a ValueError if there are not so many cores."""
    cores = len(available_cores())
    if (threads or default) > cores:
        raise ValueError(
            f"This process may use {cores} cores. Received: --threads={threads}."
        )
    return threads or default


def parse_sizes(sizes: list[str]) -> list[int]:
    """Returns image sides as numbers.

    Raises:
        ValueError: if one is no integer, or too small for the network.
    """
    try:
        sides = [int(size) for size in sizes]
    except ValueError as error:
        raise ValueError(
            f"--sizes takes integers, such as 128,160,192: {error}."
        ) from error
    if not sides or min(sides) < MIN_SIZE:
        raise ValueError(
            f"--sizes takes image sides of at least {MIN_SIZE}. Received: "
            f"{','.join(sizes) or 'none'}."
        )
    return sides


def make_record(subject: dict, seconds: list[float], greeting: dict) -> dict:
    """Returns what was measured, for JSON.

    Args:
        subject: what it was; has the `batch` among others.
        seconds: of each step or batch.
        greeting: what the worker told of itself.
    """
    low, median, high = np.percentile(seconds, (25, 50, 75)).tolist()
    return {
        **subject,
        "images_per_second": subject["batch"] / median,
        "median_seconds": median,
        "lower_quartile_seconds": low,
        "upper_quartile_seconds": high,
        "samples": len(seconds),
        **greeting,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
    }


def measure_steps(args) -> Iterator[dict]:
    """Measures training steps or forward passes.

    Args:
        args: flags.

    Yields:
        A record for each model, size and runtime.
    """
    shapes = batch_shapes(parse_sizes(args.sizes), args.base_size, args.batch_size)
    runtimes = choose_runtimes(args.runtimes)
    common = {
        "what": args.what,
        "precision": args.precision,
        "xla": args.xla,
        "threads": choose_threads(args.threads, len(available_cores())),
    }
    for model in choose_models(args.model):
        contenders = {
            name: (
                common | {"model": model, "runtime": name},
                benchmark_steps.ENVIRONMENTS.get(name, {}),
            )
            for name in runtimes
        }
        # New processes for each model: no memory is left over from the last.
        with started("benchmarks.steps", contenders) as workers:
            for shape in shapes:
                subject = {"model": model, "size": shape.height, "batch": shape.batch}
                yield from _measure_shape(workers, common | subject, args)


def _measure_shape(workers: list, subject: dict, args) -> Iterator[dict]:
    request = {"size": subject["size"], "batch": subject["batch"]}
    take_turns(workers, request | {"warmup": args.warmup, "steps": 0}, rounds=1)
    # Before each turn a step brings back what the others' have driven from the caches.
    request |= {"warmup": 1, "steps": args.steps or STEPS}
    seconds = take_turns(workers, request, args.rounds)
    for worker in workers:
        named = subject | {"runtime": worker.name}
        yield make_record(named, seconds[worker.name], worker.greeting)


def _listed_files(args, at_most: int) -> dict:
    """Lists about so many files to read, and says which are left out."""
    kind, _, path = (args.data or "").partition(":")
    if kind != "folder" or not path:
        raise ValueError(
            f"--what=input takes --data=folder:PATH. Received: {args.data or 'none'}."
        )
    folder = Path(path).expanduser().absolute() / "train"
    files, labels, others = benchmark_input.list_jpegs(folder, at_most)
    if others:
        print(
            f"{len(others)} of {len(files) + len(others)} files are not read, "
            f"{others[0]} among them: `bare` reads nothing but JPEG."
        )
    return {"folder": str(folder), "files": files, "labels": labels}


def measure_input(args) -> Iterator[dict]:
    """Measures input pipelines.

    Args:
        args: flags.

    Yields:
        A record for each pipeline.
    """
    threads = choose_threads(args.threads, default=1)
    common = {"size": args.size, "batch": args.batch_size, "threads": threads}
    steps = args.steps or INPUT_STEPS
    images = benchmark_input.images_of_turn(steps, args.batch_size, threads)
    settings = common | _listed_files(args, images)
    pipelines = list(benchmark_input.PIPELINES)
    if not is_installed("torchvision"):
        pipelines.remove("torchvision")
        print("torchvision is not measured, since it is not installed.")
    contenders = {
        name: (settings | {"pipeline": name}, benchmark_input.ENVIRONMENT)
        for name in pipelines
    }
    with started("benchmarks.input_pipeline", contenders) as workers:
        seconds = take_turns(workers, {"steps": steps}, args.rounds)
        subject = {"what": "input", "data": args.data, "files": len(settings["files"])}
        for worker in workers:
            named = subject | common | {"pipeline": worker.name}
            yield make_record(named, seconds[worker.name], worker.greeting)


def _speeds(records: list[dict], key: str) -> dict[str, float]:
    return {record[key]: record["images_per_second"] for record in records}


def format_steps(records: list[dict]) -> str:
    """Lays out a row a shape: images per second by runtime, and relative to timm."""
    runtimes = list(dict.fromkeys(record["runtime"] for record in records))
    others = [name for name in runtimes if name != "timm" and "timm" in runtimes]
    shapes = {}
    for record in records:
        shape = record["model"], record["size"], record["batch"]
        shapes.setdefault(shape, []).append(record)
    rows = []
    for shape, group in shapes.items():
        speeds = _speeds(group, "runtime")
        row = [*shape, *(speeds.get(name) for name in runtimes)]
        rows.append(row + [_ratio(speeds, name, "timm") for name in others])
    headings = ["model", "size", "batch", *runtimes]
    return format_table(headings + [f"{name}/timm" for name in others], rows)


def format_input(records: list[dict]) -> str:
    """Lays out a row a pipeline: images per second, and relative to the others."""
    speeds = _speeds(records, "pipeline")
    references = [name for name in _REFERENCES if name in speeds]
    rows = [
        [
            record["pipeline"],
            record["images_per_second"],
            record["images_per_second"] / record["threads"],
            *(_ratio(speeds, record["pipeline"], name) for name in references),
        ]
        for record in records
    ]
    headings = ["pipeline", "images/s", "a core"]
    return format_table(headings + [f"/{name}" for name in references], rows)


def _ratio(speeds: dict, name: str, reference: str) -> float | None:
    if name not in speeds or reference not in speeds:
        return None
    return speeds[name] / speeds[reference]


def title(record: dict) -> str:
    """Says under which circumstances the table's numbers were measured."""
    if record["what"] == "input":
        what = f"{record['files']} files to batches of {record['batch']} images"
        return f"{what} of {record['size']} x {record['size']}, images/s"
    what = {"step": "training step", "inference": "inference"}[record["what"]]
    xla = ", TensorFlow with XLA" if record["xla"] else ""
    return f"{what}, {record['precision']}{xla}, images/s"


def notes(records: list[dict]) -> list[str]:
    """Returns what must be known beside the table."""
    devices = dict.fromkeys(record["device"] for record in records)
    lines = [f"{' and '.join(devices)}, CPU threads: {records[0]['threads']}"]
    if records[0]["what"] == "input":
        return lines
    if len(devices) > 1:
        lines.append("Not all ran on the same device: their ratios say nothing.")
    if all(record["accelerator"] == "cpu" for record in records):
        lines.append("Measured on the CPU; the figure for a GPU is not measured.")
    return lines


def show(records: list[dict]) -> None:
    """Prints the table, and what must be known beside it."""
    layout = format_input if records[0]["what"] == "input" else format_steps
    print(title(records[0]))
    print(layout(records))
    print("\n".join(notes(records)))


def check_output(path: str | None) -> None:
    """Raises a ValueError if records cannot be written there."""
    if path and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"There is no folder for --output={path}.")


def define_flags() -> None:
    flags.DEFINE_enum("what", "step", WHAT, "What to measure.")
    flags.DEFINE_list(
        "model", ["mobilevit_xxs"], "Some of mobilevit_xxs, mobilevit_xs, mobilevit_s."
    )
    flags.DEFINE_list(
        "sizes", ["160", "192", "256", "288", "320"], "Image sides in pixels."
    )
    define = flags.DEFINE_integer
    define("base_size", 256, "Side that has a batch of --batch_size.", lower_bound=1)
    define(
        "batch_size",
        32,
        "Images in a batch at --base_size; at another size as many as have the same "
        "number of pixels. With --what=input: in every batch.",
        lower_bound=1,
    )
    define(
        "threads",
        None,
        "CPU threads, and cores. Default: all; with --what=input one.",
        lower_bound=1,
    )
    flags.DEFINE_list(
        "runtimes",
        None,
        "Some of tensorflow, jax, timm. Default: tensorflow, and timm if installed.",
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        PRECISIONS,
        "Keras's dtype policy; for timm the same by torch.autocast.",
    )
    flags.DEFINE_boolean("xla", False, "Compile TensorFlow's step with XLA.")
    flags.DEFINE_string(
        "data", None, "folder:PATH, whose train split --what=input reads."
    )
    define("size", 256, "Side of images with --what=input.", lower_bound=MIN_SIZE)
    define("rounds", 5, "Turns of each.", lower_bound=1)
    define(
        "steps",
        None,
        f"Steps that are measured a turn (default: {STEPS}); with --what=input, "
        f"batches (default: {INPUT_STEPS}).",
        lower_bound=1,
    )
    define("warmup", 2, "Steps before the first turn of a size.", lower_bound=1)
    flags.DEFINE_string("output", None, "File that gets one JSON line a median.")


def measure(args, records: list[dict]) -> None:
    """Measures, and writes each record as it comes.

    Args:
        args: flags.
        records: gets them.
    """
    check_output(args.output)
    measured = measure_input(args) if args.what == "input" else measure_steps(args)
    with open(args.output or os.devnull, "a", encoding="utf-8") as output:
        for record in measured:
            records.append(record)
            output.write(json.dumps(record, allow_nan=False) + "\n")
            output.flush()


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    records, code = [], None
    try:
        measure(flags.FLAGS, records)
    except KeyboardInterrupt:
        code = INTERRUPTED
        print("interrupted", file=sys.stderr)
    except (ValueError, RuntimeError, OSError) as error:
        code = f"error: {error}"
    if records:
        show(records)
    sys.exit(code)


if __name__ == "__main__":
    define_flags()
    app.run(main)
