"""The training loop, for any task, on one device or on many."""

import contextlib
import dataclasses
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from train import schedules
from train.batch_statistics import learn_over_steps
from train.checks import (
    batch_multiple,
    check_training,
    refuse_frozen_noise,
    shared_shapes,
)
from train.config import TrainConfig
from train.data import pipeline as data
from train.data import sampler
from train.data.sampler import BatchShape
from train.data.source import Source
from train.distribution.inputs import Unreadable, distribute, refuse_nothing_seen
from train.distribution.strategies import is_chief
from train.evaluation.evaluate import evaluate
from train.models import build_models, separate_seeds
from train.optimizers import make_optimizer
from train.run.checkpoint import load_checkpoint, save_checkpoint, save_model
from train.run.lock import only_training
from train.run.pictures import make_drawing
from train.run.progress import CheckpointManager, Progress, asked_to_stop
from train.run.records import RecordWriter
from train.run.workdir import (
    BEST_MODEL,
    CHECKPOINT,
    check_workdir,
    fingerprint,
    prepare_workdir,
    tell_changes,
)
from train.step import as_numbers, make_eval_step, make_train_step
from train.tasks.task import Task

SAVE_SECONDS = 600.0  # between checkpoints within an epoch


def train_epoch(
    task: Task,
    train_step,
    source: Source,
    config: TrainConfig,
    strategy,
    progress: Progress,
    manager: CheckpointManager,
    train_batches: Callable = data.train_batches,
) -> dict:
    """Passes once over the training images, or over what is left of an epoch.

    Args:
        task: what is trained.
        train_step: from `train.step.make_train_step`.
        source: where the images come from.
        config: the run's configuration.
        strategy: that of the step.
        progress: where the run is; each step brings it forward.
        manager: saves it, and stops the run when it is asked to.
        train_batches: makes the batches.

    Returns:
        A dict: `step` (done after it), `train_loss`, `learning_rate`,
        `images_per_second`, `epoch_seconds`, `skipped_train`.

    Raises:
        FloatingPointError: if loss or gradients are not finite.
        Preempted: if the run was asked to stop, and is saved.
    """
    epoch, num_examples = progress.epoch, source.num_examples["train"]
    schedule = sampler.epoch_schedule(
        shared_shapes(config, strategy),
        num_examples,
        epoch,
        config.seed,
        config.grow_epochs,
        config.steps_per_execution,
    )
    done = progress.epoch_step
    batches = distribute(
        strategy,
        lambda shard: train_batches(
            source, config, schedule, epoch, done, shard, task.train_example
        ),
    )
    iterator, unreadable = iter(batches), Unreadable()
    start = time.perf_counter() - progress.seconds
    with _progress_bar(config, progress, num_examples) as bar:
        for count in data.steps_of_calls(schedule[done:], config.steps_per_execution):
            call = [
                unreadable.take_names(strategy, next(iterator)) for _ in range(count)
            ]
            shape = schedule[progress.epoch_step]
            sums = _run_call(train_step, call, config, progress, manager, shape)
            progress.add(count, sums, time.perf_counter() - start)
            bar.set_postfix(
                loss=f"{sums['loss'] / max(sums['count'], 1):.3f}", refresh=False
            )
            bar.update(round(sums["count"]))
            manager.after_step(progress, sums["stop"] > 0)
    refuse_nothing_seen(progress.seen, source, "train", unreadable)
    return _epoch_record(config, progress, num_examples)


def _run_call(
    train_step,
    batches: list[dict],
    config: TrainConfig,
    progress: Progress,
    manager: CheckpointManager,
    shape: BatchShape,
) -> dict[str, float]:
    """Trains on batches of one shape, one step each, and returns the step's sums."""
    steps = range(progress.step, progress.step + len(batches))
    rates = [schedules.learning_rate(config, step, progress.epoch) for step in steps]
    momenta = [schedules.ema_momentum(config, step) for step in steps]
    numbers = map(tf.constant, (rates, momenta, manager.asked()))
    sums = as_numbers(train_step(tuple(batches), *numbers))
    _refuse_divergence(sums, steps, progress.epoch, rates[-1], shape)
    return sums


