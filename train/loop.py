"""The training loop, for any task."""

import dataclasses
import functools
import time
import typing
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from keras_mobilevit.files import whole_file
from keras_mobilevit.hub import weights_file
from keras_mobilevit.weights import load_weights
from train import data, sampler, schedules
from train.checkpoint import load_checkpoint, save_checkpoint, save_model
from train.config import FILENAME, TrainConfig, load_config, save_config
from train.optimizers import apply_gradients, make_optimizers
from train.progress import CheckpointManager, Progress, asked_to_stop
from train.records import RecordWriter
from train.sources import Source
from train.tasks import Task

CHECKPOINT = "checkpoint.safetensors"
BEST_MODEL = "best.keras"
LABELS = "labels.txt"
SAVE_SECONDS = 600.0  # between checkpoints within an epoch


def prepare_workdir(workdir, config: TrainConfig, source: Source) -> Path:
    """Makes a working directory, or checks that it belongs to the same run.

    Args:
        workdir: the directory.
        config: the run's configuration, saved there as `config.json`.
        source: its class names are saved there as `labels.txt`.

    Returns:
        The directory.

    Raises:
        ValueError: if the directory holds a run of another configuration or other
            classes; it is left as it was.
    """
    workdir = Path(workdir).expanduser()
    labels = "".join(f"{name}\n" for name in source.class_names)
    if (workdir / FILENAME).exists():
        _refuse_other_run(workdir, config, labels)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with whole_file(workdir / LABELS) as temporary:
            temporary.write_text(labels)
        save_config(config, workdir / FILENAME)
    except OSError as error:
        raise ValueError(f"Cannot write into --workdir: {error}.") from error
    return workdir


def _refuse_other_run(workdir: Path, config: TrainConfig, labels: str) -> None:
    saved = load_config(workdir / FILENAME)
    changes = [
        f"{field.name}: {getattr(saved, field.name)!r} there, "
        f"{getattr(config, field.name)!r} now"
        for field in dataclasses.fields(config)
        if getattr(saved, field.name) != getattr(config, field.name)
    ]
    if changes:
        raise ValueError(
            f"{workdir} holds a run of another configuration. Choose another "
            "--workdir, or the same flags to continue it.\n  " + "\n  ".join(changes)
        )
    if (workdir / LABELS).exists() and (workdir / LABELS).read_text() != labels:
        raise ValueError(
            f"{workdir} holds a run with other classes, see {workdir / LABELS}. "
            "Choose another --workdir."
        )


def make_train_step(task: Task, config: TrainConfig, model, average, optimizers):
    """Makes the function of one training step, traced once for each batch shape.

    Args:
        task: gives the loss.
        config: the run's configuration.
        model: what is trained.
        average: a model of the same weights that follows as a moving average,
            statistics of batch normalization included.
        optimizers: from `train.optimizers.make_optimizers`.

    Returns:
        A `tf.function` from (batch, learning rate, momentum of the average) to the
        sum of the examples' losses, each times its weight.
    """

    @tf.function
    def update(gradients, learning_rate, momentum):
        apply_gradients(optimizers, gradients, model.trainable_variables, learning_rate)
        for mean, value in zip(average.weights, model.weights):
            mean.assign(mean * momentum + value * (1 - momentum))

    @tf.function
    def train_step(batch, learning_rate, momentum):
        with tf.GradientTape() as tape:
            outputs = model(tf.cast(batch["image"], tf.float32), training=True)
            losses = batch["weight"] * task.loss(config, batch, outputs)
            # A mean over the nominal batch: examples weigh the same in every step,
            # also in the last one, which may be partly filling.
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        # Its own function, since it is the same for every shape and slow to trace.
        update(gradients, learning_rate, momentum)
        return tf.reduce_sum(losses)

    return train_step


def make_eval_step(task: Task, model):
    """Makes the function of one evaluation step: a batch to its metrics' sums."""

    @tf.function
    def eval_step(batch):
        outputs = model(tf.cast(batch["image"], tf.float32), training=False)
        values = task.metrics(batch, outputs)
        return {
            name: tf.reduce_sum(batch["weight"] * value)
            for name, value in values.items()
        }

    return eval_step


