"""What is refused or warned about before a training starts, and its batch shapes."""

import dataclasses

import tensorflow as tf
from absl import logging

from train.config import TrainConfig
from train.data import sampler
from train.data.sampler import BatchShape
from train.data.source import Source


def batch_multiple(config: TrainConfig, strategy) -> int:
    """Returns the number of parts in which every batch is dealt out."""
    return strategy.num_replicas_in_sync * config.accumulation_steps


def shared_shapes(config: TrainConfig, strategy) -> list[BatchShape]:
    """Returns the batch shapes of a run, which all its replicas can share evenly."""
    multiple = batch_multiple(config, strategy)
    if config.batch_size % multiple:
        below = config.batch_size // multiple * multiple
        raise ValueError(
            f"--batch_size={config.batch_size} cannot be dealt out evenly to "
            f"{strategy.num_replicas_in_sync} devices in {config.accumulation_steps} "
            f"parts each. {f'{below} or ' if below else ''}{below + multiple} can."
        )
    return sampler.batch_shapes(
        config.sizes, config.base_size, config.batch_size, multiple
    )


def _refuse_too_few_images(config: TrainConfig, strategy, source: Source) -> None:
    """Refuses a training with an epoch that has no images for a batch of any size.

    A batch with fewer images is filled up with copies of them, from which batch
    normalization learns nothing.
    """
    shapes, images = shared_shapes(config, strategy), source.num_examples["train"]
    epochs = range(min(config.epochs, config.grow_epochs + 1))
    needed = max(
        min(
            shape.batch
            for shape in sampler.shapes_in_use(shapes, epoch, config.grow_epochs)
        )
        for epoch in epochs
    )
    if images < needed:
        raise ValueError(
            f"{source.name} has {images} training images, but the smallest batch "
            f"takes {needed}. {_smaller_batch(config, strategy, images)}"
        )


def _smaller_batch(config: TrainConfig, strategy, images: int) -> str:
    """Says which batch so many images fill at every size."""
    multiple = batch_multiple(config, strategy)
    for batch in range(config.batch_size // multiple * multiple, 0, -multiple):
        shapes = shared_shapes(dataclasses.replace(config, batch_size=batch), strategy)
        if max(shape.batch for shape in shapes) <= images:
            return f"Add images, or give --batch_size={batch}."
    return "Add images."


def _refuse_empty_splits(source: Source) -> None:
    for split, count in source.num_examples.items():
        if count < 1:
            raise ValueError(f"{source.name} has no {split} images. Add some.")


def _warn_of_unused_sizes(shapes: list[BatchShape], source: Source) -> None:
    count = source.num_examples["train"]
    if count < sum(shape.batch for shape in shapes):
        logging.warning(
            "%d training images do not fill one batch of each size (%s), so an epoch "
            "does not train at some sizes. Lower --batch_size.",
            count,
            ", ".join(f"{shape.batch} at {shape.height}" for shape in shapes),
        )


def warn_of_warmup(config: TrainConfig, steps: int) -> None:
    """Warns of a training that ends before its learning rate has risen."""
    if config.warmup_steps > steps // 2:
        logging.warning(
            "The learning rate rises for %d steps, but the whole training has about "
            "%d, and may learn little. Fewer --warmup_steps or more --epochs mend "
            "that.",
            config.warmup_steps,
            steps,
        )


def _refuse_xla_of_replicas(config: TrainConfig, strategy) -> None:
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    replicas = strategy.num_replicas_in_sync
    if config.xla and replicas > 1 and not on_tpu:
        raise ValueError(
            f"--xla compiles the step of one device, but {replicas} train together, "
            "whose sums TensorFlow does not compile. Remove --xla, or use one "
            "device: --gpus=1 --cluster=none."
        )


def refuse_frozen_noise(config: TrainConfig) -> None:
    """Refuses to start with a backbone that neither knows nor learns anything."""
    if config.freeze != "none" and not config.weights:
        raise ValueError(
            f"--freeze={config.freeze} without --weights would freeze random weights. "
            "Add --weights=imagenet or a file, or remove --freeze."
        )


def check_training(
    config: TrainConfig, source: Source, strategy, is_begun: bool = False
) -> None:
    """Refuses what cannot be trained, and warns of what will learn little.

    Args:
        config: the run's configuration.
        source: what it trains on.
        strategy: the `tf.distribute.Strategy`.
        is_begun: whether the run continues: it may have begun with fewer images than
            a batch takes, which was not refused then.

    Raises:
        ValueError: if a split is empty, images are too few for a batch, or devices and
            flags do not go together.
    """
    _refuse_xla_of_replicas(config, strategy)
    _refuse_empty_splits(source)
    shapes = shared_shapes(config, strategy)
    if not is_begun:
        _refuse_too_few_images(config, strategy, source)
    _warn_of_unused_sizes(shapes, source)
    images = source.num_examples["train"]
    steps = sampler.epoch_schedule(shapes, images, 0, config.seed, config.grow_epochs)
    warn_of_warmup(config, config.epochs * len(steps))
