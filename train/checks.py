"""Checks before a training starts, and the shapes of its batches."""

import bisect
import dataclasses
import math

import tensorflow as tf
from absl import logging

from train.config import TrainConfig
from train.data import sampler
from train.data.sampler import BatchShape
from train.data.source import Source

# A training that learns has several times the steps of its warm-up; the recipes for
# photos have five times as many.
WARMUPS = 5
FEWEST_STEPS = 3  # of an epoch, in a batch size that is proposed


def batch_multiple(config: TrainConfig, strategy: tf.distribute.Strategy) -> int:
    """Returns the number of equal parts into which every batch is divided."""
    return strategy.num_replicas_in_sync * config.accumulation_steps


def shared_shapes(
    config: TrainConfig, strategy: tf.distribute.Strategy
) -> list[BatchShape]:
    """Returns the batch shapes of a run, which its replicas can share evenly."""
    multiple = batch_multiple(config, strategy)
    if config.batch_size % multiple:
        below = config.batch_size // multiple * multiple
        raise ValueError(
            f"--batch_size={config.batch_size} cannot be divided evenly among "
            f"{strategy.num_replicas_in_sync} devices in {config.accumulation_steps} "
            f"parts each. {f'{below} or ' if below else ''}{below + multiple} can."
        )
    return sampler.batch_shapes(
        config.sizes, config.base_size, config.batch_size, multiple
    )


def _refuse_too_few_images(
    config: TrainConfig, strategy: tf.distribute.Strategy, source: Source
) -> None:
    """Refuses fewer images than the smallest batch takes.

    Copies would fill up the batch, and batch normalization learns nothing from them.
    """
    images = source.num_examples["train"]
    needed = min(shape.batch for shape in shared_shapes(config, strategy))
    if images < needed:
        raise ValueError(
            f"{source.name} has {images} training images, but the smallest batch "
            f"takes {needed}. {_smaller_batch(config, strategy, images)}"
        )


def _smaller_batch(
    config: TrainConfig, strategy: tf.distribute.Strategy, images: int
) -> str:
    """Names a batch with which an epoch has some steps, and the epochs it needs."""

    def shapes(batch: int) -> list[sampler.BatchShape]:
        return shared_shapes(dataclasses.replace(config, batch_size=batch), strategy)

    def largest(batch: int) -> int:
        return max(shape.batch for shape in shapes(batch))

    multiple = batch_multiple(config, strategy)
    batches = range(multiple, config.batch_size + 1, multiple)
    for most in (images // FEWEST_STEPS, images):
        if count := bisect.bisect_right(batches, most, key=largest):
            break
    else:
        return "Add images."
    batch = batches[count - 1]
    steps = config.epochs * len(
        sampler.epoch_schedule(shapes(batch), images, 0, config.seed)
    )
    epochs = f" --epochs={_needed_epochs(config, steps)}"
    return f"Add images, or give --batch_size={batch}" + (
        f"{epochs}." if _is_short(config, steps) else "."
    )


def _is_short(config: TrainConfig, steps: int) -> bool:
    """Tells whether the warm-up takes most of a training."""
    return config.warmup_steps > steps // 2


def _needed_epochs(config: TrainConfig, steps: int) -> int:
    return math.ceil(WARMUPS * config.warmup_steps * config.epochs / max(steps, 1))


def warn_of_warmup(config: TrainConfig, steps: int) -> None:
    """Warns if the warm-up takes most of the training, and says what helps."""
    if not _is_short(config, steps):
        return
    pretrained = (
        "Start from pretrained weights: few images teach little to random ones. "
        + "Use --recipe=fine_tune" * (config.task == "classification")
        + "Add --weights=imagenet" * (config.task != "classification")
        + ", in another --workdir. "
    )
    logging.warning(
        "The learning rate rises for %d steps, but the whole training has about "
        "%d, and may learn little. %sLower --warmup_steps or raise --epochs, such as "
        "--epochs=%d.",
        config.warmup_steps,
        steps,
        "" if config.weights else pretrained,
        _needed_epochs(config, steps),
    )


def refuse_frozen_noise(config: TrainConfig) -> None:
    """Refuses to freeze a backbone of random weights."""
    if config.freeze != "none" and not config.weights:
        raise ValueError(
            f"--freeze={config.freeze} without --weights would freeze random weights. "
            "Add --weights=imagenet or a file, or remove --freeze."
        )


def check_training(
    config: TrainConfig,
    source: Source,
    strategy: tf.distribute.Strategy,
    is_begun: bool = False,
) -> None:
    """Refuses a training that cannot work, and warns of one that will learn little.

    One that has begun may have fewer images than a batch takes: earlier versions
    allowed it.
    """
    for split, count in source.num_examples.items():
        if count < 1:
            raise ValueError(f"{source.name} has no {split} images. Add some.")
    shapes = shared_shapes(config, strategy)
    if not is_begun:
        _refuse_too_few_images(config, strategy, source)
    images = source.num_examples["train"]
    if images < sum(shape.batch for shape in shapes):
        logging.warning(
            "%d training images do not fill one batch of each size (%s), so an epoch "
            "does not use every size. Lower --batch_size.",
            images,
            ", ".join(f"{shape.batch} at {shape.height}" for shape in shapes),
        )
    steps = sampler.epoch_schedule(shapes, images, 0, config.seed)
    warn_of_warmup(config, config.epochs * len(steps))
