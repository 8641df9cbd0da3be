"""Makes the scheduled batches of a source: decoded images and targets of the task.

An image that cannot be decoded never stops a run: another image of the batch, with
weight 0, takes its position, and `unreadable` names it. If no image of a batch can be
decoded, the batch has the targets of `NEUTRAL`. A truncated JPEG counts as readable if
the crop lies above the cut.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from train.data import images
from train.data.batches import NEUTRAL, EncodedBatches, encoded_batches, neutral_value
from train.data.plan import WHOLE, Shard, plan_batches, steps_of_calls
from train.data.sampler import BatchShape
from train.data.source import Source

BATCHES_AHEAD = 2  # decoded at once
BLACK = np.zeros((1, 1, 3), np.uint8)
STAND_IN_SIDE, STAND_IN_TRIES = 256, 16


def train_batches(
    source: Source,
    config,
    schedule: Sequence[BatchShape],
    epoch: int,
    first_step: int = 0,
    shard: Shard = WHOLE,
    load: Callable = images.train_example,
    mix: Callable | None = None,
) -> tf.data.Dataset:
    """Makes an epoch's training batches, each of the scheduled shape.

    Each epoch has another order and other crops. From a later `first_step` on, the
    batches are the same as in the whole epoch; earlier images are not decoded. The
    shards of all pipelines make up the whole batches, whatever their number, and only
    the shard's images are decoded. `load` is `train.tasks.task.Task.train_example`, and
    `mix` is `train.tasks.task.Task.mix`. It mixes the images of each replica among
    themselves: the number of replicas then changes the batches, but not the number of
    pipelines that make them.

    Returns:
        A `tf.data.Dataset` of one batch for each step and replica of the shard, step by
        step:

        - `image`: uint8 `[batch, height, width, 3]`
        - the task's targets; for classification `label`, int32 `[batch]`
        - `weight`: float32 `[batch]`, 0 for images that must not count
        - `index`: int64 `[batch]`, of the planned example in the split, see
          `train.data.source.Source`; -1 beyond the last one
    """

    def seed_of(example_index: tf.Tensor) -> tf.Tensor:
        index = tf.cast(example_index, tf.int32)
        return tf.stack([config.seed * 1_000_003 + epoch, index])

    def load_example(example: dict, example_index: tf.Tensor, size) -> dict:
        return load(example, size, seed_of(example_index), config)

    def finish(batch: dict, example_indices: tf.Tensor) -> dict:
        # No two batches of an epoch have the same first example.
        return mix(batch, seed_of(example_indices[0]), config) if mix else batch

    plan = plan_batches(schedule, first_step, shard)
    calls = steps_of_calls(schedule[first_step:], config.steps_per_execution)
    seed = shuffle_seed(config, epoch)
    encoded = encoded_batches(source, "train", seed, plan, calls)
    count, stand_in = source.num_examples["train"], _stand_in(source, "train")
    return _decode(encoded, load_example, schedule, count, stand_in, finish)


def eval_batches(
    source: Source,
    split: str,
    size: int,
    batch_size: int,
    crop_fraction: float,
    shard: Shard = WHOLE,
    load: Callable = images.eval_example,
) -> tf.data.Dataset:
    """Makes the batches of an evaluation: every example once, in the stored order.

    The batches are as in `train_batches`, `size` pixels wide and high, and the last is
    filled likewise. `load` is `train.tasks.task.Task.eval_example`.
    """

    def load_example(example: dict, example_index: tf.Tensor, _) -> dict:
        return load(example, (size, size), crop_fraction)

    count = source.num_examples[split]
    schedule = [BatchShape(size, size, batch_size)] * -(-count // batch_size)
    plan = plan_batches(schedule, shard=shard)
    encoded = encoded_batches(source, split, None, plan, [1] * len(schedule))
    return _decode(encoded, load_example, schedule, count)


def shuffle_seed(config, epoch: int) -> int:
    """Returns the seed of the order in which an epoch's examples come."""
    sequence = np.random.SeedSequence((config.seed, epoch))
    return int(sequence.generate_state(1)[0] >> 1)


def _stand_in(source: Source, split: str) -> np.ndarray | tf.Tensor:
    """Returns an image of a split for batches without a readable image.

    They teach nothing, but update the statistics of batch normalization: a black image
    would draw the variances to zero.
    """
    for example in source.examples(split, None).take(STAND_IN_TRIES):
        try:
            image = images.decode(images.read(example))
            return images.resize(image, (STAND_IN_SIDE, STAND_IN_SIDE))
        except (tf.errors.OpError, ValueError, OSError):
            continue  # the log names it when its batch is read
    return BLACK


