"""Measures training: the step, and the pipeline that feeds it.

Examples:
  python benchmarks/training.py
  python benchmarks/training.py --model=mobilevit_s --sizes=128,160 --base_size=160
  python benchmarks/training.py --model=mobilevit_xxs,mobilevit_s --output=steps.jsonl
  python benchmarks/training.py --runtimes=jax,timm --precision=mixed_bfloat16
  python benchmarks/training.py --what=inference --sizes=256 --batch_size=1
  python benchmarks/training.py --what=input --data=folder:photos

--what=step: images per second of a whole training step (forward, loss, backward, AdamW,
moving average of the weights) at every size of the multi-scale schedule, with the
batch of that size: in TensorFlow, with which this project trains, in Keras's JAX
backend, and in timm's model of the same name in PyTorch (needs
pip install '.[peers]'; it has no dropout, ours has). --what=inference: the forward
pass alone.

--what=input: images per second of pipelines that read JPEG files, crop at random,
resize and batch: the pipeline of training (`ours`), the fewest steps that TensorFlow
needs for it (`bare`), and torchvision's, if it is installed. All read the same files
again and again, mostly from memory, and use as many cores as they have threads.

Each candidate has its own process, and they take turns. A busy machine slows down all
of them, so compare numbers within one run. A ratio above 1 means faster than the
reference in the column's name. --output adds one JSON line for each median.
"""

import datetime
import functools
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from absl import flags

from benchmarks import input_pipeline, steps
from benchmarks.tables import show
from benchmarks.workers import (
    Candidate,
    Worker,
    available_cores,
    measure_in_turns,
    started,
)
from train.cli.command import INTERRUPTED, run_command
from train.cli.console import quiet_libraries
from train.cli.json_lines import append_text, check_output
from train.cli.networks import variant_names
from train.config import MIN_SIZE, PRECISIONS
from train.data.sampler import batch_shapes

WHAT = ("step", "inference", "input")
STEPS, INPUT_STEPS = 5, 40  # per turn, by default
# Defines a flag whose value is an integer of at least 1.
_define_count = functools.partial(flags.DEFINE_integer, lower_bound=1)