class _Tally:
    """Counts an epoch's examples: those that were seen, and the unreadable.

    Args:
        source: where the images come from.
        split: `"train"` or `"validation"`.
        seen, skipped: those of the epoch's part that was done before.
    """

    # An unreadable file comes back every epoch; the log of a process names it once.
    named: typing.ClassVar[set] = set()

    def __init__(self, source: Source, split: str, seen: int = 0, skipped=()):
        self.source, self.split = source, split
        self.seen, self.skipped = seen, list(skipped)

    def add(self, batch) -> int:
        """Adds a batch; returns how many of its images count."""
        count = int(np.sum(batch["weight"].numpy()))
        self.seen += count
        self.skipped += data.unreadable(batch)
        return count

    def close(self) -> None:
        """Logs the names of the unreadable; raises if there was nothing else."""
        for name in self.skipped:
            if name not in self.named:
                self.named.add(name)
                logging.warning("skipped, cannot be read: %s", name)
        if not self.seen:
            raise ValueError(
                f"None of the {len(self.skipped)} {self.split} images of "
                f"{self.source.name} can be read, {self.skipped[0]} among them."
            )


def evaluate(
    eval_step, source: Source, config: TrainConfig, after_step=lambda: None
) -> dict:
    """Evaluates on the validation split.

    Args:
        eval_step: from `make_eval_step`.
        source: where the images come from.
        config: gives size, crop and batch.
        after_step: called after each batch; may raise.

    Returns:
        The mean of each of the task's metrics, and `skipped_validation`, the number
        of images that could not be decoded.
    """
    batches = data.eval_batches(
        source, "validation", config.eval_size, config.batch_size, config.eval_crop
    )
    tally, sums = _Tally(source, "validation"), {}
    for batch in batches:
        tally.add(batch)
        del batch["id"]
        for name, value in eval_step(batch).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        after_step()
    tally.close()
    means = {name: value / tally.seen for name, value in sums.items()}
    return {**means, "skipped_validation": len(tally.skipped)}