def _decode(
    encoded: EncodedBatches,
    load_example: Callable[[dict, tf.Tensor, tf.Tensor], dict],
    schedule: Sequence[BatchShape],
    count: int,
    stand_in: np.ndarray | tf.Tensor = BLACK,
    finish: Callable[[dict, tf.Tensor], dict] = lambda batch, _: batch,
) -> tf.data.Dataset:
    """Decodes batches; examples from `count` on get the weight 0.

    `load_example` takes an example, its index in the epoch and a (height, width), and
    `finish` a batch and the indices of its examples.
    """
    sizes = tf.constant([shape[:2] for shape in schedule], tf.int32)  # [steps, 2]

    def decode(batch: dict) -> tf.data.Dataset:
        size = sizes[batch["step"]]
        make_neutral = functools.partial(
            _neutral, batch, encoded.ragged_keys, size, stand_in
        )
        decoded = _decode_examples(
            tf.size(batch["example_index"], tf.int64),
            lambda position: load_example(
                encoded.read_example(batch, position),
                batch["example_index"][position],
                size,
            ),
            make_neutral,
        )
        is_real = batch["example_index"] < count
        filled = decoded.map(functools.partial(_fill, batch["index"], is_real))
        return filled.map(lambda filled: finish(filled, batch["example_index"]))

    return encoded.dataset.interleave(
        decode,
        cycle_length=BATCHES_AHEAD,
        num_parallel_calls=BATCHES_AHEAD,
        deterministic=True,
    ).prefetch(1)


def _decode_examples(
    count: tf.Tensor,
    load_position: Callable[[tf.Tensor], dict],
    make_neutral: Callable[[dict], dict],
) -> tf.data.Dataset:
    """Decodes the readable ones of the `count` examples of one batch.

    TensorFlow catches an error only inside a dataset, which then lacks the element. So
    the result is a dataset of one element: the positions that are readable, and their
    images and targets. If there are none, `make_neutral` makes a whole batch from their
    specs.
    """
    loaded = tf.data.Dataset.range(count).map(
        lambda position: (position, load_position(position)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    loaded = loaded.ignore_errors()
    _, specs = loaded.element_spec
    # In a map, so that it is made only if it is asked for.
    neutral = tf.data.Dataset.range(1).map(
        lambda _: (tf.zeros([0], tf.int64), make_neutral(specs))
    )
    return loaded.batch(count).concatenate(neutral).take(1)


def _neutral(
    batch: dict,
    ragged_keys: frozenset[str],
    size: tf.Tensor,
    stand_in: np.ndarray | tf.Tensor,
    specs: dict[str, tf.TensorSpec],
) -> dict[str, tf.Tensor]:
    """Makes images and targets for a batch without a readable image."""
    count = tf.size(batch["example_index"])

    def filled(key: str, spec: tf.TensorSpec) -> tf.Tensor:
        # Open sides are the slots for objects, or the sides of the image.
        open_sides = batch["slots"][None] if key in ragged_keys else size
        open_sides = tf.cast(open_sides, tf.int32)
        sides = [open_sides[i] if n is None else n for i, n in enumerate(spec.shape)]
        return tf.fill([count, *sides], neutral_value(key, spec.dtype))

    image = images.resize(stand_in, size)[None]
    targets = {key: filled(key, spec) for key, spec in specs.items() if key != "image"}
    return {"image": tf.repeat(image, count, axis=0), **targets}


def _fill(indices, is_real, positions, loaded) -> dict[str, tf.Tensor]:
    """Fills the positions of unreadable examples with readable ones.

    Args:
        indices: int64 `[batch]`, of the planned examples in the split.
        is_real: bool `[batch]`, False for examples beyond the last.
        positions: int64 `[readable]`, ascending.
        loaded: images and targets at these positions; if there are none, of all.
    """
    count, size = tf.size(positions, tf.int64), tf.size(indices, tf.int64)
    own = tf.range(size)
    readable = tf.scatter_nd(positions[:, None], tf.ones_like(positions), size[None])
    is_readable = readable > 0
    # Where a readable example was loaded; any of them fills an unreadable position.
    others = tf.where(count > 0, own % tf.maximum(count, 1), own)
    sources = tf.where(is_readable, tf.cumsum(readable) - 1, others)
    loaded = tf.cond(
        count == size,
        lambda: loaded,
        lambda: {key: tf.gather(value, sources) for key, value in loaded.items()},
    )
    return {
        **loaded,
        "weight": tf.cast(is_readable & is_real, tf.float32),
        "index": tf.where(is_real, indices, -1),
    }


def unreadable(source: Source, split: str, batch) -> list[str]:
    """Names the examples of a batch that could not be read: paths for a folder."""
    indices, weights = np.asarray(batch["index"]), np.asarray(batch["weight"])
    found = indices[(indices >= 0) & (weights == 0)]
    return [source.name_of(split, int(index)) for index in found]


def join(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the NumPy images and targets of a few batches, `{name: [examples, ...]}`.

    All get as many slots for objects as the part with the most; for many images see
    `train.tasks.task.Task.unpad`.
    """
    return {name: _join(name, [part[name] for part in parts]) for name in parts[0]}


def _join(name: str, values: list[np.ndarray]) -> np.ndarray:
    sides = np.max([value.shape[1:] for value in values], axis=0)
    filler = NEUTRAL.get(name, 0)

    def padded(value: np.ndarray) -> np.ndarray:
        missing = [(0, int(side)) for side in sides - value.shape[1:]]
        return np.pad(value, [(0, 0), *missing], constant_values=filler)

    return np.concatenate([padded(value) for value in values])
