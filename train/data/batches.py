"""Makes batches of examples, not decoded yet, from a source and a plan.

An indexed source gives any example of a batch when it is asked for. A stream is read
in order, and cut into the same batches.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from train.data.masks import IGNORE_INDEX
from train.data.plan import OBJECT_SLOTS, BatchPlan, plan_object_slots
from train.data.source import Columns, Source, example_order, read_row

# Values of targets that neither teach nor count, but keep all results finite. The value
# of other targets is 0.
NEUTRAL = {"classes": -1, "mask": IGNORE_INDEX, "image_size": 1}


class EncodedBatches(NamedTuple):
    """Batches of a plan before their images are decoded.

    The dataset has dicts: `step`; `example_index`, in the epoch, and `index`, in the
    split, int64 `[batch]`; `slots`, the slots for the objects of each image; and what
    `read_example` takes.
    """

    dataset: tf.data.Dataset
    read_example: Callable[[dict, tf.Tensor], dict]  # from a batch and a position in it
    ragged_keys: frozenset[str]  # of targets that have one row for each object


def encoded_batches(
    source: Source, split: str, seed: int | None, plan: BatchPlan, calls: Sequence[int]
) -> EncodedBatches:
    """Makes the batches of a plan; the seed `None` stands for the stored order.

    `calls` are the numbers of steps that one call executes, from the plan's first step
    on. All images of a call have the same number of slots for objects.
    """
    if source.columns is None:
        return _stream_batches(source, split, seed, plan, calls)
    order = example_order(source.num_examples[split], seed)
    return _indexed_batches(source.columns[split], order, plan, calls)


def _indexed_batches(
    columns: Columns, order: np.ndarray, plan: BatchPlan, calls: Sequence[int]
) -> EncodedBatches:
    """Makes batches whose examples are looked up by their row in the columns."""
    ragged = {k: v for k, v in columns.items() if isinstance(v, tf.RaggedTensor)}
    slots = np.zeros(len(plan.steps), np.int64)
    if ragged:
        lengths = [values.row_lengths().numpy() for values in ragged.values()]
        slots = plan_object_slots(np.max(lengths, axis=0)[order], plan, calls)
    rows = order[plan.example_indices % len(order)]
    steps, splits, indices, rows, slots = map(
        tf.constant, (plan.steps, plan.splits, plan.example_indices, rows, slots)
    )

    def describe(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        start, end = splits[batch], splits[batch + 1]
        return {
            "step": steps[batch],
            "example_index": indices[start:end],
            "index": rows[start:end],
            "slots": slots[batch],
        }

    def read_example(batch: dict, position: tf.Tensor) -> dict:
        example = read_row(columns, batch["index"][position])
        return example | {
            key: _pad(key, example[key], batch["slots"], axis=0) for key in ragged
        }

    dataset = tf.data.Dataset.range(len(plan.steps)).map(describe)
    return EncodedBatches(dataset, read_example, frozenset(ragged))


def _stream_batches(
    source: Source, split: str, seed: int | None, plan: BatchPlan, calls: Sequence[int]
) -> EncodedBatches:
    """Makes batches of examples that are read in order.

    Groups of steps are read at once: the steps of a call, if images have different
    numbers of objects, and single steps otherwise.
    """
    examples = source.examples(split, seed)
    specs = examples.element_spec
    ragged = frozenset(key for key, spec in specs.items() if None in spec.shape)
    starts = plan.starts[plan.first_step :]
    steps = calls if ragged else [1] * (len(starts) - 1)
    # The first example of each group, and its first batch in the plan.
    bounds = np.cumsum([0, *steps])
    group_starts = starts[bounds]
    first_batches = np.searchsorted(plan.steps, plan.first_step + bounds)
    planned = examples.repeat().skip(starts[0]).take(starts[-1] - starts[0])
    groups = _group(planned, np.diff(group_starts), ragged)
    group_starts, first_batches, batch_steps, splits, indices = map(
        tf.constant,
        (group_starts, first_batches, plan.steps, plan.splits, plan.example_indices),
    )

    def cut(group: tf.Tensor, columns: dict) -> tf.data.Dataset:
        slots = [tf.shape(columns[key], tf.int64)[1] for key in ragged]

        def describe(batch: tf.Tensor) -> dict[str, Any]:
            own = indices[splits[batch] : splits[batch + 1]]
            rows = own - group_starts[group]
            own_columns = {key: tf.gather(x, rows) for key, x in columns.items()}
            return {
                "step": batch_steps[batch],
                "example_index": own,
                "index": own_columns["index"],
                "columns": own_columns,
                "slots": slots[0] if slots else tf.constant(0, tf.int64),
            }

        bounds = first_batches[group], first_batches[group + 1]
        return tf.data.Dataset.range(*bounds).map(describe)

    def read_example(batch: dict, position: tf.Tensor) -> dict:
        return {key: values[position] for key, values in batch["columns"].items()}

    return EncodedBatches(groups.enumerate().flat_map(cut), read_example, ragged)


def _group(
    examples: tf.data.Dataset, counts: np.ndarray, ragged: frozenset[str]
) -> tf.data.Dataset:
    """Joins examples of a stream to groups of `counts`, `{key: [count, ...]}`.

    The `ragged` keys have one row for each object, and are padded to one of
    `OBJECT_SLOTS`.
    """
    specs = examples.element_spec
    fillers = {key: neutral_value(key, spec.dtype) for key, spec in specs.items()}
    group_of = tf.constant(np.repeat(np.arange(len(counts)), counts))
    sizes = tf.constant(counts, tf.int64)

    def join(group: tf.Tensor, window: tf.data.Dataset) -> tf.data.Dataset:
        joined = window.map(lambda _, example: example).padded_batch(
            sizes[group], padding_values=fillers
        )
        return joined.map(
            lambda columns: (
                columns | {key: _round_up(key, columns[key]) for key in ragged}
            )
        )

    return examples.enumerate().group_by_window(
        key_func=lambda index, _: group_of[index],
        reduce_func=join,
        window_size_func=lambda group: sizes[group],
    )


def _round_up(key: str, values: tf.Tensor) -> tf.Tensor:
    """Pads `[images, objects, ...]` to one of `OBJECT_SLOTS`."""
    most = tf.shape(values, tf.int64)[1:2]
    slots = tf.gather(OBJECT_SLOTS, tf.searchsorted(OBJECT_SLOTS, most))[0]
    return _pad(key, values, slots, axis=1)


def _pad(key: str, values: tf.Tensor, slots: tf.Tensor, axis: int) -> tf.Tensor:
    """Pads the axis of objects with neutral values."""
    missing = slots - tf.shape(values, tf.int64)[axis]
    paddings = missing * tf.constant(
        [[0, int(side == axis)] for side in range(values.shape.rank)], tf.int64
    )
    padded = tf.pad(values, paddings, constant_values=neutral_value(key, values.dtype))
    sides = enumerate(values.shape)
    padded.set_shape([None if side == axis else n for side, n in sides])
    return padded


def neutral_value(key: str, dtype: tf.DType) -> tf.Tensor:
    """Returns the value of a target that neither teaches nor counts."""
    value = "" if dtype == tf.string else NEUTRAL.get(key, 0)
    return tf.cast(tf.constant(value), dtype)
