"""Measures whether a device waits for Python between two training steps.

Example:
  python benchmarks/slow_reader.py --work=0,0.1,0.2

The loop of `train/loop.py` trains MobileViT-XXS on the digits. The steps run in a
thread of their own, as on an accelerator, since TensorFlow computes without Python's
lock; before each of them Python has --work seconds of other work. `at once` reads the
sums of each step before it queues the next one, `later` is what training does. Both
take turns; the table has the median of the seconds per step.
"""

import concurrent.futures
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from absl import flags

from train.cli.command import run_command
from train.cli.console import quiet_libraries
from train.cli.tables import format_table

LAGS = {"at once": 0, "later": None}  # in calls; `None` for that of training
BATCH, SIZE, STEPS = 32, 64, 16


class _Later:
    """One of the sums of a step that still runs."""

    def __init__(self, sums: concurrent.futures.Future, name: str):
        self._sums, self._name = sums, name

    def __float__(self) -> float:
        return float(self._sums.result()[self._name])


def _in_thread(
    step: Callable, pool: concurrent.futures.Executor, work: float
) -> Callable:
    """Queues a training step behind those before it, after `work` seconds of Python."""

    def queue(*arguments) -> dict[str, _Later]:
        time.sleep(work)
        sums = pool.submit(step, *arguments)
        names = ("loss", "count", "not_finite", "request")
        return {name: _Later(sums, name) for name in names}

    return queue


def make_epoch() -> Callable[[int | None, float], float]:
    """Makes the function that trains an epoch, and returns the seconds per step.

    It takes a lag, see `LAGS`, and the seconds of Python's work before each step.
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
    training_lag = loop.LAG

    def epoch(lag: int | None, work: float) -> float:
        loop.LAG = training_lag if lag is None else lag
        manager = CheckpointManager(lambda _: None, math.inf, threading.Event())
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            queue = _in_thread(step, pool, work)
            record = loop.train_epoch(run, queue, Progress(), manager)
        return record["epoch_seconds"] / STEPS

    return epoch


def measure(work: list[float], rounds: int) -> str:
    """Returns the table of the medians, in seconds per step."""
    epoch = make_epoch()
    epoch(None, 0.0)  # compiles the step
    rows = []
    for each in work:
        seconds: dict[str, list[float]] = {name: [] for name in LAGS}
        for _ in range(rounds):
            for name, lag in LAGS.items():
                seconds[name].append(epoch(lag, each))
        rows.append([str(each), *map(statistics.median, seconds.values())])
    return format_table(["work", *LAGS], rows)


def main(argv: list[str]) -> None:
    """Measures, and prints the table."""
    del argv
    print(measure([*map(float, flags.FLAGS.work)], flags.FLAGS.rounds))


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_list("work", "0,0.1,0.2", "Seconds of Python's work before a step.")
    flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)


if __name__ == "__main__":
    run_command(main, __doc__, {"Flags": define_flags})
