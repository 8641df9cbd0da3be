"""The plan of an epoch: the examples of each batch, chosen on the host.

All processes of a run make the same plan, and each takes its own shard of every batch.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from train.data.sampler import BatchShape

# Possible numbers of slots for the objects of an image. They are few, since each is
# compiled, and far apart, so that most batches of photos have 16 or 64.
OBJECT_SLOTS = 16 * 4 ** np.arange(5)
# All images of a batch get as many slots as the one with the most objects, and each
# slot is compared with each of some 3,000 anchors: 400 MB for 8 images of so many.
MAX_OBJECTS = int(OBJECT_SLOTS[-1])


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of every batch that one input pipeline makes.

    Replica `r` of all `replicas` gets the examples `r`, `r + replicas` and so on. The
    pipeline has the `count` replicas from `first` on.
    """

    replicas: int = 1
    first: int = 0
    count: int = 1

    @classmethod
    def of(cls, context: tf.distribute.InputContext) -> "Shard":
        """Returns the shard of one input pipeline of a strategy."""
        count = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * count
        return cls(context.num_replicas_in_sync, first, count)


WHOLE = Shard()


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The batches of one shard: step by step, one batch for each of its replicas.

    `example_indices` are positions in the epoch's order of examples. An index beyond
    the last example stands for the first ones again: they fill the last batch, so that
    all batches of a shape run through one compiled step.
    """

    first_step: int  # the first planned step of the schedule
    starts: np.ndarray  # [steps + 1], where each step of the whole schedule starts
    steps: np.ndarray  # [batches], the step of each batch
    splits: np.ndarray  # [batches + 1], where each batch starts in `example_indices`
    example_indices: np.ndarray  # [images]


def plan_batches(
    schedule: Sequence[BatchShape], first_step: int = 0, shard: Shard = WHOLE
) -> BatchPlan:
    """Cuts the examples of an epoch into the batches of a schedule."""
    for shape in schedule:
        if shape.batch % shard.replicas:
            raise ValueError(
                f"A batch of {shape.batch} images cannot be divided evenly among "
                f"{shard.replicas} replicas."
            )
    starts = np.cumsum([0, *(shape.batch for shape in schedule)])
    steps = np.repeat(np.arange(first_step, len(schedule)), shard.count)
    replicas = np.arange(len(steps)) % shard.count + shard.first
    batches = [
        np.arange(starts[step] + replica, starts[step + 1], shard.replicas)
        for step, replica in zip(steps, replicas)
    ]
    splits = np.cumsum([0, *map(len, batches)])
    example_indices = np.concatenate([np.zeros(0, np.int64), *batches])
    return BatchPlan(first_step, starts, steps, splits, example_indices)


def steps_of_calls(schedule: Sequence[BatchShape], steps_per_call: int) -> list[int]:
    """Returns how many steps each call of the compiled training step takes.

    A call takes `steps_per_call` steps of one shape, or a single step. Other numbers of
    steps would each be compiled.
    """
    calls: list[int] = []
    step = 0
    while step < len(schedule):
        following = schedule[step : step + steps_per_call]
        is_full = len(following) == steps_per_call and len(set(following)) == 1
        calls.append(steps_per_call if is_full else 1)
        step += calls[-1]
    return calls


def plan_object_slots(
    num_objects: np.ndarray, plan: BatchPlan, calls: Sequence[int]
) -> np.ndarray:
    """Plans how many object slots the images of each batch have, int64 `[batches]`.

    All images of a call have the same number of slots: the call is compiled for one
    shape, and devices exchange their targets. `num_objects` `[examples]` is in the
    epoch's order. `calls` holds the number of steps of each call, from the plan's first
    step on.
    """
    starts = plan.starts
    if not len(calls):
        return np.zeros(0, np.int64)
    indices = np.arange(starts[plan.first_step], starts[-1])
    first_steps = plan.first_step + np.cumsum([0, *calls[:-1]])
    call_starts = starts[first_steps] - starts[plan.first_step]
    most = np.maximum.reduceat(num_objects[indices % len(num_objects)], call_starts)
    slots = OBJECT_SLOTS[np.searchsorted(OBJECT_SLOTS, most)]
    return np.repeat(slots, calls)[plan.steps - plan.first_step]
