"""Where images with boxes come from: VOC, COCO, TensorFlow Datasets, and digits.

An example has, beside `path` or `encoded` and `id`, as many objects as are on the
image: `boxes` float32 `[objects, 4]` (see `keras_mobilevit.boxes`), `classes` int32,
`is_crowd` bool and `areas` float32 `[objects]`, as fractions of the image's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from train.data import annotations, digit_scenes, images
from train.data.annotations import Objects
from train.data.coco_boxes import (
    coco_categories,
    coco_objects,
    drop_root_categories,
    read_coco,
)
from train.data.repairs import Repairs
from train.data.sources import (
    SHUFFLE_BUFFER,
    SPLITS,
    Source,
    indexed_source,
    named,
    read_files,
    warn_of_shared_images,
    warn_of_similar_names,
)
from train.data.voc_boxes import voc_objects


def load_source(name: str, cache: bool = False) -> Source:
    """Opens a data source of images with boxes.

    Args:
        name: `digits` (scenes of handwritten digits, made here), `voc:PATH`,
            `coco:PATH` or `tfds:NAME`.
        cache: keep the encoded images of a folder in memory.

    Returns:
        The `Source`.

    Raises:
        ValueError: if there is no such kind of source, or its data cannot be trained
            on; see `train.data.annotations` for what is repaired.
    """
    kind, _, argument = name.partition(":")
    if kind == "digits":
        return digits_source()
    if kind == "voc" and argument:
        return voc_source(argument, cache)
    if kind == "coco" and argument:
        return coco_source(argument, cache)
    if kind == "tfds" and argument:
        return tfds_source(argument)
    raise ValueError(
        f"Unknown data {name!r}. Detection takes `digits`, `voc:PATH`, `coco:PATH` or "
        "`tfds:NAME`."
    )


def _check_objects(name: str, splits: dict[str, list[Objects]]) -> None:
    """Refuses a split without boxes, and a training part without any to learn."""
    for split, found in splits.items():
        if not any(len(image.boxes) for image in found):
            raise ValueError(
                f"{name} has {len(found)} {split} images, and no box on any of them."
            )
    if not _counts_any(splits["train"]):
        raise ValueError(
            f"{name}: all training objects are crowds or marked as difficult, which "
            "are not learned. Expected others."
        )


def _refuse_fractions(name: str, splits: dict, repairs: Repairs) -> None:
    """Raises a ValueError if all boxes are smaller than a pixel."""
    total = sum(len(image.boxes) for found in splits.values() for image in found)
    if 0 < total <= repairs.counts[annotations.TINY]:
        raise ValueError(
            f"{name}: all {total} boxes are less than a pixel wide or high. Are they "
            "fractions of the image? Expected pixels."
        )


def _counts_any(images: list[Objects]) -> bool:
    return any((~image.is_crowd).any() for image in images)


def _tell_unsupported(name: str, class_names: Sequence[str], splits: dict) -> None:
    """Warns of classes without an object to learn, and of a useless validation."""
    train, validation = (splits[split] for split in SPLITS)
    if not _counts_any(validation):
        logging.warning(
            "%s: all validation objects are crowds or marked as difficult, which do "
            "not count. The average precision will be -1.",
            name,
        )
    learned = {label for image in train for label in image.classes[~image.is_crowd]}
    missing = [n for label, n in enumerate(class_names) if label not in learned]
    if missing:
        logging.warning(
            "%s: %d of %d classes have no training object that could be learned, and "
            "will not be found: %s.",
            name,
            len(missing),
            len(class_names),
            named(missing),
        )


def _source(
    name: str, class_names: Sequence[str], splits: dict[str, list[Objects]], column
) -> Source:
    """Makes a source of objects that are all in memory.

    Args:
        name: of the source.
        class_names: in the order of the classes.
        splits: by their names.
        column: from `Objects` to the column of images, `{"path" or "encoded": list}`.
    """
    _check_objects(name, splits)
    _tell_unsupported(name, class_names, splits)
    warn_of_similar_names(class_names, name)
    columns = {
        split: {
            **column(found),
            "id": [image.path for image in found],
            **annotations.columns(found),
        }
        for split, found in splits.items()
    }
    return indexed_source(name, class_names, columns)


def _file_source(
    name: str, class_names: Sequence[str], splits: dict[str, list[Objects]], cache: bool
) -> Source:
    """Makes a source of objects on images that are files; see `_source`."""

    def column(found: list[Objects]) -> dict:
        paths = [image.path for image in found]
        if not cache:
            return {"path": paths}
        return {"encoded": read_files(paths, name)}

    paths = {split: [image.path for image in found] for split, found in splits.items()}
    warn_of_shared_images(name, paths)
    return _source(name, class_names, splits, column)


def voc_source(path, cache: bool = False) -> Source:
    """A data set in the layout of PASCAL VOC.

    `PATH/Annotations/*.xml`, `PATH/JPEGImages/*`, `PATH/ImageSets/Main/train.txt` and
    `val.txt`. The classes are the names in the training part, sorted.

    Raises:
        ValueError: if a list is missing, there are no boxes, an annotation is not of
            its image, or the validation has a class that the training has not.
    """
    path, repairs = Path(path).expanduser(), Repairs()
    splits = {
        split: list(voc_objects(path, voc_split, repairs))
        for split, voc_split in zip(SPLITS, ("train", "val"))
    }
    repairs.log()
    _check_objects(f"voc:{path}", splits)
    _refuse_fractions(f"voc:{path}", splits, repairs)
    names = {
        split: {name for image in found for name in image.classes}
        for split, found in splits.items()
    }
    unknown = sorted(names["validation"] - names["train"])
    if unknown:
        raise ValueError(
            f"The validation part of {path} has classes that the training part has "
            f"not: {named(unknown)}. The training part has: "
            f"{named(sorted(names['train']))}. Write the same names in both, or remove "
            "these objects."
        )
    class_names = sorted(names["train"])
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {
        split: [
            image._replace(classes=np.array([labels[n] for n in image.classes], int))
            for image in found
        ]
        for split, found in splits.items()
    }
    return _file_source(f"voc:{path}", class_names, splits, cache)


_COCO_PARTS = dict(zip(SPLITS, ("train", "val")))


def _coco_file(path: Path, part: str) -> Path:
    """Finds the annotations of a part, `train` or `val`."""
    found = sorted((path / "annotations").glob(f"instances_{part}*.json"))
    if len(found) != 1:
        raise ValueError(
            f"Expected one file {path}/annotations/instances_{part}*.json. Found: "
            f"{', '.join(file.name for file in found) or 'none'}."
        )
    return found[0]


def coco_source(path, cache: bool = False) -> Source:
    """A data set in the layout of COCO.

    `PATH/annotations/instances_train*.json` and `instances_val*.json`, and the images
    in folders with the rest of these names, such as `PATH/train2017/*`.

    Raises:
        ValueError: if a file or folder is missing or is none of COCO's, or the two
            parts have different categories.
    """
    path, repairs = Path(path).expanduser(), Repairs()
    files = {split: _coco_file(path, part) for split, part in _COCO_PARTS.items()}
    contents = {file: read_coco(file) for file in files.values()}
    drop_root_categories(contents)
    categories = {
        split: coco_categories(contents[file], file, repairs)
        for split, file in files.items()
    }
    class_names = _common_names(path, categories)
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split, file in files.items():
        folder = path / file.stem.removeprefix("instances_")
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder} with the images of {file}.")
        by_id = {key: labels[name] for key, name in categories[split].items()}
        objects = coco_objects(contents[file], by_id, folder, file, repairs)
        splits[split] = list(objects)
    repairs.log()
    _refuse_fractions(f"coco:{path}", splits, repairs)
    return _file_source(f"coco:{path}", class_names, splits, cache)


def _common_names(path: Path, categories: dict[str, dict[int, str]]) -> list[str]:
    """Returns the names of the classes, in the order of their ids in training."""
    train, validation = (list(categories[split].values()) for split in SPLITS)
    if set(train) != set(validation):
        raise ValueError(
            f"The parts of {path} have different categories. Only in train: "
            f"{named(sorted(set(train) - set(validation))) or 'none'}. Only in val: "
            f"{named(sorted(set(validation) - set(train))) or 'none'}. Write the same "
            "names in both files."
        )
    if categories["train"] != categories["validation"]:
        logging.warning(
            "The categories of %s have other ids in val than in train. They are taken "
            "as the same where they have the same name.",
            path,
        )
    return train


def digits_source(counts: dict[str, int] = digit_scenes.SCENES) -> Source:
    """Scenes of scikit-learn's handwritten digits, see `train.data.digit_scenes`.

    Args:
        counts: of scenes, by split.
    """
    splits, encoded = {}, {}
    for split in counts:
        scenes = digit_scenes.make_scenes(split, counts[split])
        splits[split] = [scene.objects for scene in scenes]
        encoded |= {scene.objects.path: scene.encoded for scene in scenes}

    def column(found: list[Objects]) -> dict:
        return {"encoded": [encoded[image.path] for image in found]}

    return _source("digits", [str(digit) for digit in range(10)], splits, column)


def tfds_source(name: str) -> Source:
    """A detection data set of TensorFlow Datasets, such as `coco/2017` or `voc`.

    Its `validation` split is used, or `test` where there is none.

    Raises:
        ValueError: if it has no boxes with named classes, or no such splits.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name)
    features = builder.info.features or {}
    # A sequence of objects cannot be asked for its keys, but its feature can.
    objects = (
        getattr(features["objects"], "feature", {}) if "objects" in features else {}
    )
    if "image" not in features or not {"bbox", "label"} <= set(objects):
        raise ValueError(
            f"tfds:{name} has no features `image` and `objects` with `bbox` and "
            f"`label`. It has: {', '.join(features)}."
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
        return dataset.map(_tfds_example)

    return Source(
        f"tfds:{name}",
        tuple(objects["label"].names),
        {split: available[splits[split]].num_examples for split in SPLITS},
        examples,
    )


def _image_size(encoded):
    """Returns the height and width of an image; 1, 1 if it cannot be read.

    The loader of the batch then leaves it out.
    """
    sizes = tf.data.Dataset.from_tensors(encoded).map(images.image_size)
    sizes = sizes.ignore_errors().concatenate(tf.data.Dataset.from_tensors([1, 1]))
    return sizes.take(1).get_single_element()


def _tfds_example(example) -> dict:
    """Turns an example of TensorFlow Datasets into one of this module."""
    objects = example["objects"]
    y1, x1, y2, x2 = tf.unstack(objects["bbox"], axis=1)
    areas = (x2 - x1) * (y2 - y1)
    ignored = tf.zeros_like(areas, tf.bool)
    if "area" in objects:  # of the mask, in pixels, as COCO's
        sides = tf.cast(_image_size(example["image"]), tf.float32)
        of_mask = tf.cast(objects["area"], tf.float32) / tf.reduce_prod(sides)
        areas = tf.where(of_mask > 0, of_mask, areas)
    if "is_crowd" in objects:
        ignored = objects["is_crowd"]
    elif "is_difficult" in objects:
        ignored = objects["is_difficult"]
        areas = tf.where(ignored, np.inf, areas)
    columns = {
        "boxes": tf.stack([x1, y1, x2, y2], axis=1),
        "classes": tf.cast(objects["label"], tf.int32),
        "is_crowd": ignored,
        "areas": areas,
    }
    # Boxes without area, which COCO has a few of, are no objects.
    is_box = (x2 > x1) & (y2 > y1)
    return {
        "encoded": example["image"],
        "id": example["tfds_id"],
        **{name: tf.boolean_mask(x, is_box) for name, x in columns.items()},
    }
