"""Batches of a source for tests, and what is in them."""

import numpy as np

from train.config import make_config
from train.data import pipeline as data
from train.data import sampler

CONFIG = make_config("digits", sizes=(32, 48), base_size=32, batch_size=100)


def schedule_of(config, source, epoch=0):
    shapes = sampler.batch_shapes(config.sizes, config.base_size, config.batch_size)
    return sampler.epoch_schedule(
        shapes, source.num_examples["train"], epoch, config.seed
    )


def train_batches(source, config=CONFIG, epoch=0):
    schedule = schedule_of(config, source, epoch)
    batches = data.train_batches(source, config, schedule, epoch)
    return list(batches.as_numpy_iterator())


def weighed(batches, key) -> np.ndarray:
    """Joins the values of all examples that count."""
    return np.concatenate([batch[key][batch["weight"] > 0] for batch in batches])


def mean_colors(batches) -> np.ndarray:
    """Gives the mean color of each image that counts, `[examples, 3]`."""
    means = [{**b, "mean": b["image"].mean(axis=(1, 2), dtype=float)} for b in batches]
    return weighed(means, "mean")


def listed(source, split, seed=None) -> list[dict]:
    return list(source.examples(split, seed).as_numpy_iterator())
