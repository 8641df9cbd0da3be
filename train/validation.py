"""One pass over the validation images, for any task, on one device or on many."""

import numpy as np
import tensorflow as tf

from train import data
from train.config import TrainConfig
from train.feeding import Unreadable, distribute, refuse_nothing_seen
from train.progress import CheckpointManager, Progress
from train.sources import Source
from train.step import as_numbers
from train.task import Task


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
        lambda share: data.eval_batches(
            *arguments, config.eval_crop, share, task.eval_example
        ),
    )
    unreadable, totals, collected = Unreadable(), {}, []
    for batch in batches:
        batch = unreadable.take_names(strategy, batch)
        sums, predictions = eval_step(batch, tf.constant(manager.asked()))
        for name, value in as_numbers(sums).items():
            totals[name] = totals.get(name, 0.0) + value
        collected.append(_counting(predictions))
        if task.adds_up:
            collected = [_sum(collected)]
        manager.after_step(progress, totals["stop"] > 0)
    seen = round(totals.pop("count"))
    del totals["stop"]
    refuse_nothing_seen(seen, source, "validation", unreadable)
    means = {name: value / seen for name, value in totals.items()}
    return {
        **means,
        **task.score(source.class_names, _join(collected)),
        "skipped_validation": source.num_examples["validation"] - seen,
    }


def _counting(predictions: dict) -> dict[str, np.ndarray]:
    """Returns a batch's predictions for the examples that count."""
    found = {name: value.numpy() for name, value in predictions.items()}
    counts = found.pop("weight", np.array([])) > 0
    return {name: value[counts] for name, value in found.items()}


def _join(batches: list[dict]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def _sum(batches: list[dict]) -> dict[str, np.ndarray]:
    joined = _join(batches).items()
    return {key: x.sum(axis=0, keepdims=True, dtype=np.int64) for key, x in joined}
