"""One pass over the validation images, for any task, model and number of devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from train.config import TrainConfig
from train.data import pipeline as data
from train.data.source import Source
from train.data.unreadable import refuse_nothing_read
from train.distribution.inputs import UnreadableLog, distribute, take_strings
from train.evaluation.predictor import Predictor
from train.in_flight import InFlight
from train.step import EvalResult, as_numbers
from train.tasks.task import Task

# Batches that are queued before the results of an earlier one are read.
EVAL_LAG = 1


@dataclasses.dataclass(frozen=True)
class EvalInputs:
    """The preparation of validation images."""

    size: int
    crop_fraction: float  # of the short side that the center crop keeps
    batch_size: int  # over all devices
    to_devices: bool = True  # False where the step reads the batches in Python


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    seen: int  # images that could be read
    metrics: dict[str, float]  # means of the step's sums, and the task's score
    statistics: dict[str, np.ndarray]  # from which the score was computed
    unreadable: list[str]  # names of the images that could not be read


def evaluate(
    task: Task,
    step: Callable[[dict], EvalResult],
    source: Source,
    inputs: EvalInputs,
    strategy: tf.distribute.Strategy,
    after_batch: Callable[[dict[str, float]], None],
) -> Evaluation:
    """Evaluates a model on the validation split.

    `after_batch` gets the sums of each batch, after the next one, if any, was queued;
    it may stop the evaluation by an exception.
    """
    batches = distribute(
        strategy,
        lambda shard: data.eval_batches(
            source,
            "validation",
            inputs.size,
            inputs.batch_size,
            inputs.crop_fraction,
            shard,
            task.eval_example,
        ),
        inputs.to_devices,
    )
    unreadable = UnreadableLog(source, "validation", strategy)
    totals = dict[str, float]()
    statistics = _Statistics(task, source, strategy)

    def read(queued: _Queued) -> None:
        sums = queued.result.sums
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
        unreadable.read(queued.taken)
        statistics.add(queued.result, queued.strings)
        after_batch(sums)

    copy = functools.partial(_copy, unreadable, statistics)
    with InFlight(copy, read, EVAL_LAG) as in_flight:
        for batch in batches:
            taken, strings = unreadable.take(batch), take_strings(strategy, batch)
            in_flight.push(_Queued(step(batch), strings, taken))
        in_flight.drain()
    seen = round(totals["count"])
    if not seen:
        refuse_nothing_read(source, "validation", unreadable.names)
    means = {
        name: value / seen
        for name, value in totals.items()
        if name not in ("count", "request")
    }
    found = statistics.total()
    metrics = {**means, **task.score(source.class_names, found)}
    return Evaluation(seen, metrics, found, unreadable.names)


class _Queued(NamedTuple):
    """A batch whose results are not read yet."""

    result: EvalResult
    strings: list[dict[str, np.ndarray]]  # of each local replica
    taken: Any  # by `UnreadableLog.take`


def _copy(
    unreadable: UnreadableLog, statistics: "_Statistics", queued: _Queued
) -> _Queued:
    """Returns a queued batch whose results are on the host."""
    sums, predictions, targets = queued.result
    result = EvalResult(
        as_numbers(sums), statistics.copy(predictions), statistics.copy(targets)
    )
    return _Queued(result, queued.strings, unreadable.copy(queued.taken))


class _Statistics:
    """The statistics of all examples.

    Each worker computes the summable ones of its own examples, since strings cannot be
    exchanged; they are summed over the workers at the end.
    """

    def __init__(self, task: Task, source: Source, strategy: tf.distribute.Strategy):
        self.task, self.strategy = task, strategy
        self.compute = functools.partial(task.statistics, source.class_names)
        self.found: list[dict[str, np.ndarray]] = []

    def add(self, result: EvalResult, strings: list[dict[str, np.ndarray]]) -> None:
        """Adds a batch: its copied result, and the strings of each local replica."""
        # What is not summable was gathered: each worker has the examples of all.
        for index, own in enumerate(strings if self.task.summable else [{}]):
            targets = {name: local[index] for name, local in result.targets.items()}
            targets |= own
            counts = targets.pop("weight") > 0
            predictions = {
                name: local[index] for name, local in result.predictions.items()
            }
            found = self.compute(
                {name: value[counts] for name, value in predictions.items()},
                {name: value[counts] for name, value in targets.items()},
            )
            if self.task.summable and self.found:
                found = {name: self.found[0][name] + found[name] for name in found}
                self.found = [found]
            else:
                self.found.append(found)

    def copy(self, values: dict) -> dict[str, list[np.ndarray]]:
        """Copies values to the host, for each replica of this worker."""
        local = self.strategy.experimental_local_results
        return {
            name: [np.asarray(part) for part in local(value)]
            for name, value in values.items()
        }

    def total(self) -> dict[str, np.ndarray]:
        """Returns the statistics of the examples of all workers."""
        names = self.found[0]
        if self.task.summable:
            return {name: self._sum_over_workers(self.found[0][name]) for name in names}
        return {name: np.concatenate([x[name] for x in self.found]) for name in names}

    def _sum_over_workers(self, counts: np.ndarray) -> np.ndarray:
        own = self.strategy.run(tf.identity, (tf.constant(counts[None]),))
        replicas = len(self.strategy.experimental_local_results(own))
        # All replicas of a worker have the same counts.
        gathered = self.strategy.gather(own, axis=0).numpy()
        return gathered[::replicas].sum(axis=0)


def evaluate_predictor(
    task: Task, predictor: Predictor, source: Source, config: TrainConfig
) -> Evaluation:
    """Evaluates a model from a file on the validation split, with a progress bar."""
    kind, images = task.model_kind, source.num_examples["validation"]
    # Equal batches: the last one has little padding, which is predicted too.
    batches = max(1, -(-images // kind.batch_size))
    size, per_batch = predictor.size, max(1, -(-images // batches))
    inputs = EvalInputs(size, config.eval_crop, per_batch, to_devices=False)

    def step(batch: dict) -> EvalResult:
        targets = dict(batch)
        predictions = predictor.predict(targets.pop("image"))
        kind.check(predictions, source)
        sums = {"count": tf.reduce_sum(batch["weight"])}
        return EvalResult(sums, predictions, targets)

    with tqdm(total=images, unit="img", disable=None, leave=False) as bar:
        return evaluate(
            task,
            step,
            source,
            inputs,
            tf.distribute.get_strategy(),
            lambda sums: bar.update(round(sums["count"])),
        )
