"""Batches for a strategy's devices, and what of them cannot be read."""

import typing
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from train.data import pipeline as data
from train.data.source import Source
from train.data.unreadable import refuse_nothing_read, with_reason


class Unreadable:
    """Logs unreadable images and why, once in a process, and takes their names away."""

    logged: typing.ClassVar[set] = set()

    def __init__(self):
        self.names: list[str] = []

    def take_names(self, strategy, batch: dict) -> dict:
        """Returns the batch without names, which are strings: no accelerator's."""
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


def take_strings(strategy, batch: dict) -> list[dict[str, np.ndarray]]:
    """Takes the targets that are strings out of a batch, which stay on the host.

    Returns:
        Of each replica of this worker, `{name: [examples]}`.
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


def refuse_nothing_seen(
    seen: int, source: Source, split: str, unreadable: Unreadable
) -> None:
    """Raises a ValueError if no image of a split could be read."""
    if not seen:
        refuse_nothing_read(source, split, unreadable.names)


def distribute(strategy, make_dataset: Callable[[data.Shard], tf.data.Dataset]):
    """Makes each pipeline's shard of the batches of a distributed data set."""
    options = tf.distribute.InputOptions(experimental_fetch_to_device=False)  # strings
    return strategy.distribute_datasets_from_function(
        lambda context: make_dataset(data.Shard.of(context)), options
    )
