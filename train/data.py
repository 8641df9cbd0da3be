"""From a source to batches: decode, augment, batch as scheduled.

    source -> examples -> decode, crop and resize to the scheduled size -> batch

An image that cannot be decoded never stops a run: its place in the batch is filled with
another image of weight 0, and `unreadable` names it.
A truncated JPEG counts as readable where the crop lies above the cut. The orientation
in EXIF data is ignored, as by Keras's own `image_dataset_from_directory`.
"""

import numpy as np
import tensorflow as tf

from keras_mobilevit.preprocessing import resize_and_center_crop
from train import augment
from train.sampler import BatchShape
from train.sources import Source

AUTOTUNE = tf.data.AUTOTUNE
DECODE_AHEAD = 64  # examples that are decoded at once, at most


def _decode(encoded):
    """Decodes any image format to RGB in uint8; of an animation, the first frame."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def _decode_window(encoded, window):
    """Decodes one window of an image, and no more of a JPEG than that takes."""

    def crop_decoded():
        top, left, height, width = tf.unstack(window)
        return _decode(encoded)[top : top + height, left : left + width]

    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_and_crop_jpeg(encoded, window, channels=3),
        crop_decoded,
    )
    image.set_shape([None, None, 3])
    return image


def _image_size(encoded):
    """Returns the height and width; only of a JPEG without decoding it."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(_decode(encoded))[:2],
    )


def _read(example):
    return (
        example["encoded"]
        if "path" not in example
        else tf.io.read_file(example["path"])
    )


def _to_uint8(image):
    return tf.saturate_cast(tf.round(image), tf.uint8)


def _train_image(example, size, seed, crop_scale: float, flip: bool):
    """Decodes a random crop of an example at `size`, perhaps mirrored."""
    encoded = _read(example)
    height, width = tf.unstack(_image_size(encoded))
    seeds = tf.random.experimental.stateless_split(seed, 2)
    window = augment.random_crop_window(height, width, crop_scale, seeds[0])
    image = _decode_window(encoded, window)
    image = tf.image.resize(image, size, antialias=True)
    if flip:
        image = augment.random_flip(image, seeds[1])
    return _to_uint8(image)


def _eval_image(example, size: int, crop_fraction: float):
    image = _decode(_read(example))
    return _to_uint8(resize_and_center_crop(image, (size, size), crop_fraction))


def _decode_all(examples, load, image_size) -> tf.data.Dataset:
    """Maps `load` over examples, in order and in parallel, without losing any.

    Args:
        examples: a `tf.data.Dataset` of `{"label", "id", ...}`.
        load: from an example to its image.
        image_size: from an example to the height and width of its image.

    Returns:
        A `tf.data.Dataset` of `{"image", "label", "id", "weight"}`; an example that
        `load` failed on has a black image and the weight 0.
    """

    def element(example, image, weight: float) -> dict:
        return {
            "image": image,
            "label": example["label"],
            "id": example["id"],
            "weight": tf.constant(weight),
        }

    def decoded(example):
        return element(example, load(example), 1.0)

    def black(example):
        shape = tf.concat([image_size(example), [3]], axis=0)
        return element(example, tf.zeros(shape, tf.uint8), 0.0)

    def decoded_or_black(example):
        # The only way to catch an error inside a tf.data pipeline: it ends a data set
        # of one, and the next takes its place.
        one = tf.data.Dataset.from_tensors(example)
        return one.map(decoded).ignore_errors().concatenate(one.map(black)).take(1)

    return examples.interleave(
        decoded_or_black,
        cycle_length=DECODE_AHEAD,
        num_parallel_calls=AUTOTUNE,
        deterministic=True,
    )


def _fill(batch, size):
    """Fills a batch to `size`, and the places of weight 0, with its other images.

    Every batch of a shape then runs through the same compiled step, and batch
    normalization sees real images only.
    """
    weight = tf.pad(batch["weight"], [[0, size - tf.shape(batch["weight"])[0]]])
    own = tf.range(size)
    readable = tf.cast(tf.where(weight > 0)[:, 0], tf.int32)
    if_none = tf.zeros([1], tf.int32)
    donors = tf.cond(tf.size(readable) > 0, lambda: readable, lambda: if_none)
    places = tf.where(weight > 0, own, tf.gather(donors, own % tf.size(donors)))
    ids = tf.concat([batch["id"], tf.fill([size - tf.size(batch["id"])], "")], axis=0)
    return {
        "image": tf.gather(batch["image"], places),
        "label": tf.gather(batch["label"], places),
        "weight": weight,
        "id": ids,
    }


