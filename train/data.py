"""From a named data source to batches: decode, augment, batch as scheduled.

    source -> examples -> decode, crop and resize to the scheduled size -> batch

An example is a dict of an image file's bytes (or its path), a label and an id. An
image that cannot be decoded never stops a run: its place in the batch is filled with
another image of weight 0, and `unreadable` names it afterwards.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mobilevit.preprocessing import resize_and_center_crop
from train import augment
from train.sampler import BatchShape

SPLITS = ("train", "validation")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
SHUFFLE_BUFFER = 16_384  # encoded images held to shuffle a stream
AUTOTUNE = tf.data.AUTOTUNE


@dataclasses.dataclass(frozen=True)
class Source:
    """A labelled set of images in two splits.

    Attributes:
        name: as given to `load_source`.
        class_names: in the order of the labels.
        num_examples: number of images by split.
        examples: a function of a split and a seed, or `None` for the stored order, to
            a `tf.data.Dataset` of `{"encoded" or "path", "label", "id"}`.
    """

    name: str
    class_names: tuple[str, ...]
    num_examples: dict[str, int]
    examples: Callable[[str, int | None], tf.data.Dataset]


def load_source(name: str) -> Source:
    """Opens a data source.

    Args:
        name: `digits`, `folder:PATH` or `tfds:NAME`.

    Returns:
        The `Source`.

    Raises:
        ValueError: if there is no such kind of source, or its data cannot be trained
            on (no images, an empty class, splits with different classes).
    """
    kind, _, argument = name.partition(":")
    if kind == "digits":
        return digits_source()
    if kind == "folder" and argument:
        return folder_source(argument)
    if kind == "tfds" and argument:
        return tfds_source(argument)
    raise ValueError(
        f"Unknown data {name!r}. Expected `digits`, `folder:PATH` or `tfds:NAME`."
    )


def _indexed_source(name, class_names, columns: dict) -> Source:
    """Makes a source of examples that are all listed: `{split: {key: values}}`."""
    tensors = {
        split: {key: tf.constant(values) for key, values in column.items()}
        for split, column in columns.items()
    }
    num_examples = {split: len(column["label"]) for split, column in columns.items()}

    def examples(split: str, seed: int | None) -> tf.data.Dataset:
        order = np.arange(num_examples[split])
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        return tf.data.Dataset.from_tensor_slices(order).map(
            lambda i: {key: values[i] for key, values in tensors[split].items()}
        )

    return Source(name, tuple(class_names), num_examples, examples)


def digits_source() -> Source:
    """scikit-learn's 1,797 handwritten digits, a fifth of each class held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    encoded = [tf.io.encode_png(image[..., None]).numpy() for image in images]
    ids = np.arange(len(images))
    columns = {}
    parts = train_test_split(ids, test_size=0.2, random_state=0, stratify=digits.target)
    for split, indices in zip(SPLITS, parts):
        columns[split] = {
            "encoded": [encoded[i] for i in indices],
            "label": digits.target[indices].astype(np.int32),
            "id": [f"digits/{i}" for i in indices],
        }
    return _indexed_source("digits", map(str, range(10)), columns)


