"""From a source to batches, as scheduled.

    source -> examples, each with its place in a scheduled batch -> this process's share
    of them -> the task's image and targets at the scheduled size -> batch

An image that cannot be decoded never stops a run: its place in the batch is filled with
another image of weight 0, and `unreadable` names it. Where no image of a batch can be
decoded, its targets are `NEUTRAL`.
A truncated JPEG counts as readable where the crop lies above the cut.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train.data import images
from train.data.masks import IGNORED
from train.data.sampler import BatchShape
from train.data.sources import Source

AUTOTUNE = tf.data.AUTOTUNE
BATCHES_AHEAD = 2  # that are decoded at once
# The values of targets that say nothing, so that what is computed from them is finite
# and counts nowhere; of targets that are not listed it is 0.
NEUTRAL = {"classes": -1, "mask": IGNORED, "image_size": 1}
# Numbers of places for the objects of a batch's images, four times one another: batches
# of photos take 16 or 64, whatever crowd there is in one of the others.
PLACES = [16 * 4**power for power in range(8)]
BLACK = np.zeros((1, 1, 3), np.uint8)
STAND_IN_SIDE, STAND_IN_TRIES = 256, 16


class Share(NamedTuple):
    """The part of every batch, or of the batches of some steps, that a pipeline makes.

    Attributes:
        replicas: among which a batch is dealt out, example by example.
        first: of the pipeline's replicas.
        count: of its replicas.
        stride: of the steps whose batches it makes; the others it leaves out.
        offset: of the first of them, counted from the schedule's first step.
    """

    replicas: int = 1
    first: int = 0
    count: int = 1
    stride: int = 1
    offset: int = 0

    @classmethod
    def of(cls, context: tf.distribute.InputContext) -> "Share":
        """Returns the share of one input pipeline of a strategy."""
        count = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * count
        return cls(context.num_replicas_in_sync, first, count)


WHOLE = Share()


def steps_of_calls(schedule: list[BatchShape], steps_per_call: int) -> list[int]:
    """Deals steps out to calls: as many of one shape as a call takes, or one.

    No other number of them, since each is compiled.
    """
    calls, step = [], 0
    while step < len(schedule):
        following = schedule[step : step + steps_per_call]
        is_full = len(following) == steps_per_call and len(set(following)) == 1
        calls.append(steps_per_call if is_full else 1)
        step += calls[-1]
    return calls


def _with_places(examples, schedule: list[BatchShape], first_step: int, count: int):
    """Gives each example its place in the batches of a schedule.

    Args:
        examples: a `tf.data.Dataset` of all of them.
        schedule: the batch shapes, in order.
        first_step: of the schedule, the first whose examples are wanted.
        count: of the examples.

    Returns:
        A `tf.data.Dataset` of `{"step", "place", "number", "weight", ...}`: which
        batch, which place in it, and which example of the whole schedule. The places
        at the end of the last batch, for which no examples are left, get the first
        ones again, with the weight 0 and without an id: every batch of a shape then
        runs through the same compiled step, and batch normalization sees as many
        different images in it as in the others.
    """
    batches = np.array([shape.batch for shape in schedule], np.int64)
    starts = np.concatenate([[0], np.cumsum(batches)])
    first, end = int(starts[first_step]), int(starts[-1])
    step_of = tf.constant(np.repeat(np.arange(len(schedule)), batches))
    starts = tf.constant(starts)

    def placed(number, example):
        is_real, step = number < count, step_of[number]
        return {
            **example,
            "number": number,
            "step": step,
            "place": tf.cast(number - starts[step], tf.int32),
            "weight": tf.cast(is_real, tf.float32),
            "id": tf.where(is_real, example["id"], ""),
        }

    examples = examples.repeat().skip(first).take(end - first)
    numbers = tf.data.Dataset.range(first, end)
    return tf.data.Dataset.zip(numbers, examples).map(placed)


def _with_equal_places(examples, schedule, first_step: int, calls: list[int]):
    """Pads examples that each have as many objects as are on their image.

    All examples of a step get as many places as its fullest image takes, whatever
    device they go to, since devices exchange what they find; and so do all steps of a
    call, which is compiled for their shapes together. The places are one of few
    numbers, so that few shapes are compiled.

    Args:
        examples: from `_with_places`.
        schedule: the batch shapes, in order.
        first_step: of the schedule, that of the first example.
        calls: from there on, the numbers of steps that one call executes.

    Returns:
        A `tf.data.Dataset` of the same examples; as they are if their sides are equal.
    """
    specs = examples.element_spec
    uneven = [key for key, spec in specs.items() if None in spec.shape]
    if not uneven or not calls:
        return examples
    call_of = np.repeat(np.arange(len(calls)), calls)
    batches = [shape.batch for shape in schedule[first_step:]]
    counts = tf.constant(np.bincount(call_of, batches), tf.int64)
    call_of = tf.constant(np.concatenate([np.zeros(first_step, int), call_of]))
    fillers = {key: _filler(key, spec.dtype) for key, spec in specs.items()}

    def rounded_up(value, key: str):
        sides = tf.shape(value)
        places = tf.gather(PLACES, tf.searchsorted(PLACES, sides[1:2]))
        missing = tf.concat([[0], places - sides[1:2], 0 * sides[2:]], axis=0)
        paddings = tf.stack([0 * missing, missing], axis=1)
        return tf.pad(value, paddings, constant_values=fillers[key])

    def padded(call, window):
        batches = window.padded_batch(counts[call], padding_values=fillers)
        return batches.map(
            lambda batch: batch | {key: rounded_up(batch[key], key) for key in uneven}
        ).unbatch()

    return examples.group_by_window(
        key_func=lambda example: call_of[example["step"]],
        reduce_func=padded,
        window_size_func=lambda call: counts[call],
    )


def _filler(key: str, dtype: tf.DType):
    """Returns the value of a target that says nothing."""
    value = "" if dtype == tf.string else NEUTRAL.get(key, 0)
    return tf.cast(tf.constant(value), dtype)


def _batches(
    examples, load, schedule: list[BatchShape], share: Share, stand_in=BLACK
) -> tf.data.Dataset:
    """Decodes a pipeline's share of the batches of a schedule.

    Args:
        examples: from `_with_places`.
        load: from an example and the (height, width) of its batch to its image and
            targets.
        schedule: the batch shapes, in order.
        share: of each batch.
        stand_in: what is seen in a batch of which no image can be read.

    Returns:
        A `tf.data.Dataset` of the batches of the share's replicas, one after the
        other, step by step; see `train_batches`.

    Raises:
        ValueError: if a batch cannot be dealt out evenly.
    """
    for shape in schedule:
        if shape.batch % share.replicas:
            raise ValueError(
                f"A batch of {shape.batch} images cannot be dealt out evenly to "
                f"{share.replicas} replicas."
            )
    sizes = tf.constant([shape[:2] for shape in schedule], tf.int32)
    batches = tf.constant([shape.batch // share.replicas for shape in schedule])
    batches = tf.cast(batches, tf.int64)

    def replica(example):
        return tf.cast(example["place"] % share.replicas - share.first, tf.int64)

    def in_share(example):
        is_step = example["step"] % share.stride == share.offset
        return is_step & (replica(example) >= 0) & (replica(example) < share.count)

    if share.count < share.replicas or share.stride > 1:
        examples = examples.filter(in_share)
    dataset = examples.group_by_window(
        key_func=lambda example: example["step"] * share.count + replica(example),
        reduce_func=lambda key, window: window.batch(batches[key // share.count]),
        window_size_func=lambda key: batches[key // share.count],
    )
    return dataset.interleave(
        lambda batch: _decoded(batch, load, sizes[batch["step"][0]], stand_in),
        cycle_length=BATCHES_AHEAD,
        num_parallel_calls=BATCHES_AHEAD,
        deterministic=True,
    ).prefetch(1)


def _decoded(batch, load, size, stand_in) -> tf.data.Dataset:
    """Makes a data set of one decoded batch, without losing a place of it.

    An error can only be caught inside a data set, which then lacks the element.
    """
    count = tf.size(batch["place"])
    examples = tf.data.Dataset.from_tensor_slices((tf.range(count), batch))
    loaded = examples.map(
        lambda index, example: (index, load(example, size)),
        num_parallel_calls=AUTOTUNE,
        deterministic=True,
    ).ignore_errors()
    none = (
        tf.range(0),
        {
            key: _neutral(key, spec, batch, size, stand_in)
            for key, spec in loaded.element_spec[1].items()
        },
    )
    loaded = loaded.batch(tf.cast(count, tf.int64)).concatenate(
        tf.data.Dataset.from_tensors(none)
    )
    return loaded.take(1).map(lambda *readable: _fill(batch, *readable))


def _neutral(key: str, spec: tf.TensorSpec, batch, size, stand_in):
    """Returns a batch's images or targets, if none of its images can be read."""
    count = tf.shape(batch["place"])
    if key == "image":
        image = images.resize(stand_in, size)[None]
        return tf.repeat(image, count[0], axis=0)
    # Open sides are those of the examples, if these have them, or of the images.
    has_sides = key in batch and batch[key].shape.rank == 1 + spec.shape.rank
    open_sides = tf.shape(batch[key])[1:] if has_sides else size
    sides = [open_sides[i] if n is None else n for i, n in enumerate(spec.shape)]
    shape = tf.concat([count, tf.cast(sides, tf.int32)], axis=0)
    return tf.fill(shape, _filler(key, spec.dtype))


