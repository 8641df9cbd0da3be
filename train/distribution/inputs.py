"""Distributes batches to devices, and reports images that cannot be read."""

import functools
import typing
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from train.data import pipeline as data
from train.data.source import Source
from train.data.unreadable import with_reason

BATCHES_ON_DEVICE = 2  # ahead of the step, for each device
_INT32 = "/int32"  # ends the name of an int32 tensor that is sent as int64


class UnreadableLog:
    """Logs each unreadable image of a split and the reason, once per process."""

    logged: typing.ClassVar[set[str]] = set()

    def __init__(self, source: Source, split: str, strategy: tf.distribute.Strategy):
        self.source, self.split, self.strategy = source, split, strategy
        self.names: list[str] = []

    @staticmethod
    def take(batch: dict) -> dict:
        """Moves the indices out of a batch; returns what `copy` takes later.

        Nothing is read here, since the batch may still be on its way to a device.
        """
        return {"index": batch.pop("index"), "weight": batch["weight"]}

    def copy(self, taken: dict) -> list[dict[str, np.ndarray]]:
        """Copies what was taken to the host, for each replica of this worker."""
        local = self.strategy.experimental_local_results
        indices, weights = local(taken["index"]), local(taken["weight"])
        return [
            {"index": np.asarray(index), "weight": np.asarray(weight)}
            for index, weight in zip(indices, weights)
        ]

    def read(self, copied: list[dict[str, np.ndarray]]) -> None:
        """Logs the images of a batch that this worker could not read."""
        for replica in copied:
            for name in data.unreadable(self.source, self.split, replica):
                self.names.append(name)
                if name not in self.logged:
                    self.logged.add(name)
                    logging.warning("skipped, cannot be read: %s", with_reason(name))


def take_strings(
    strategy: tf.distribute.Strategy, batch: dict
) -> list[dict[str, np.ndarray]]:
    """Moves the targets that are strings out of a batch, since they stay on the host.

    Returns `{name: [examples]}` for each replica of this worker.
    """
    local = {
        name: strategy.experimental_local_results(value)
        for name, value in batch.items()
    }
    strings = [name for name, values in local.items() if values[0].dtype == tf.string]
    for name in strings:
        del batch[name]
    return [
        {name: local[name][replica].numpy() for name in strings}
        for replica in range(len(local["weight"]))
    ]


def distribute(
    strategy: tf.distribute.Strategy,
    make_dataset: Callable[[data.Shard], tf.data.Dataset],
    to_devices: bool = True,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Makes a distributed data set from the function that makes a shard of it.

    Batches are sent to the devices before their step asks for them, unless they contain
    strings or `to_devices` is False. A step for GPUs takes them with `receive`.
    """
    has_gpus = bool(tf.config.list_logical_devices("GPU"))

    @functools.cache  # for the two calls below
    def make_shard(shard: data.Shard) -> tf.data.Dataset:
        dataset = make_dataset(shard)
        if has_gpus and to_devices and not _has_strings(dataset):
            dataset = dataset.map(_send)
        return dataset

    def distributed(to_devices: bool):
        return strategy.distribute_datasets_from_function(
            lambda context: make_shard(data.Shard.of(context)),
            tf.distribute.InputOptions(
                experimental_fetch_to_device=to_devices,
                experimental_per_replica_buffer_size=BATCHES_ON_DEVICE,
            ),
        )

    on_host = distributed(to_devices=False)
    if not to_devices or _has_strings(on_host):
        return on_host
    if isinstance(on_host, tf.data.Dataset):  # the default strategy changes nothing
        return _prefetched(on_host, "/GPU:0") if has_gpus else on_host
    return distributed(to_devices=True)


def _has_strings(dataset) -> bool:
    specs = tf.nest.flatten(dataset.element_spec, expand_composites=True)
    return any(spec.dtype == tf.string for spec in specs)


def _prefetched(dataset: tf.data.Dataset, device: str) -> tf.data.Dataset:
    """Copies batches to a device while it computes; nothing may come after this."""
    prefetch = tf.data.experimental.prefetch_to_device
    return dataset.apply(prefetch(device, BATCHES_ON_DEVICE))


def _send(batch: dict) -> dict:
    """Sends int32 as int64.

    TensorFlow keeps int32 arguments of a function in the host's memory. Those on a GPU
    would be copied back in each step, which waits for all steps before it.
    """
    sent = {}
    for name, value in batch.items():
        if value.dtype == tf.int32:
            name, value = name + _INT32, tf.cast(value, tf.int64)
        sent[name] = value
    return sent


def receive(batch: dict) -> dict:
    """Returns a batch in a step as the pipeline made it."""
    received = {}
    for name, value in batch.items():
        if name.endswith(_INT32):
            name, value = name.removesuffix(_INT32), tf.cast(value, tf.int32)
        received[name] = value
    return received