def _class_folders(path: Path, split: str) -> dict[str, list[str]]:
    """Lists `{class: image files}` of one split."""
    folder = path / split
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder. Expected {path}/train/<class>/* and "
            f"{path}/validation/<class>/*."
        )
    classes = {
        child.name: sorted(
            str(file)
            for file in child.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES
        )
        for child in sorted(folder.iterdir())
        if child.is_dir()
    }
    if not any(classes.values()):
        raise ValueError(
            f"No images in {folder}. Expected {folder}/<class>/* with one of the "
            f"endings {', '.join(IMAGE_SUFFIXES)}."
        )
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise ValueError(
            f"Class folders without images in {folder}: {', '.join(empty)}. Remove "
            "them or add images."
        )
    return classes


def folder_source(path) -> Source:
    """Images in folders named by class: `PATH/train/<class>/*`, `PATH/validation/...`.

    Raises:
        ValueError: if a folder is missing, there are no images, a class is empty, or
            the splits have different classes.
    """
    path = Path(path).expanduser()
    listing = {split: _class_folders(path, split) for split in SPLITS}
    train, validation = (set(listing[split]) for split in SPLITS)
    if train != validation:
        raise ValueError(
            f"The splits of {path} have different classes. Only in train: "
            f"{', '.join(sorted(train - validation)) or 'none'}. Only in validation: "
            f"{', '.join(sorted(validation - train)) or 'none'}."
        )
    class_names = sorted(train)
    columns = {}
    for split, classes in listing.items():
        files = [file for name in class_names for file in classes[name]]
        counts = [len(classes[name]) for name in class_names]
        labels = np.repeat(np.arange(len(class_names), dtype=np.int32), counts)
        columns[split] = {"path": files, "label": labels, "id": files}
    return _indexed_source(f"folder:{path}", class_names, columns)


def tfds_source(name: str) -> Source:
    """A classification data set of TensorFlow Datasets, downloaded when first used.

    Its `validation` split is used, or `test` where there is none. Images stay encoded
    until they are cropped.

    Raises:
        ValueError: if the data set has no images and labels, or no such splits.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name)
    features = builder.info.features
    named = features or {}
    label = named["label"] if "label" in named else None
    if not hasattr(label, "names") or "image" not in named:
        raise ValueError(
            f"tfds:{name} has no features `image` and `label` with named classes. "
            f"It has: {', '.join(features or ())}."
        )
    builder.download_and_prepare()
    available = builder.info.splits
    held_out = next((s for s in ("validation", "test") if s in available), None)
    if "train" not in available or held_out is None:
        raise ValueError(
            f"tfds:{name} needs the splits `train` and `validation` or `test`. "
            f"It has: {', '.join(available)}."
        )
    splits = dict(zip(SPLITS, ("train", held_out)))

    def examples(split: str, seed: int | None) -> tf.data.Dataset:
        dataset = builder.as_dataset(
            split=splits[split],
            decoders={"image": tfds.decode.SkipDecoding()},
            shuffle_files=seed is not None,
            read_config=tfds.ReadConfig(shuffle_seed=seed, add_tfds_id=True),
        )
        if seed is not None:
            dataset = dataset.shuffle(SHUFFLE_BUFFER, seed=seed)
        return dataset.map(
            lambda example: {
                "encoded": example["image"],
                "label": tf.cast(example["label"], tf.int32),
                "id": example["tfds_id"],
            }
        )

    return Source(
        f"tfds:{name}",
        tuple(label.names),
        {split: available[splits[split]].num_examples for split in SPLITS},
        examples,
    )


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


def _fill(batch, size: int):
    """Fills a batch that lacks examples by repeating those it has, with weight 0.

    Every batch of a shape then runs through the same compiled step, and batch
    normalization sees real images only.
    """
    count = tf.shape(batch["label"])[0]
    batch["weight"] = tf.ones([count])

    def repeat():
        indices = tf.range(size) % count
        filled = {key: tf.gather(values, indices) for key, values in batch.items()}
        filled["weight"] = tf.cast(tf.range(size) < count, tf.float32)
        return filled

    return tf.cond(count < size, repeat, lambda: batch)


def shuffle_seed(config, epoch: int) -> int:
    """Returns the seed of the order in which an epoch's examples come."""
    sequence = np.random.SeedSequence((config.seed, epoch))
    return int(sequence.generate_state(1)[0] >> 1)


def train_batches(
    source: Source, config, schedule: list[BatchShape], epoch: int
) -> tf.data.Dataset:
    """Makes an epoch's training batches, each of the scheduled shape.

    Args:
        source: where the images come from.
        config: a `TrainConfig`; its `seed`, `crop_scale` and `flip` are used.
        schedule: the epoch's batch shapes, in order; see `train.sampler`.
        epoch: counted from 0; another epoch, another order and other crops.

    Returns:
        A `tf.data.Dataset` of as many batches as the schedule has:

        - `image`: uint8 `[batch, height, width, 3]`
        - `label`: int32 `[batch]`
        - `weight`: float32 `[batch]`, 0 for what fills a batch and must not count
        - `place`: int64 `[batch]`, the examples' places in the epoch

        A batch that lacks an unreadable image comes at the end of the epoch.
    """
    sizes = tf.constant([shape[:2] for shape in schedule], tf.int32)
    batches = tf.constant([shape.batch for shape in schedule], tf.int64)
    # The place of an example in the epoch settles its step, and so its size.
    steps = np.repeat(np.arange(len(schedule)), batches)

    def load(example, step, place):
        seed = tf.stack([config.seed * 1_000_003 + epoch, tf.cast(place, tf.int32)])
        image = _train_image(example, sizes[step], seed, config.crop_scale, config.flip)
        return {"image": image, "label": example["label"], "place": place, "step": step}

    def batch_of(step, window):
        window = window.map(
            lambda example: {k: example[k] for k in example if k != "step"}
        )
        size = batches[step]
        return window.batch(size).map(lambda b: _fill(b, tf.cast(size, tf.int32)))

    dataset = tf.data.Dataset.zip(
        source.examples("train", shuffle_seed(config, epoch)),
        tf.data.Dataset.from_tensor_slices(steps[: source.num_examples["train"]]),
        tf.data.Dataset.range(source.num_examples["train"]),
    )
    dataset = dataset.map(load, num_parallel_calls=AUTOTUNE, deterministic=True)
    # A window that lacks an example is given out at the end of the data.
    dataset = dataset.ignore_errors().group_by_window(
        key_func=lambda example: example["step"],
        reduce_func=batch_of,
        window_size_func=lambda step: batches[step],
    )
    return dataset.prefetch(2)


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

    def load(place, example):
        image = _eval_image(example, size, crop_fraction)
        return {"image": image, "label": example["label"], "place": place}

    dataset = source.examples(split, None).enumerate()
    dataset = dataset.map(load, num_parallel_calls=AUTOTUNE, deterministic=True)
    dataset = dataset.ignore_errors().batch(batch_size)
    return dataset.map(lambda batch: _fill(batch, batch_size)).prefetch(2)


def unreadable(source: Source, split: str, seen: set, seed: int | None) -> list[str]:
    """Names the examples that no batch of an epoch held, because decoding failed.

    Args:
        source: where the images come from.
        split: `"train"` or `"validation"`.
        seen: the places that the batches held with a weight above 0.
        seed: of the order: `None` for an evaluation's.

    Returns:
        Their ids: paths for a folder.
    """
    if len(seen) == source.num_examples[split]:
        return []
    examples = source.examples(split, seed).enumerate()
    return [
        example["id"].numpy().decode()
        for place, example in examples
        if int(place) not in seen
    ]
