"""Where images with boxes come from: VOC, COCO, TensorFlow Datasets, and digits.

An example has, beside `path` or `encoded` and `id`, as many objects as are on the
image: `boxes` float32 `[objects, 4]` (see `keras_mobilevit.boxes`), `classes` int32,
`is_crowd` bool and `areas` float32 `[objects]`, as fractions of the image's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from train import annotations, digit_scenes
from train.annotations import Objects, Repairs
from train.sources import SHUFFLE_BUFFER, SPLITS, Source, indexed_source


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
            on; see `train.annotations` for what is repaired.
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


def _refuse_no_boxes(name: str, splits: dict[str, list[Objects]]) -> None:
    """Raises a ValueError if a part has no box, before anything else is amiss of it."""
    for split, found in splits.items():
        if not any(len(image.boxes) for image in found):
            raise ValueError(
                f"{name} has {len(found)} {split} images, and no box on any of them."
            )


def _source(
    name: str, class_names: Sequence[str], splits: dict[str, list[Objects]], images
) -> Source:
    """Makes a source of objects that are all in memory.

    Args:
        name: of the source.
        class_names: in the order of the classes.
        splits: by their names.
        images: from `Objects` to the column of images, `{"path" or "encoded": list}`.
    """
    _refuse_no_boxes(name, splits)
    columns = {
        split: {
            **images(found),
            "id": [image.path for image in found],
            **annotations.columns(found),
        }
        for split, found in splits.items()
    }
    return indexed_source(name, class_names, columns)


def _files(cache: bool):
    """Returns the function from objects to the column of their images' files."""

    def images(found: list[Objects]) -> dict:
        paths = [image.path for image in found]
        if not cache:
            return {"path": paths}
        return {"encoded": [Path(path).read_bytes() for path in paths]}

    return images


def voc_source(path, cache: bool = False) -> Source:
    """A data set in the layout of PASCAL VOC.

    `PATH/Annotations/*.xml`, `PATH/JPEGImages/*`, `PATH/ImageSets/Main/train.txt` and
    `val.txt`. The classes are the names in the training part, sorted.

    Raises:
        ValueError: if a list is missing, there are no boxes, or the validation has a
            class that the training has not.
    """
    path, repairs = Path(path).expanduser(), Repairs()
    splits = {
        split: list(annotations.voc_objects(path, voc_split, repairs))
        for split, voc_split in zip(SPLITS, ("train", "val"))
    }
    repairs.log()
    _refuse_no_boxes(f"voc:{path}", splits)
    names = {
        split: {name for image in found for name in image.classes}
        for split, found in splits.items()
    }
    unknown = names["validation"] - names["train"]
    if unknown:
        raise ValueError(
            f"The validation part of {path} has classes that the training part has "
            f"not: {', '.join(sorted(unknown))}."
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
    return _source(f"voc:{path}", class_names, splits, _files(cache))


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
    splits, names = {}, {}
    for split, part in zip(SPLITS, ("train", "val")):
        file = _coco_file(path, part)
        folder = path / file.stem.removeprefix("instances_")
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder, but {file} is of its images.")
        content = annotations.read_coco(file)
        names[split] = list(annotations.coco_categories(content).items())
        objects = annotations.coco_objects(content, folder, file, repairs)
        splits[split] = list(objects)
    repairs.log()
    if names["train"] != names["validation"]:
        train, validation = (set(names[split]) for split in SPLITS)
        raise ValueError(
            f"The parts of {path} have different categories. Only in train: "
            f"{sorted(train - validation) or 'none'}. Only in val: "
            f"{sorted(validation - train) or 'none'}."
        )
    class_names = [name for _, name in names["train"]]
    return _source(f"coco:{path}", class_names, splits, _files(cache))


def digits_source(counts: dict[str, int] = digit_scenes.SCENES) -> Source:
    """Scenes of scikit-learn's handwritten digits, see `train.digit_scenes`.

    Args:
        counts: of scenes, by split.
    """
    splits, encoded = {}, {}
    for split in counts:
        scenes = digit_scenes.make_scenes(split, counts[split])
        splits[split] = [scene.objects for scene in scenes]
        encoded |= {scene.objects.path: scene.encoded for scene in scenes}

    def images(found: list[Objects]) -> dict:
        return {"encoded": [encoded[image.path] for image in found]}

    return _source("digits", [str(digit) for digit in range(10)], splits, images)


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


def _tfds_example(example) -> dict:
    """Turns an example of TensorFlow Datasets into one of this module."""
    objects = example["objects"]
    y1, x1, y2, x2 = tf.unstack(objects["bbox"], axis=1)
    areas = (x2 - x1) * (y2 - y1)
    crowds = [objects[key] for key in ("is_crowd", "is_difficult") if key in objects]
    columns = {
        "boxes": tf.stack([x1, y1, x2, y2], axis=1),
        "classes": tf.cast(objects["label"], tf.int32),
        "is_crowd": crowds[0] if crowds else tf.zeros_like(areas, tf.bool),
        "areas": areas,
    }
    # Boxes without area, which COCO has a few of, are no objects.
    is_box = (x2 > x1) & (y2 > y1)
    return {
        "encoded": example["image"],
        "id": example["tfds_id"],
        **{name: tf.boolean_mask(x, is_box) for name, x in columns.items()},
    }