def shuffle_seed(config, epoch: int) -> int:
    """Returns the seed of the order in which an epoch's examples come."""
    sequence = np.random.SeedSequence((config.seed, epoch))
    return int(sequence.generate_state(1)[0] >> 1)


def train_batches(
    source: Source, config, schedule: list[BatchShape], epoch: int, first_step: int = 0
) -> tf.data.Dataset:
    """Makes an epoch's training batches, each of the scheduled shape.

    Args:
        source: where the images come from.
        config: a `TrainConfig`; its `seed`, `crop_scale` and `flip` are used.
        schedule: the epoch's batch shapes, in order; see `train.sampler`.
        epoch: counted from 0; another epoch, another order and other crops.
        first_step: of the schedule, to continue an epoch: its batches are those that
            the whole epoch has there, and nothing before them is decoded.

    Returns:
        A `tf.data.Dataset` of one batch for each entry of the schedule from there on:

        - `image`: uint8 `[batch, height, width, 3]`
        - `label`: int32 `[batch]`
        - `weight`: float32 `[batch]`, 0 for what fills a place and must not count
        - `id`: string `[batch]`, the example whose place it is, empty beyond the last
    """
    count = source.num_examples["train"]
    sizes = tf.constant([shape[:2] for shape in schedule], tf.int32)
    batches = tf.constant([shape.batch for shape in schedule], tf.int64)
    # The place of an example in the epoch settles its step, and so its size.
    steps = np.repeat(np.arange(len(schedule)), batches)[:count]
    first = sum(shape.batch for shape in schedule[:first_step])

    def with_place(example, step, place):
        return {**example, "step": step, "place": place}

    def load(example):
        place = tf.cast(example["place"], tf.int32)
        seed = tf.stack([config.seed * 1_000_003 + epoch, place])
        size = sizes[example["step"]]
        return _train_image(example, size, seed, config.crop_scale, config.flip)

    examples = tf.data.Dataset.zip(
        source.examples("train", shuffle_seed(config, epoch)).skip(first),
        tf.data.Dataset.from_tensor_slices(steps[first:]),
        tf.data.Dataset.range(first, count),
    ).map(with_place)
    decoded = _decode_all(examples, load, lambda example: sizes[example["step"]])
    steps_left = tf.data.Dataset.from_tensor_slices(steps[first:])
    dataset = tf.data.Dataset.zip(decoded, steps_left)
    dataset = dataset.group_by_window(
        key_func=lambda example, step: step,
        reduce_func=lambda step, window: window.map(lambda e, _: e).batch(
            batches[step]
        ),
        window_size_func=lambda step: batches[step],
    )
    whole = tf.cast(batches[first_step:], tf.int32)
    whole = tf.data.Dataset.from_tensor_slices(whole)
    return tf.data.Dataset.zip(dataset, whole).map(_fill).prefetch(2)


def eval_batches(
    source: Source, split: str, size: int, batch_size: int, crop_fraction: float
) -> tf.data.Dataset:
    """Makes the batches of an evaluation: every example once, in the stored order.

    Args:
        source: where the images come from.
        split: `"train"` or `"validation"`.
        size: side of the images in pixels.
        batch_size: images in a batch; the last is filled as in `train_batches`.
        crop_fraction: see `keras_mobilevit.preprocessing.resize_and_center_crop`.

    Returns:
        A `tf.data.Dataset` of the dicts that `train_batches` describes.
    """
    dataset = _decode_all(
        source.examples(split, None),
        lambda example: _eval_image(example, size, crop_fraction),
        lambda example: tf.constant([size, size]),
    )
    return dataset.batch(batch_size).map(lambda b: _fill(b, batch_size)).prefetch(2)


def unreadable(batch) -> list[str]:
    """Names the examples of a batch that could not be read: paths for a folder."""
    ids, weights = batch["id"].numpy(), batch["weight"].numpy()
    return [name.decode() for name, weight in zip(ids, weights) if name and not weight]
