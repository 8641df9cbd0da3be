"""One pass over the validation images, for any task, on one device or on many."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from train.config import TrainConfig
from train.data import pipeline as data
from train.data.source import Source
from train.distribution.inputs import (
    Unreadable,
    distribute,
    refuse_nothing_seen,
    take_strings,
)
from train.run.progress import CheckpointManager, Progress
from train.step import as_numbers
from train.tasks.task import Task


def evaluate(
    task: Task,
    eval_step,
    source: Source,
    config: TrainConfig,
    strategy,
    progress: Progress,
    manager: CheckpointManager,
) -> dict:
    """Evaluates on the validation split.

    Args:
        task: what is trained.
        eval_step: from `train.step.make_eval_step`.
        source: where the images come from.
        config: gives size, crop and batch.
        strategy: that of the step.
        progress: where the run is.
        manager: saves it, and stops the run when it is asked to.

    Returns:
        The mean of each of the task's metrics, what its `score` gives, and
        `skipped_validation`, the number of images that could not be decoded.

    Raises:
        Preempted: if the run was asked to stop, and is saved.
    """
    replicas = strategy.num_replicas_in_sync
    part = -(-config.batch_size // (replicas * config.accumulation_steps))
    arguments = source, "validation", config.eval_size, replicas * part
    batches = distribute(
        strategy,
        lambda shard: data.eval_batches(
            *arguments, config.eval_crop, shard, task.eval_example
        ),
    )
    unreadable, totals, collected = Unreadable(), {}, []
    counted = task.count and Counts(task.count, source.class_names, strategy)
    for batch in batches:
        batch = unreadable.take_names(strategy, batch)
        strings = take_strings(strategy, batch)
        sums, predictions = eval_step(batch, tf.constant(manager.asked()))
        for name, value in as_numbers(sums).items():
            totals[name] = totals.get(name, 0.0) + value
        if counted:
            counted.add(strings, predictions)
        else:
            collected.append(task.unpad(_that_count(predictions)))
        manager.after_step(progress, totals["stop"] > 0)
    seen = round(totals.pop("count"))
    del totals["stop"]
    refuse_nothing_seen(seen, source, "validation", unreadable)
    means = {name: value / seen for name, value in totals.items()}
    found = counted.sums() if counted else _join(collected)
    return {
        **means,
        **task.score(source.class_names, found),
        "skipped_validation": source.num_examples["validation"] - seen,
    }


def _that_count(examples: dict) -> dict[str, np.ndarray]:
    """Returns examples in NumPy, those alone that count."""
    found = {name: np.asarray(value) for name, value in examples.items()}
    counts = found.pop("weight", np.array([])) > 0
    return {name: value[counts] for name, value in found.items()}


def _join(batches: list[dict]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


class Counts:
    """What a task counts on the examples of all workers, each on its own ones.

    They are counted where they were read, since strings stay there.
    """

    def __init__(self, count: Callable, class_names: Sequence[str], strategy):
        self.count = functools.partial(count, class_names)
        self.strategy, self.found = strategy, {}

    def add(self, strings: list[dict], predictions: dict) -> None:
        """Counts a batch: its strings by replica, and the step's predictions."""
        for index, of_replica in enumerate(strings):
            values = {
                name: self.strategy.experimental_local_results(value)[index]
                for name, value in predictions.items()
            }
            counts = self.count(_that_count({**values, **of_replica}))
            for name, value in counts.items():
                self.found[name] = self.found.get(name, 0) + value

    def sums(self) -> dict[str, np.ndarray]:
        """Returns the sums of what all workers counted."""
        return {name: self._sum(value) for name, value in self.found.items()}

    def _sum(self, counts: np.ndarray) -> np.ndarray:
        own = self.strategy.run(tf.identity, (tf.constant(counts[None]),))
        replicas = len(self.strategy.experimental_local_results(own))
        # All replicas of a worker hold the same.
        gathered = self.strategy.gather(own, axis=0).numpy()
        return gathered[::replicas].sum(axis=0)