def _fill(batch, indices, loaded) -> dict:
    """Puts readable examples of a batch in the places of those that were not.

    Args:
        batch: its examples.
        indices: of the examples that were readable, ascending.
        loaded: their images and targets; if there are none, neutral ones for all.

    Returns:
        The batch as `train_batches` describes it.
    """
    own, count = tf.range(tf.size(batch["place"])), tf.size(indices)
    readable = tf.scatter_nd(indices[:, None], tf.ones_like(indices), tf.shape(own))
    is_readable = readable > 0
    # The place among the readable; what is not readable takes any of them.
    others = tf.where(count > 0, own % tf.maximum(count, 1), own)
    places = tf.where(is_readable, tf.cumsum(readable) - 1, others)
    loaded = tf.cond(
        count == tf.size(own),
        lambda: loaded,
        lambda: {key: tf.gather(value, places) for key, value in loaded.items()},
    )
    return {
        **loaded,
        "weight": tf.where(is_readable, batch["weight"], 0.0),
        "id": batch["id"],
    }


def _stand_in(source: Source, split: str):
    """Returns an image of a split for batches of which no image can be read.

    They teach nothing, but batch normalization follows what it sees: a black image
    would draw its variances to zero.
    """
    for example in source.examples(split, None).take(STAND_IN_TRIES):
        try:
            image = images.decode(images.read(example))
            return images.resize(image, (STAND_IN_SIDE, STAND_IN_SIDE))
        except (tf.errors.OpError, ValueError, OSError):
            continue  # it is named when its batch is read
    return BLACK