def _progress_bar(config: TrainConfig, progress: Progress, num_examples: int) -> tqdm:
    return tqdm(
        total=num_examples,
        initial=progress.seen,
        desc=f"epoch {progress.epoch + 1}/{config.epochs}",
        unit="img",
        disable=None,  # no bar where the output is no terminal
        leave=False,
    )


def _epoch_record(config: TrainConfig, progress: Progress, num_examples: int) -> dict:
    """Returns what `train_epoch` does, of an epoch whose steps are all done."""
    last_step = progress.step - 1
    return {
        "step": progress.step,
        "skipped_train": num_examples - progress.seen,
        "train_loss": progress.loss / progress.seen,
        "learning_rate": schedules.learning_rate(config, last_step, progress.epoch),
        "images_per_second": progress.seen / progress.seconds,
        "epoch_seconds": progress.seconds,
    }


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
        "The last checkpoint is of an earlier step and whole; try a lower "
        "--learning_rate or more --warmup_steps."
    )


def _finish_epoch(
    workdir: Path, average, writer: RecordWriter, record: dict, best: float
) -> None:
    """Writes what an epoch gave."""
    value = record[writer.best_metric]
    if value > best:
        save_model(average, workdir / BEST_MODEL)
    # Before the checkpoint, which makes the epoch done: what a kill between the two
    # leaves is written again.
    writer.write(record)
    logging.info(
        "epoch %d  loss %.3f  %s %.2f %%  %.0f images/s",
        record["epoch"],
        record["train_loss"],
        writer.best_metric,
        100 * value,
        record["images_per_second"],
    )


def _continue(file: Path, groups: dict) -> Progress:
    """Sets everything to what a checkpoint holds, and returns where it was saved."""
    saved = load_checkpoint(file, groups)
    unknown = set(saved) - {field.name for field in dataclasses.fields(Progress)}
    if unknown:
        raise ValueError(
            f"{file} was written by another version of train/, which saved "
            f"{', '.join(sorted(unknown))}. Continue with that, or choose another "
            "--workdir."
        )
    logging.info("continuing after step %d", saved["step"])
    return Progress(**saved)


def _refuse_other_workers(
    strategy, config: TrainConfig, source: Source, progress: Progress
) -> None:
    """Checks that all workers do the same run, from the same step."""
    place = progress.step, progress.epoch_step
    subject = config, source.num_examples, source.class_names, place
    digest = tf.constant([zlib.crc32(repr(subject).encode()) >> 1])
    per_replica = strategy.run(tf.identity, (digest,))
    found = set(strategy.gather(per_replica, axis=0).numpy().tolist())
    if len(found) > 1:
        raise ValueError(
            f"The workers run different configurations: this one has {config}, "
            f"{source.num_examples} images and a checkpoint of step {progress.step}. "
            "Give all of them the same flags and data, and a --workdir that they share."
        )


def _refuse_other_images(
    progress: Progress, source: Source, changes: dict, config: TrainConfig
) -> None:
    """Checks that a folder of another path has the images of the run's own."""
    if "data" not in changes:
        return
    found = source.num_examples["train"], fingerprint(source)
    began = progress.num_examples, progress.images or found[1]
    if found != began:
        what = f"{found[0]} training images instead of {began[0]}"
        if found[0] == began[0]:
            what = "as many training images, but of other names"
        raise ValueError(
            f"The run in --workdir was trained on {changes['data']}; {config.data} has "
            f"{what}. Give the images of that run, or another --workdir."
        )


def _start_or_continue(
    task: Task,
    config: TrainConfig,
    source: Source,
    file: Path,
    strategy,
    changes: dict,
) -> tuple[dict, Progress]:
    """Builds all that a checkpoint holds, and sets it to the last one if there is one.

    Args:
        task: what is trained.
        config: the run's configuration.
        source: on what.
        file: the checkpoint, which need not exist.
        strategy: the devices.
        changes: since the checkpoint, from `train.run.workdir.check_workdir`.

    Returns:
        Model, average and optimizer by these names, and where the run is.
    """
    is_fresh = not file.exists()
    if is_fresh:
        refuse_frozen_noise(config)
    with strategy.scope():
        model, average = build_models(task, config, source, is_fresh)
        optimizer = make_optimizer(config, model, task.is_head)
    trained = {"model": model, "average": average, "optimizer": optimizer}
    progress = Progress() if is_fresh else _continue(file, trained)
    if not is_fresh:
        _refuse_other_images(progress, source, changes, config)
        tell_changes(changes, config)
        earlier = changes.get("steps_per_execution", config.steps_per_execution)
        progress.repeats = progress.repeats or earlier
    separate_seeds(trained["model"], strategy)
    progress.images = fingerprint(source)
    _refuse_other_workers(strategy, config, source, progress)
    progress.check_schedule(
        batch_multiple(config, strategy),
        source.num_examples["train"],
        config.steps_per_execution,
    )
    return trained, progress


