"""Measures whether a simulated device waits for Python between two training steps.

Example:
  python benchmarks/slow_reader.py --work=0,0.1,0.2

The loop of `train/loop.py` trains MobileViT-XXS on the digits. A thread stands for the
device: TensorFlow computes there without Python's lock, and like a GPU it copies a
result only after all steps that were queued before the copy. Before each step Python
has --work seconds of other work. `at once` reads the sums of each step before it queues
the next one, `later` is what training does. Both take turns; the table has the median
of the seconds per step.
"""

import concurrent.futures
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from absl import flags

from train.cli.command import run_command
from train.cli.console import quiet_libraries
from train.cli.tables import format_table

WAYS = ("at once", "later")
BATCH, SIZE, STEPS = 32, 64, 16


class _Sums:
    """The sums of a step on a device, which copies after all that is queued."""

    def __init__(
        self, device: concurrent.futures.Executor, sums: concurrent.futures.Future
    ):
        self._device, self._sums = device, sums

    def items(self) -> Iterable[tuple[str, float]]:
        self._device.submit(int).result()
        return self._sums.result().items()


def _on_device(
    step: Callable, device: concurrent.futures.Executor, work: float
) -> Callable:
    """Queues a training step behind those before it, after `work` seconds of Python."""

    def queue(*arguments) -> _Sums:
        time.sleep(work)
        return _Sums(device, device.submit(step, *arguments))

    return queue


def make_epoch() -> Callable[[str, float], float]:
    """Makes the function that trains an epoch, and returns the seconds per step.

    It takes "at once" or "later", and the seconds of Python's work before each step.
    """
    with quiet_libraries():
        import tensorflow as tf

    from train import loop
    from train.config import make_config
    from train.data.digits import digits_source
    from train.data.source import indexed_source
    from train.models import build_state
    from train.run.progress import CheckpointManager, Progress
    from train.step import make_train_step
    from train.tasks.classification.task import CLASSIFICATION

    digits = digits_source()
    columns = dict(digits.columns or {})
    columns["train"] = {k: v[: STEPS * BATCH] for k, v in columns["train"].items()}
    source = indexed_source(digits.name, digits.class_names, columns)
    config = make_config("digits", sizes=(SIZE,), base_size=SIZE, batch_size=BATCH)
    strategy = tf.distribute.get_strategy()
    state = build_state(CLASSIFICATION, config, source, is_fresh=True)
    run = loop.Run(CLASSIFICATION, config, source, Path(), strategy)
    step = make_train_step(CLASSIFICATION, config, state, strategy)
    lags = {"at once": 0, "later": loop.LAG}

    def epoch(name: str, work: float) -> float:
        manager = CheckpointManager(lambda _: None, math.inf, threading.Event())
        with concurrent.futures.ThreadPoolExecutor(1) as device:
            queue = _on_device(step, device, work)
            record = loop.train_epoch(run, queue, Progress(), manager, lags[name])
        return record["epoch_seconds"] / STEPS

    return epoch


def measure(work: list[float], rounds: int) -> str:
    """Returns the table of the medians, in seconds per step."""
    epoch = make_epoch()
    epoch("later", 0.0)  # compiles the step
    rows = []
    for each in work:
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name in WAYS:
                seconds[name].append(epoch(name, each))
        rows.append([str(each), *map(statistics.median, seconds.values())])
    return format_table(["work", *WAYS], rows)


def main(argv: list[str]) -> None:
    """Measures, and prints the table."""
    del argv
    try:
        work = parse_work(flags.FLAGS.work)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(measure(work, flags.FLAGS.rounds))


def parse_work(texts: list[str]) -> list[float]:
    """Returns seconds as numbers."""
    try:
        work = [float(text) for text in texts]
    except ValueError:
        work = []
    if not work or not all(0 <= seconds < math.inf for seconds in work):
        raise ValueError(
            "--work takes seconds of at least 0, such as 0,0.1,0.2. Received: "
            f"{','.join(texts) or 'none'}."
        )
    return work


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_list("work", "0,0.1,0.2", "Seconds of Python's work before a step.")
    flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)


if __name__ == "__main__":
    run_command(main, __doc__, {"Flags": define_flags})