def shuffle_seed(config, epoch: int) -> int:
    """Returns the seed of the order in which an epoch's examples come."""
    sequence = np.random.SeedSequence((config.seed, epoch))
    return int(sequence.generate_state(1)[0] >> 1)


def train_batches(
    source: Source,
    config,
    schedule: list[BatchShape],
    epoch: int,
    first_step: int = 0,
    share: Share = WHOLE,
    load: Callable = images.train_example,
) -> tf.data.Dataset:
    """Makes an epoch's training batches, each of the scheduled shape.

    Args:
        source: where the images come from.
        config: a `TrainConfig`: its `seed`, and what `load` uses.
        schedule: the epoch's batch shapes, in order; see `train.data.sampler`.
        epoch: counted from 0; another epoch, another order and other crops.
        first_step: of the schedule, to continue an epoch: its batches are those that
            the whole epoch has there, and nothing before them is decoded.
        share: of every batch; only its images are decoded. The shares of all
            pipelines together are the whole batches, whatever their number.
        load: the task's, see `train.tasks.task.Task.train_example`.

    Returns:
        A `tf.data.Dataset` of one batch for each entry of the schedule from there on,
        or of as many as the share has replicas, for each step of the share's stride:

        - `image`: uint8 `[batch, height, width, 3]`
        - the task's targets; for classification `label`, int32 `[batch]`
        - `weight`: float32 `[batch]`, 0 for what fills a place and must not count
        - `id`: string `[batch]`, the example whose place it is, empty beyond the last

    Raises:
        ValueError: if a batch cannot be dealt out evenly to the share's replicas.
    """
    count = source.num_examples["train"]

    def load_at(example, size):
        number = tf.cast(example["number"], tf.int32)
        seed = tf.stack([config.seed * 1_000_003 + epoch, number])
        return load(example, size, seed, config)

    examples = source.examples("train", shuffle_seed(config, epoch))
    examples = _with_places(examples, schedule, first_step, count)
    calls = steps_of_calls(schedule[first_step:], config.steps_per_execution)
    examples = _with_equal_places(examples, schedule, first_step, calls)
    return _batches(examples, load_at, schedule, share, _stand_in(source, "train"))