def train_and_evaluate(
    task: Task,
    config: TrainConfig,
    source: Source,
    workdir,
    save_seconds: float = SAVE_SECONDS,
    strategy: tf.distribute.Strategy | None = None,
    train_batches: Callable = data.train_batches,
) -> list[dict]:
    """Trains for the configured epochs, evaluates after each, and saves as it goes.

    A run that was interrupted continues from its last checkpoint, also within an
    epoch, with the images that an undisturbed one has there. SIGTERM saves and stops
    it, on all workers if one of them gets it.

    Args:
        task: what to train.
        config: how.
        source: on what.
        workdir: where everything goes: `config.json`, `labels.txt`, `metrics.jsonl`,
            `curves.png`, `predictions.png` (of a task that draws what it predicts),
            `tensorboard/`, `checkpoint.safetensors` (weights, moving average,
            optimizer, random state, progress), `best.keras` (the moving average at
            its best). The chief alone writes, all workers read.
        save_seconds: between two checkpoints within an epoch; each epoch ends with one.
        strategy: the devices, see `train.distribution.strategies`; by default one.
        train_batches: makes an epoch's batches, as `train.data.pipeline.train_batches` does;
            see `train.distribution.data_service`.

    Returns:
        The records of `metrics.jsonl`, one for each epoch; none for workers other
        than the chief.

    Raises:
        ValueError: if `workdir` holds another run or another training writes there, if
            there are fewer images than a batch takes, or no image can be decoded.
        FloatingPointError: if the loss is not finite.
        Preempted: after SIGTERM, when everything is saved.
    """
    strategy = strategy or tf.distribute.get_strategy()
    workdir = Path(workdir).expanduser()
    with only_training(workdir) if is_chief(strategy) else contextlib.nullcontext():
        return _train_and_evaluate(
            task, config, source, workdir, save_seconds, strategy, train_batches
        )


def _train_and_evaluate(
    task: Task,
    config: TrainConfig,
    source: Source,
    workdir: Path,
    save_seconds: float,
    strategy,
    train_batches: Callable,
) -> list[dict]:
    changes = check_workdir(workdir, config, source)
    file = workdir / CHECKPOINT
    check_training(config, source, strategy, is_begun=file.exists())
    trained, progress = _start_or_continue(
        task, config, source, file, strategy, changes
    )
    learn_over_steps(trained["model"], config, shared_shapes(config, strategy))
    writer = None
    if is_chief(strategy):
        prepare_workdir(workdir, config, source)
        draw = make_drawing(task, trained["average"], source, config)
        writer = RecordWriter(workdir, progress.epoch, task.best_metric, draw)

    def save(progress: Progress) -> None:
        if is_chief(strategy):
            save_checkpoint(file, trained, dataclasses.asdict(progress))

    if progress.epoch >= config.epochs:
        logging.info("all %d epochs are done", config.epochs)
    train_step = make_train_step(task, config, **trained, strategy=strategy)
    eval_step = make_eval_step(task, trained["average"], strategy)
    with asked_to_stop() as stop:
        manager = CheckpointManager(save, save_seconds, stop)
        while progress.epoch < config.epochs:
            run = source, config, strategy, progress, manager
            record = train_epoch(task, train_step, *run, train_batches)
            record |= evaluate(task, eval_step, *run)
            record |= {
                "epoch": progress.epoch + 1,
                "traces": train_step.experimental_get_tracing_count(),
            }
            if writer:
                _finish_epoch(
                    workdir, trained["average"], writer, record, progress.best
                )
            progress = progress.next_epoch(record[task.best_metric])
            save(progress)
    return writer.records if writer else []
