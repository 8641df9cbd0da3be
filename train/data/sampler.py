"""The multi-scale sampler: which image size, and so which batch size, at each step.

Batches of small images hold more images, so that every step costs about as much
(paper, section 3.2). The schedule depends only on its arguments: all processes of a run
compute the same one, and the data pipeline follows it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class BatchShape(NamedTuple):
    """The shape of one training batch: `batch` images of `height` x `width` pixels."""

    height: int
    width: int
    batch: int


def batch_shapes(
    sizes: Sequence[int | tuple[int, int]],
    base_size: int | tuple[int, int],
    base_batch: int,
    batch_multiple: int = 1,
) -> list[BatchShape]:
    """Gives each image size the batch that has as many pixels as the base batch.

    Sizes are sides in pixels or (height, width) pairs. Batches are rounded to a
    multiple of `batch_multiple`, so that replicas can share them evenly. The smallest
    area is first.

    Raises:
        ValueError: if a size, the batch or the multiple is not a positive integer.
    """
    base_height, base_width = _pair(base_size)
    for name, value in (("base batch", base_batch), ("batch multiple", batch_multiple)):
        if type(value) is not int or value < 1:
            raise ValueError(
                f"The {name} must be a positive integer. Received: {value!r}."
            )
    base_pixels = base_height * base_width * base_batch
    shapes = []
    for size in sizes:
        height, width = _pair(size)
        multiples = base_pixels / (height * width * batch_multiple)
        batch = batch_multiple * max(1, round(multiples))
        shapes.append(BatchShape(height, width, batch))
    if not shapes:
        raise ValueError("Expected at least one size. Received none.")
    return sorted(shapes, key=lambda shape: shape.height * shape.width)


def _pair(size) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(s) is int and s > 0 for s in pair):
        raise ValueError(
            f"A size is a positive integer or a pair of them. Received: {size!r}."
        )
    return pair


def epoch_schedule(
    shapes: list[BatchShape],
    num_examples: int,
    epoch: int,
    seed: int = 0,
    repeats: int = 1,
) -> list[BatchShape]:
    """Draws the shapes of an epoch's batches until every example is in one.

    Shapes come in rounds, each a shuffle of all shapes. So all are compiled in the
    first epoch and used equally often. The last round is an exception: it skips shapes
    for which too few examples are left, so an epoch of fewer examples than one round
    favors the smallest batches. The last batch has the smallest batch size, and only
    the last batch may be larger than the number of remaining examples.

    `repeats` batches of a shape follow each other; only at the end, when few examples
    are left, the smallest batches come singly.
    """
    if num_examples < 1:
        raise ValueError(f"Expected at least one example. Received: {num_examples}.")
    smallest = min(shapes, key=lambda shape: shape.batch)
    rng = np.random.default_rng((seed, epoch))
    schedule, left = [], num_examples
    while left > 0:
        fitting = [s for s in shapes if repeats * s.batch <= left]
        for i in rng.permutation(len(shapes)) if fitting else ():
            if repeats * shapes[i].batch <= left:
                schedule += [shapes[i]] * repeats
                left -= repeats * shapes[i].batch
        if not fitting:
            schedule.append(smallest)
            left -= smallest.batch
    return schedule