def is_installed(package: str) -> bool:
    """Tells whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def choose_runtimes(names: list[str] | None) -> list[str]:
    """Returns the runtimes to measure: the given ones, or the usual ones."""
    if names is None:
        if is_installed("timm"):
            return ["tensorflow", "timm"]
        print("timm is not measured, since it is not installed.")
        return ["tensorflow"]
    for name in names:
        if name not in steps.RUNTIMES:
            raise ValueError(
                f"Unknown runtime {name!r} in --runtimes. Expected some of: "
                f"{', '.join(steps.RUNTIMES)}."
            )
        if not is_installed(name):
            extra = "peers" if name == "timm" else "dev"
            raise ValueError(
                f"{name} is not installed: pip install '.[{extra}]', or remove it "
                "from --runtimes."
            )
    if not names:
        raise ValueError("--runtimes must name at least one. Received none.")
    return list(dict.fromkeys(names))


def choose_models(names: list[str]) -> list[str]:
    """Returns the variants to measure."""
    if not names:
        raise ValueError("--model must name at least one variant. Received none.")
    # Workers load TensorFlow; here only the table of variants is needed.
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    with quiet_libraries():
        from keras_mobilevit.configs import get_variant

    return [get_variant(name).name for name in names]


def choose_threads(threads: int | None, default: int) -> int:
    """Returns the number of threads, at most one for each core."""
    threads, cores = threads or default, len(available_cores())
    if threads > cores:
        raise ValueError(
            f"This process may use {cores} cores. Received: --threads={threads}."
        )
    return threads


def parse_sizes(sizes: list[str]) -> list[int]:
    """Returns image sides as numbers."""
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


def make_record(subject: dict, seconds: list[float], info: dict) -> dict:
    """Returns a measurement of a subject with `batch` as a record for JSON."""
    low, median, high = np.percentile(seconds, (25, 50, 75)).tolist()
    return {
        **subject,
        "images_per_second": subject["batch"] / median,
        "median_seconds": median,
        "lower_quartile_seconds": low,
        "upper_quartile_seconds": high,
        "samples": len(seconds),
        **info,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
    }


def measure_steps(args: flags.FlagValues) -> Iterator[dict]:
    """Yields a record for each model, size and runtime."""
    shapes = batch_shapes(parse_sizes(args.sizes), args.base_size, args.batch_size)
    runtimes = choose_runtimes(args.runtimes)
    common = {
        "what": args.what,
        "precision": args.precision,
        "xla": args.xla,
        "threads": choose_threads(args.threads, len(available_cores())),
    }
    for model in choose_models(args.model):
        candidates = {}
        for name in runtimes:
            settings = common | {"model": model, "runtime": name}
            environment = steps.ENVIRONMENTS.get(name, {})
            candidates[name] = Candidate(steps.start, settings, environment)
        # New processes for each model: no memory is left over from the last.
        with started(candidates) as workers:
            for shape in shapes:
                subject = {"model": model, "size": shape.height, "batch": shape.batch}
                yield from _measure_shape(workers, common | subject, args)


def _measure_shape(
    workers: list[Worker], subject: dict, args: flags.FlagValues
) -> Iterator[dict]:
    request = {"size": subject["size"], "batch": subject["batch"]}
    measure_in_turns(workers, request | {"warmup": args.warmup, "steps": 0}, rounds=1)
    # One step before each turn refills the caches, which the other workers have used.
    request |= {"warmup": 1, "steps": args.steps or STEPS}
    seconds = measure_in_turns(workers, request, args.rounds)
    for worker in workers:
        named = subject | {"runtime": worker.name}
        yield make_record(named, seconds[worker.name], worker.info)


def _listed_files(args: flags.FlagValues, at_most: int) -> dict:
    """Lists about `at_most` files to read, and reports which are skipped."""
    kind, _, path = (args.data or "").partition(":")
    if kind != "folder" or not path:
        raise ValueError(
            f"--what=input needs --data=folder:PATH. Received: {args.data or 'none'}."
        )
    folder = Path(path).expanduser().absolute() / "train"
    files, labels, others = input_pipeline.list_jpegs(folder, at_most)
    if others:
        print(
            f"{len(others)} of {len(files) + len(others)} files are skipped, such as "
            f"{others[0]}: `bare` reads only JPEG files."
        )
    return {"folder": str(folder), "files": files, "labels": labels}


def measure_input(args: flags.FlagValues) -> Iterator[dict]:
    """Yields a record for each pipeline."""
    threads = choose_threads(args.threads, default=1)
    common = {"size": args.size, "batch": args.batch_size, "threads": threads}
    count = args.steps or INPUT_STEPS
    images = input_pipeline.images_of_turn(count, args.batch_size, threads)
    settings = common | _listed_files(args, images)
    environment = input_pipeline.ENVIRONMENT
    pipelines = list(input_pipeline.PIPELINES)
    if not is_installed("torchvision"):
        pipelines.remove("torchvision")
        print("torchvision is not measured, since it is not installed.")
    candidates = {}
    for name in pipelines:
        own = settings | {"pipeline": name}
        candidates[name] = Candidate(input_pipeline.start, own, environment)
    with started(candidates) as workers:
        seconds = measure_in_turns(workers, {"steps": count}, args.rounds)
        subject = {"what": "input", "data": args.data, "files": len(settings["files"])}
        for worker in workers:
            named = subject | common | {"pipeline": worker.name}
            yield make_record(named, seconds[worker.name], worker.info)


def define_step_flags() -> None:
    """Defines the flags of --what=step and --what=inference."""
    text = f"Any of {', '.join(variant_names())}."
    flags.DEFINE_list("model", "mobilevit_xxs", text)
    text = "Any of tensorflow, jax, timm. Default: tensorflow, and timm if installed."
    flags.DEFINE_list("runtimes", None, text)
    flags.DEFINE_list("sizes", "160,192,256,288,320", "Image sides in pixels.")
    _define_count("base_size", 256, "Size at which a batch has --batch_size images.")
    text = "Dtype policy of Keras; timm uses torch.autocast."
    flags.DEFINE_enum("precision", "float32", PRECISIONS, text)
    flags.DEFINE_boolean("xla", False, "Compile the step of TensorFlow with XLA.")
    _define_count("warmup", 2, "Steps before the first turn of each size, unmeasured.")


def define_input_flags() -> None:
    """Defines the flags of --what=input."""
    flags.DEFINE_string("data", None, "folder:PATH. Its training images are read.")
    text = "Side of the images in pixels."
    flags.DEFINE_integer("size", 256, text, lower_bound=MIN_SIZE)


def define_common_flags() -> None:
    """Defines the flags of every measurement."""
    flags.DEFINE_enum("what", "step", WHAT, "What to measure.")
    _define_count(
        "batch_size",
        32,
        "Images per batch at --base_size. At other sizes the number of pixels per "
        "batch stays the same. With --what=input: images in every batch.",
    )
    text = "CPU threads, and cores. Default: all; with --what=input 1."
    _define_count("threads", None, text)
    _define_count("rounds", 5, "Turns of each candidate.")
    _define_count(
        "steps",
        None,
        f"Measured steps per turn. Default: {STEPS}; with --what=input {INPUT_STEPS} "
        "batches.",
    )
    flags.DEFINE_string(
        "output", None, "The .jsonl file to which each median adds a line."
    )


FLAG_GROUPS = {
    "Every measurement": define_common_flags,
    "Training steps and inference": define_step_flags,
    "Input pipelines": define_input_flags,
}


def measure(args: flags.FlagValues, records: list[dict]) -> None:
    """Measures, and adds each record to the output and to `records` at once."""
    if args.output:
        check_output(args.output)
        append_text(args.output, "")  # before anything is measured
    measured = measure_input(args) if args.what == "input" else measure_steps(args)
    for record in measured:
        records.append(record)
        if args.output:
            append_text(args.output, json.dumps(record, allow_nan=False) + "\n")


def main(argv: list[str]) -> None:
    """Measures, and shows what was measured, also after an interruption."""
    del argv
    records: list[dict] = []
    code: int | str | None = None
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
    # Training on a CPU is three times faster with it. The workers inherit both.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run_command(main, __doc__, FLAG_GROUPS)
