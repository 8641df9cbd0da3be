"""Distributes batches to devices, and reports images that cannot be read."""

import typing
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from train.data import pipeline as data
from train.data.unreadable import with_reason


class UnreadableLog:
    """Logs each unreadable image and the reason, once per process."""

    logged: typing.ClassVar[set[str]] = set()

    def __init__(self):
        self.names: list[str] = []

    def take_names(self, strategy: tf.distribute.Strategy, batch: dict) -> dict:
        """Returns the batch without names, since accelerators take no strings."""
        ids, weights = map(
            strategy.experimental_local_results, (batch.pop("id"), batch["weight"])
        )
        for replica_ids, replica_weights in zip(ids, weights):
            for name in data.unreadable({"id": replica_ids, "weight": replica_weights}):
                self.names.append(name)
                if name not in self.logged:
                    self.logged.add(name)
                    logging.warning("skipped, cannot be read: %s", with_reason(name))
        return batch


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
) -> tf.distribute.DistributedDataset:
    """Makes a distributed data set from the function that makes a shard of it."""
    options = tf.distribute.InputOptions(experimental_fetch_to_device=False)  # strings
    return strategy.distribute_datasets_from_function(
        lambda context: make_dataset(data.Shard.of(context)), options
    )
