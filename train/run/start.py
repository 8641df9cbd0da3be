"""A run: its fixed parts, and its start or continuation from a checkpoint."""

import dataclasses
import zlib
from pathlib import Path

import tensorflow as tf
from absl import logging

from train.checks import batch_multiple, refuse_frozen_noise
from train.config import FILENAME, TrainConfig, retired_value
from train.data.source import Source
from train.models import TrainState, build_state, separate_seeds
from train.run.checkpoint import load_checkpoint
from train.run.progress import Progress
from train.run.workdir import CHECKPOINT, fingerprint, log_changes
from train.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that do not change."""

    task: Task
    config: TrainConfig
    source: Source
    workdir: Path
    strategy: tf.distribute.Strategy

    @property
    def checkpoint(self) -> Path:
        """The file from which the run continues."""
        return self.workdir / CHECKPOINT


def start_or_continue(run: Run, changes: dict) -> tuple[TrainState, Progress]:
    """Builds the state, and loads the last checkpoint if there is one."""
    config, is_fresh = run.config, not run.checkpoint.exists()
    if is_fresh:
        refuse_frozen_noise(config)
    with run.strategy.scope():
        state = build_state(run.task, config, run.source, is_fresh)
    progress = Progress() if is_fresh else _continue(run.checkpoint, state)
    if not is_fresh:
        _refuse_other_images(run, progress, changes)
        log_changes(changes, config)
        _restart_smaller_epoch(run, progress)
        earlier = changes.get("steps_per_execution", config.steps_per_execution)
        progress.repeats = progress.repeats or earlier
    separate_seeds(state.model, run.strategy)
    progress.images = fingerprint(run.source)
    _refuse_other_workers(run, progress)
    progress.check_schedule(
        batch_multiple(config, run.strategy),
        run.source.num_examples["train"],
        config.steps_per_execution,
    )
    return state, progress


def _continue(file: Path, state: TrainState) -> Progress:
    """Sets the state from a checkpoint, and returns the saved progress."""
    saved = load_checkpoint(file, state.groups())
    progress = Progress.of_checkpoint(saved, file)
    logging.info("continuing after step %d", progress.step)
    return progress


def _restart_smaller_epoch(run: Run, progress: Progress) -> None:
    """Restarts an epoch that an earlier version began with fewer sizes."""
    file = run.workdir / FILENAME
    grow_epochs = retired_value(file, "grow_epochs") if file.exists() else 0
    if progress.epoch < grow_epochs and len(run.config.sizes) > 1:
        progress.restart_epoch("Only some of the sizes were used, and all are")


def _refuse_other_workers(run: Run, progress: Progress) -> None:
    """Raises a ValueError unless all workers continue the same run at the same step."""
    source, steps = run.source, (progress.step, progress.epoch_step)
    subject = run.config, source.num_examples, source.class_names, steps
    digest = tf.constant([zlib.crc32(repr(subject).encode()) >> 1])
    per_replica = run.strategy.run(tf.identity, (digest,))
    found = set(run.strategy.gather(per_replica, axis=0).numpy().tolist())
    if len(found) > 1:
        raise ValueError(
            "The workers run different configurations: this one has "
            f"{run.config}, {source.num_examples} images and a checkpoint of step "
            f"{progress.step}. Give all of them the same flags and data, and a "
            "--workdir that they share."
        )


def _refuse_other_images(run: Run, progress: Progress, changes: dict) -> None:
    """Raises a ValueError if a folder with another path has other images."""
    if "data" not in changes:
        return
    found = run.source.num_examples["train"], fingerprint(run.source)
    began = progress.num_examples, progress.images or found[1]
    if found != began:
        what = f"{found[0]} training images instead of {began[0]}"
        if found[0] == began[0]:
            what = "as many training images, but with other names"
        raise ValueError(
            f"The run in --workdir was trained on {changes['data']}; {run.config.data} "
            f"has {what}. Give the images of that run, or another --workdir."
        )
