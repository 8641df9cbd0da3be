"""Batches for a strategy's devices, and what of them cannot be read."""

import typing
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from train import data
from train.sources import Source


class Unreadable:
    """Logs the names of unreadable images, once in a process, and takes them away."""

    logged: typing.ClassVar[set] = set()

    def __init__(self):
        self.example = ""

    def take_names(self, strategy, batch: dict) -> dict:
        """Returns the batch without names, which are strings: no accelerator's."""
        ids, weights = map(
            strategy.experimental_local_results, (batch.pop("id"), batch["weight"])
        )
        for replica_ids, replica_weights in zip(ids, weights):
            for name in data.unreadable({"id": replica_ids, "weight": replica_weights}):
                self.example = self.example or name
                if name not in self.logged:
                    self.logged.add(name)
                    logging.warning("skipped, cannot be read: %s", name)
        return batch


def refuse_nothing_seen(
    seen: int, source: Source, split: str, unreadable: Unreadable
) -> None:
    """Raises a ValueError if no image of a split could be read."""
    if not seen:
        raise ValueError(
            f"None of the {source.num_examples[split]} {split} images of "
            f"{source.name} can be read, {unreadable.example} among them."
        )


def distribute(strategy, make_dataset: Callable[[data.Share], tf.data.Dataset]):
    """Makes each pipeline's share of the batches of a distributed data set."""
    options = tf.distribute.InputOptions(experimental_fetch_to_device=False)  # strings
    return strategy.distribute_datasets_from_function(
        lambda context: make_dataset(data.Share.of(context)), options
    )