def eval_batches(
    source: Source,
    split: str,
    size: int,
    batch_size: int,
    crop_fraction: float,
    share: Share = WHOLE,
    load: Callable = images.eval_example,
) -> tf.data.Dataset:
    """Makes the batches of an evaluation: every example once, in the stored order.

    Args:
        source: where the images come from.
        split: `"train"` or `"validation"`.
        size: side of the images in pixels.
        batch_size: images in a batch; the last is filled as in `train_batches`.
        crop_fraction: see `keras_mobilevit.preprocessing.resize_and_center_crop`.
        share: of every batch.
        load: the task's, see `train.tasks.task.Task.eval_example`.

    Returns:
        A `tf.data.Dataset` of the dicts that `train_batches` describes.
    """
    count = source.num_examples[split]
    schedule = [BatchShape(size, size, batch_size)] * -(-count // batch_size)
    examples = _with_places(source.examples(split, None), schedule, 0, count)
    examples = _with_equal_places(examples, schedule, 0, [1] * len(schedule))

    def load_at(example, _):
        return load(example, (size, size), crop_fraction)

    return _batches(examples, load_at, schedule, share)


def unreadable(batch) -> list[str]:
    """Names the examples of a batch that could not be read: paths for a folder."""
    ids, weights = batch["id"].numpy(), batch["weight"].numpy()
    return [name.decode() for name, weight in zip(ids, weights) if name and not weight]


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the images and targets of some batches, of few images.

    Args:
        parts: `{name: [examples, ...]}` in NumPy.

    Returns:
        The same, with as many places for objects as the part with the most has; see
        `train.tasks.task.Task.unpad` for many images.
    """
    return {name: _join(name, [part[name] for part in parts]) for name in parts[0]}


def _join(name: str, values: list[np.ndarray]) -> np.ndarray:
    sides = np.max([value.shape[1:] for value in values], axis=0)
    filler = NEUTRAL.get(name, 0)

    def padded(value):
        missing = [(0, int(side)) for side in sides - value.shape[1:]]
        return np.pad(value, [(0, 0), *missing], constant_values=filler)

    return np.concatenate([padded(value) for value in values])
