"""Data sets of TensorFlow Datasets, with labels or with boxes.

A data set is downloaded when it is first used. Its files can only be read in order, so
a source is a stream, shuffled through a buffer.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from train.data import images
from train.data.plan import MAX_OBJECTS
from train.data.source import SPLITS, Source, refuse_one_class

SHUFFLE_BUFFER = 16_384  # encoded images held to shuffle a stream


def label_source(argument: str, cache: bool = False) -> Source:
    """Opens a classification data set; images stay encoded until they are cropped."""
    builder = _builder(argument)
    features = dict(builder.info.features or {})
    names = getattr(features.get("label"), "names", None)
    if names is None or "image" not in features:
        raise ValueError(
            f"tfds:{argument} has no features `image` and `label` with named classes. "
            f"It has: {', '.join(features)}."
        )
    refuse_one_class(f"tfds:{argument}", names, "the names of its feature `label`")
    return _stream(argument, builder, names, _labeled_example)


def box_source(argument: str, cache: bool = False) -> Source:
    """Opens a detection data set, such as `coco/2017` or `voc`."""
    builder = _builder(argument)
    features = dict(builder.info.features or {})
    # The feature of a sequence has keys; the sequence itself has not.
    objects = getattr(features.get("objects"), "feature", {})
    names = getattr(objects["label"], "names", None) if "label" in objects else None
    if "image" not in features or "bbox" not in objects or names is None:
        raise ValueError(
            f"tfds:{argument} has no features `image` and `objects` with `bbox` and "
            f"named classes in `label`. It has: {', '.join(features)}."
        )
    return _stream(argument, builder, names, _boxed_example)


def _builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder(name)


def _stream(
    name: str,
    builder: Any,
    class_names: Sequence[str],
    to_example: Callable[[dict], dict],
) -> Source:
    """Downloads a data set and makes the source of its two splits.

    `to_example` makes an example of the source from one of the data set.
    """
    import tensorflow_datasets as tfds

    builder.download_and_prepare()
    available = builder.info.splits
    held_out = next((s for s in ("validation", "test") if s in available), None)
    if "train" not in available or held_out is None:
        raise ValueError(
            f"tfds:{name} needs the splits `train` and `validation` or `test`. "
            f"It has: {', '.join(available)}."
        )
    splits = dict(zip(SPLITS, ("train", held_out)))
    ids = {split: _ExampleIds.of(available[splits[split]]) for split in SPLITS}

    def stream(split: str, seed: int | None) -> tf.data.Dataset:
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
                **to_example(example),
                "index": ids[split].index(example["tfds_id"]),
            }
        )

    def stream_name(split: str, index: int) -> str:
        return ids[split].name(index)

    num_examples = {split: available[splits[split]].num_examples for split in SPLITS}
    return Source(
        f"tfds:{name}",
        tuple(class_names),
        num_examples,
        stream=stream,
        stream_name=stream_name,
    )


@dataclasses.dataclass(frozen=True)
class _ExampleIds:
    """The ids of a split's examples, `FILE__ROW`, numbered file by file."""

    files: tuple[str, ...]
    starts: np.ndarray  # [files], the number of the first example of each

    @classmethod
    def of(cls, split: Any) -> "_ExampleIds":
        """Returns the ids of a split of TensorFlow Datasets."""
        files = split.file_instructions
        counts = [file.examples_in_shard for file in files]
        starts = np.cumsum([0, *counts[:-1]], dtype=np.int64)
        return cls(tuple(os.path.basename(file.filename) for file in files), starts)

    def index(self, example_id: tf.Tensor) -> tf.Tensor:
        """Returns the number of an example, int64."""
        file = tf.strings.regex_replace(example_id, "__[0-9]+$", "")
        row = tf.strings.regex_replace(example_id, "^.*__", "")
        is_file = tf.equal(self.files, file)
        start = tf.gather(self.starts, tf.argmax(is_file))
        index = start + tf.strings.to_number(row, tf.int64)
        return tf.where(tf.reduce_any(is_file), index, -1)  # -1 has no name

    def name(self, index: int) -> str:
        """Returns the id of the example with a number."""
        file = int(np.searchsorted(self.starts, index, side="right")) - 1
        return f"{self.files[file]}__{index - self.starts[file]}"


def _labeled_example(example: dict) -> dict:
    return {
        "encoded": example["image"],
        "label": tf.cast(example["label"], tf.int32),
    }


def _boxed_example(example: dict) -> dict:
    """Renames the columns and drops boxes without area, of which COCO has a few."""
    objects = example["objects"]
    y1, x1, y2, x2 = tf.unstack(objects["bbox"], axis=1)
    areas = (x2 - x1) * (y2 - y1)
    is_ignored = tf.zeros_like(areas, tf.bool)
    if "area" in objects:  # COCO's: of the mask, in pixels
        sides = tf.cast(_image_size(example["image"]), tf.float32)
        mask_areas = tf.cast(objects["area"], tf.float32) / tf.reduce_prod(sides)
        areas = tf.where(mask_areas > 0, mask_areas, areas)
    if "is_crowd" in objects:
        is_ignored = objects["is_crowd"]
    elif "is_difficult" in objects:
        is_ignored = objects["is_difficult"]
        areas = tf.where(is_ignored, np.inf, areas)
    columns = {
        "boxes": tf.stack([x1, y1, x2, y2], axis=1),  # [objects, 4]
        "classes": tf.cast(objects["label"], tf.int32),
        "is_crowd": is_ignored,
        "areas": areas,
    }
    has_area = (x2 > x1) & (y2 > y1)
    kept = {name: tf.boolean_mask(x, has_area) for name, x in columns.items()}
    # An image without content is skipped, counted and named, as one that is damaged.
    has_too_many = tf.shape(kept["boxes"])[0] > MAX_OBJECTS
    return {
        "encoded": tf.where(has_too_many, "", example["image"]),
        **{name: values[:MAX_OBJECTS] for name, values in kept.items()},
    }


def _image_size(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the height and width of an image; 1, 1 if it cannot be read.

    The pipeline skips an unreadable image later.
    """
    sizes = tf.data.Dataset.from_tensors(encoded).map(
        lambda content: images.open_picture(content).size
    )
    sizes = sizes.ignore_errors().concatenate(tf.data.Dataset.from_tensors([1, 1]))
    return sizes.take(1).get_single_element()