def train_epoch(
    train_step, source: Source, config: TrainConfig, progress: Progress, after_step
) -> dict:
    """Passes once over the training images, or over what is left of an epoch.

    Args:
        train_step: from `make_train_step`.
        source: where the images come from.
        config: the run's configuration.
        progress: where the run is; each step brings it forward.
        after_step: called with it after each step; may raise.

    Returns:
        A dict: `step` (done after it), `train_loss`, `learning_rate`,
        `images_per_second`, `epoch_seconds`, `skipped_train`.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    epoch, num_examples = progress.epoch, source.num_examples["train"]
    shapes = sampler.batch_shapes(config.sizes, config.base_size, config.batch_size)
    schedule = sampler.epoch_schedule(
        shapes, num_examples, epoch, config.seed, config.grow_epochs
    )
    tally = _Tally(source, "train", progress.seen, progress.skipped)
    start = time.perf_counter() - progress.seconds
    batches = data.train_batches(source, config, schedule, epoch, progress.epoch_step)
    bar = tqdm(
        total=num_examples,
        initial=progress.seen,
        desc=f"epoch {epoch + 1}/{config.epochs}",
        unit="img",
        disable=None,  # no bar where the output is no terminal
        leave=False,
    )
    with bar:
        for batch in batches:
            rate = schedules.learning_rate(config, progress.step, epoch)
            momentum = schedules.ema_momentum(config, progress.step)
            count = tally.add(batch)
            del batch["id"]  # strings, which an accelerator cannot hold
            loss = float(train_step(batch, tf.constant(rate), tf.constant(momentum)))
            _refuse_divergence(loss, progress.step, epoch, rate, batch)
            progress.step += 1
            progress.epoch_step += 1
            progress.loss += loss
            progress.seen, progress.skipped = tally.seen, tally.skipped
            progress.seconds = time.perf_counter() - start
            bar.set_postfix(
                loss=f"{loss / max(count, 1):.3f}", lr=f"{rate:.2e}", refresh=False
            )
            bar.update(count)
            after_step(progress)
    tally.close()
    return _epoch_record(config, progress)


def _epoch_record(config: TrainConfig, progress: Progress) -> dict:
    """Returns what `train_epoch` does, of an epoch whose steps are all done."""
    last_step = progress.step - 1
    return {
        "step": progress.step,
        "skipped_train": len(progress.skipped),
        "train_loss": progress.loss / progress.seen,
        "learning_rate": schedules.learning_rate(config, last_step, progress.epoch),
        "images_per_second": progress.seen / progress.seconds,
        "epoch_seconds": progress.seconds,
    }


def _refuse_divergence(loss: float, step: int, epoch: int, rate: float, batch) -> None:
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {loss} at step {step} of epoch {epoch + 1} (images "
            f"{tuple(batch['image'].shape)}, learning rate {rate:.2e}). The last "
            "checkpoint is of the epoch before; try a lower --learning_rate or more "
            "--warmup_steps."
        )


def _build_models(task: Task, config: TrainConfig, source: Source, is_fresh: bool):
    """Builds the model and its moving average."""
    keras.utils.set_random_seed(config.seed)
    model = task.build_model(config, source)
    if is_fresh and config.weights:
        file = weights_file(config.weights, config.model)
        load_weights(model, file, include_top=False)
    average = keras.models.clone_model(model)
    average.set_weights(model.get_weights())
    average.trainable = True  # as the user of best.keras expects, whatever was frozen
    return model, average


def _warn_of_unused_sizes(config: TrainConfig, source: Source) -> None:
    shapes = sampler.batch_shapes(config.sizes, config.base_size, config.batch_size)
    count = source.num_examples["train"]
    if count < sum(shape.batch for shape in shapes):
        logging.warning(
            "%d training images do not fill one batch of each size (%s), so an epoch "
            "misses some sizes. A smaller --batch_size mends that.",
            count,
            ", ".join(f"{shape.batch} at {shape.height}" for shape in shapes),
        )


def _finish_epoch(
    workdir: Path, average, writer: RecordWriter, record: dict, best: float
) -> float:
    """Writes what an epoch gave; returns the best value of the run after it."""
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
    return max(value, best)


def _saved_groups(model, average, optimizers) -> dict:
    """Names everything that a checkpoint holds, see `train.checkpoint`."""
    groups = {"model": model, "average": average}
    return groups | {
        f"optimizer{i or ''}": share.optimizer for i, share in enumerate(optimizers)
    }


def _continue(file: Path, groups: dict) -> Progress:
    """Sets everything to what a checkpoint holds, and returns where it was saved."""
    progress = Progress(**load_checkpoint(file, groups))
    logging.info("continuing after step %d", progress.step)
    return progress


def train_and_evaluate(
    task: Task,
    config: TrainConfig,
    source: Source,
    workdir,
    save_seconds: float = SAVE_SECONDS,
) -> list[dict]:
    """Trains for the configured epochs, evaluates after each, and saves as it goes.

    A run that was interrupted continues from its last checkpoint, also within an
    epoch, with the images that an undisturbed one has there. SIGTERM saves and stops
    it.

    Args:
        task: what to train.
        config: how.
        source: on what.
        workdir: where everything goes: `config.json`, `labels.txt`, `metrics.jsonl`,
            `curves.png`, `tensorboard/`, `checkpoint.safetensors` (weights, moving
            average, optimizer, random state, progress), `best.keras` (the moving
            average at its best).
        save_seconds: between two checkpoints within an epoch; each epoch ends with one.

    Returns:
        The records of `metrics.jsonl`, one for each epoch.

    Raises:
        ValueError: if `workdir` holds another run, or no image can be decoded.
        FloatingPointError: if the loss is not finite.
        Preempted: after SIGTERM, when everything is saved.
    """
    is_fresh = not (Path(workdir).expanduser() / CHECKPOINT).exists()
    model, average = _build_models(task, config, source, is_fresh)
    optimizers = make_optimizers(config, model, task.is_head)
    groups = _saved_groups(model, average, optimizers)
    workdir = prepare_workdir(workdir, config, source)
    file = workdir / CHECKPOINT
    progress = Progress() if is_fresh else _continue(file, groups)
    writer = RecordWriter(workdir, progress.epoch, task.best_metric)
    _warn_of_unused_sizes(config, source)

    def save(progress: Progress) -> None:
        save_checkpoint(file, groups, dataclasses.asdict(progress))

    train_step = make_train_step(task, config, model, average, optimizers)
    eval_step = make_eval_step(task, average)
    with asked_to_stop() as stop:
        manager = CheckpointManager(save, save_seconds, stop)
        while progress.epoch < config.epochs:
            record = train_epoch(
                train_step, source, config, progress, manager.after_step
            )
            check = functools.partial(manager.after_step, progress)
            record |= evaluate(eval_step, source, config, check)
            record |= {
                "epoch": progress.epoch + 1,
                "traces": train_step.experimental_get_tracing_count(),
            }
            best = _finish_epoch(workdir, average, writer, record, progress.best)
            progress = progress.next_epoch(best)
            save(progress)
    return writer.records
