"""The training loop, for any task, on one device or on many."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from train import schedules
from train.batch_statistics import learn_over_steps
from train.checks import check_training, shared_shapes
from train.config import TrainConfig
from train.data import pipeline as data
from train.data import sampler
from train.data.sampler import BatchShape
from train.data.source import Source
from train.data.unreadable import refuse_nothing_read
from train.distribution.inputs import UnreadableLog, distribute
from train.distribution.strategies import has_workers, is_chief
from train.evaluation.evaluate import EvalInputs, evaluate
from train.in_flight import InFlight
from train.models import TrainState
from train.run.checkpoint import save_checkpoint, save_model
from train.run.lock import only_training
from train.run.pictures import make_drawing
from train.run.progress import STOP, CheckpointManager, Progress, stop_on_sigterm
from train.run.records import RecordWriter
from train.run.start import Run, start_or_continue
from train.run.workdir import BEST_MODEL, check_workdir, prepare_workdir
from train.step import EvalResult, as_numbers, make_eval_step, make_train_step
from train.tasks.task import Task

SAVE_SECONDS = 600.0  # between checkpoints within an epoch
# Calls queued after one before it is read: one that the device computes, and one that
# it can begin with while Python works.
LAG = 2


@dataclasses.dataclass(frozen=True)
class _Call:
    """A queued call of the training step."""

    steps: range  # of the run
    shape: BatchShape
    rate: float  # of the last step
    sums: dict[str, Any]
    taken: list  # by `UnreadableLog.take`, of each batch


def train_epoch(
    run: Run,
    train_step: Callable,
    progress: Progress,
    manager: CheckpointManager,
    lag: int = LAG,
) -> dict:
    """Trains on the rest of an epoch, and returns its record."""
    unreadable = UnreadableLog(run.source, "train", run.strategy)
    with _progress_bar(run, progress) as bar:
        reader = _CallReader(progress, unreadable, bar)
        with InFlight(reader.copy, reader.read, lag) as in_flight:
            for call in _queue_calls(run, train_step, progress, manager):
                in_flight.push(call)
                # Several workers must act after the same step, so they wait for the
                # requests in the sums. A process alone acts at once.
                is_alone = not has_workers(run.strategy)
                requested = manager.request() if is_alone else reader.requested
                if requested:
                    in_flight.drain()
                    manager.checkpoint(
                        progress, max(requested, reader.requested) >= STOP
                    )
                    reader.requested = 0.0
            in_flight.drain()
    if not progress.seen:
        refuse_nothing_read(run.source, "train", unreadable.names)
    last_step = progress.step - 1
    return {
        "step": progress.step,
        "skipped_train": run.source.num_examples["train"] - progress.seen,
        "train_loss": progress.loss / progress.seen,
        "learning_rate": schedules.learning_rate(run.config, last_step, progress.epoch),
        "images_per_second": progress.seen / max(progress.seconds, 1e-9),
        "epoch_seconds": progress.seconds,
    }


def _epoch_schedule(run: Run, epoch: int) -> list[BatchShape]:
    return sampler.epoch_schedule(
        shared_shapes(run.config, run.strategy),
        run.source.num_examples["train"],
        epoch,
        run.config.seed,
        repeats=run.config.steps_per_execution,
    )


def _train_batches(run: Run, schedule: list[BatchShape], progress: Progress):
    """Makes the distributed batches of the rest of an epoch."""
    epoch, first_step = progress.epoch, progress.epoch_step
    return distribute(
        run.strategy,
        lambda shard: data.train_batches(
            run.source,
            run.config,
            schedule,
            epoch,
            first_step,
            shard,
            run.task.train_example,
            run.task.mix,
        ),
    )


def _queue_calls(
    run: Run,
    train_step: Callable,
    progress: Progress,
    manager: CheckpointManager,
) -> Iterator[_Call]:
    """Queues the calls of the rest of an epoch, each when it is asked for.

    A call trains one step on each of some batches of one shape. `progress` is updated
    later, when calls are read, so the steps are counted here.
    """
    config, epoch = run.config, progress.epoch
    schedule = _epoch_schedule(run, epoch)
    if progress.epoch_step > len(schedule):
        raise ValueError(
            f"{run.checkpoint} is damaged: it has {progress.epoch_step} steps of an "
            f"epoch of {len(schedule)}. Start again with another --workdir."
        )
    iterator = iter(_train_batches(run, schedule, progress))
    shapes = schedule[progress.epoch_step :]
    counts = data.steps_of_calls(shapes, config.steps_per_execution)
    first_steps = np.cumsum([0, *counts]).tolist()
    start = progress.step
    for first, count in zip(first_steps, counts):
        batches = [next(iterator) for _ in range(count)]
        taken = [UnreadableLog.take(batch) for batch in batches]
        steps = range(start + first, start + first + count)
        rates = [schedules.learning_rate(config, step, epoch) for step in steps]
        ema_momentums = [schedules.ema_momentum(config, step) for step in steps]
        sums = train_step(
            tuple(batches),
            tf.constant(rates),
            tf.constant(ema_momentums),
            tf.constant(manager.request()),
        )
        yield _Call(steps, shapes[first], rates[-1], sums, taken)


class _CallReader:
    """Adds what queued calls return to the progress of the run.

    All workers read the same calls between the same two steps. So they answer the
    requests in these calls together, and a run that has diverged ends on all of them.

    Attributes:
        requested: the largest request since it was last set to 0, see
            `train.run.progress`.
    """

    def __init__(self, progress: Progress, unreadable: UnreadableLog, bar: tqdm):
        self.requested = 0.0
        self._progress, self._unreadable, self._bar = progress, unreadable, bar
        self._start = time.perf_counter() - progress.seconds

    def copy(self, call: _Call) -> _Call:
        """Returns a call whose results are on the host."""
        taken = [self._unreadable.copy(batch) for batch in call.taken]
        return dataclasses.replace(call, sums=as_numbers(call.sums), taken=taken)

    def read(self, call: _Call) -> None:
        """Reads a copied call; raises a FloatingPointError if the run has diverged."""
        sums, progress, bar = call.sums, self._progress, self._bar
        _refuse_divergence(sums, call.steps, progress.epoch, call.rate, call.shape)
        for taken in call.taken:
            self._unreadable.read(taken)
        progress.add(len(call.steps), sums, time.perf_counter() - self._start)
        mean_loss = sums["loss"] / max(sums["count"], 1)
        bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
        bar.update(round(sums["count"]))
        self.requested = max(self.requested, sums["request"])


def _progress_bar(run: Run, progress: Progress) -> tqdm:
    return tqdm(
        total=run.source.num_examples["train"],
        initial=progress.seen,
        desc=f"epoch {progress.epoch + 1}/{run.config.epochs}",
        unit="img",
        disable=None,  # no bar where the output is no terminal
        leave=False,
    )


def _refuse_divergence(
    sums: dict, steps: range, epoch: int, rate: float, shape: BatchShape
) -> None:
    is_loss = not np.isfinite(sums["loss"])
    if not is_loss and not sums["not_finite"]:
        return
    what = f"The loss is {sums['loss']}" if is_loss else "Gradients are not finite"
    numbers = "-".join(str(step + 1) for step in sorted({steps[0], steps[-1]}))
    raise FloatingPointError(
        f"{what} at step {numbers} of the run, in epoch {epoch + 1} ({shape.batch} "
        f"images of {shape.height}x{shape.width} pixels, learning rate {rate:.2e}). "
        "The last checkpoint was saved at an earlier step and is complete. Try a lower "
        "--learning_rate or more --warmup_steps."
    )


def validate(
    run: Run, eval_step: Callable, progress: Progress, manager: CheckpointManager
) -> dict:
    """Returns the metrics of the validation split, between two epochs."""
    config, replicas = run.config, run.strategy.num_replicas_in_sync
    part = -(-config.batch_size // (replicas * config.accumulation_steps))
    inputs = EvalInputs(config.eval_size, config.eval_crop, replicas * part)

    def step(batch: dict) -> EvalResult:
        return eval_step(batch, tf.constant(manager.request()))

    def after_batch(sums: dict[str, float]) -> None:
        shall_stop = sums["request"] >= STOP
        # The weights do not change here, so workers need not save after the same batch.
        if shall_stop or manager.is_time():
            manager.checkpoint(progress, shall_stop)

    found = evaluate(run.task, step, run.source, inputs, run.strategy, after_batch)
    skipped = run.source.num_examples["validation"] - found.seen
    return {**found.metrics, "skipped_validation": skipped}


def _finish_epoch(
    run: Run, state: TrainState, writer: RecordWriter, record: dict, best: float
) -> None:
    """Writes the record of an epoch, and the model if it is the best so far."""
    value = record[writer.best_metric]
    if value > best:
        save_model(state.ema_model, run.workdir / BEST_MODEL)
    # Before the checkpoint, which marks the epoch as done: after a kill between the two
    # the record is written again.
    writer.write(record)
    logging.info(
        "epoch %d  loss %.3f  %s %.2f %%  %.0f images/s",
        record["epoch"],
        record["train_loss"],
        writer.best_metric,
        100 * value,
        record["images_per_second"],
    )


def train_and_evaluate(
    task: Task,
    config: TrainConfig,
    source: Source,
    workdir: Path | str,
    save_seconds: float = SAVE_SECONDS,
    strategy: tf.distribute.Strategy | None = None,
) -> list[dict]:
    """Trains for the configured epochs, evaluates after each, and saves as it goes.

    An interrupted run continues from its last checkpoint, also within an epoch, with
    the images that an uninterrupted run would use at that step. SIGTERM saves and stops
    the run with `Preempted`, on all workers if one of them receives it. Only the chief
    writes into `workdir` and returns records, one for each epoch; all workers read
    there.
    """
    strategy = strategy or tf.distribute.get_strategy()
    run = Run(task, config, source, Path(workdir).expanduser(), strategy)
    with only_training(run.workdir) if is_chief(strategy) else contextlib.nullcontext():
        return _train_and_evaluate(run, save_seconds)


def _train_and_evaluate(run: Run, save_seconds: float) -> list[dict]:
    config, strategy = run.config, run.strategy
    changes = check_workdir(run.workdir, config, run.source)
    is_begun = run.checkpoint.exists()
    check_training(config, run.source, strategy, is_begun=is_begun)
    state, progress = start_or_continue(run, changes)
    learn_over_steps(state.model, config, shared_shapes(config, strategy))
    writer = _prepare_writer(run, state, progress) if is_chief(strategy) else None

    def save(progress: Progress) -> None:
        if writer:
            numbers = dataclasses.asdict(progress)
            save_checkpoint(run.checkpoint, state.groups(), numbers)

    if progress.epoch >= config.epochs:
        logging.info("all %d epochs are done", config.epochs)
        if not (run.workdir / BEST_MODEL).exists():
            logging.warning(
                "%s is missing, and this command does not make it again. Restore a "
                "copy, or train in another --workdir.",
                run.workdir / BEST_MODEL,
            )
    train_step = make_train_step(run.task, config, state, strategy)
    eval_step = make_eval_step(run.task, state.ema_model, strategy)
    with stop_on_sigterm() as stop:
        manager = CheckpointManager(save, save_seconds, stop)
        while progress.epoch < config.epochs:
            record = train_epoch(run, train_step, progress, manager)
            record |= validate(run, eval_step, progress, manager)
            record["epoch"] = progress.epoch + 1
            record["traces"] = train_step.experimental_get_tracing_count()
            if writer:
                _finish_epoch(run, state, writer, record, progress.best)
            progress = progress.next_epoch(record[run.task.best_metric])
            save(progress)
    return writer.records if writer else []


def _prepare_writer(run: Run, state: TrainState, progress: Progress) -> RecordWriter:
    """Prepares the working directory, in which only the chief writes."""
    prepare_workdir(run.workdir, run.config, run.source)
    draw = make_drawing(run.task, state.ema_model, run.source, run.config)
    return RecordWriter(run.workdir, progress.epoch, run.task.best_metric, draw)
