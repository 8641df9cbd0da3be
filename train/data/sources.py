"""Where the images come from: a named source of encoded images with labels."""

import dataclasses
import filecmp
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from keras_mobilevit.image_files import SUFFIXES

SPLITS = ("train", "validation")
IMAGE_SUFFIXES = SUFFIXES
# What systems and tools put beside data, besides all that is hidden.
LITTER = frozenset(
    "__MACOSX @eaDir #recycle $RECYCLE.BIN __pycache__ lost+found "
    "Thumbs.db desktop.ini".split()
)
SHUFFLE_BUFFER = 16_384  # encoded images held to shuffle a stream


@dataclasses.dataclass(frozen=True)
class Source:
    """A set of images with targets in two splits.

    Attributes:
        name: as given to `load_source`.
        class_names: in the order of the labels.
        num_examples: number of images by split.
        examples: a function of a split and a seed, or `None` for the stored order, to
            a `tf.data.Dataset` of dicts: `encoded` or `path`, `id`, and the task's
            targets; for classification `label`.
    """

    name: str
    class_names: tuple[str, ...]
    num_examples: dict[str, int]
    examples: Callable[[str, int | None], tf.data.Dataset]


def load_source(name: str, cache: bool = False) -> Source:
    """Opens a data source.

    Args:
        name: `digits`, `folder:PATH` or `tfds:NAME`.
        cache: read the files of a folder once, and keep them in memory as they are.

    Returns:
        The `Source`.

    Raises:
        ValueError: if there is no such kind of source, or its data cannot be trained
            on (no images, an empty class, one class alone, splits with different
            classes).
    """
    kind, _, argument = name.partition(":")
    if kind == "digits":
        return digits_source()
    if kind == "folder" and argument:
        return folder_source(argument, cache)
    if kind == "tfds" and argument:
        return tfds_source(argument)
    raise ValueError(
        f"Unknown data {name!r}. Expected `digits`, `folder:PATH` or `tfds:NAME`."
    )


def is_litter(name: str) -> bool:
    """Says whether a file or folder is hidden, or was left there by a tool."""
    return name.startswith(".") or name in LITTER


def warn_of_similar_names(names: Sequence[str], where) -> None:
    """Warns of classes whose names differ only in case or spaces.

    Args:
        names: of the classes.
        where: they are, for the warning.
    """
    groups = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            logging.warning(
                "%s has the classes %s, whose names differ only in case or spaces. "
                "They are taken as different. If they are not, give them one name.",
                where,
                ", ".join(map(repr, group)),
            )


def warn_of_shared_images(name: str, paths: dict[str, Sequence[str]]) -> None:
    """Warns of images in both splits, which make its validation score too high.

    Args:
        name: of the source.
        paths: by split. Files are compared that have the same name.
    """
    train, validation = (paths[split] for split in SPLITS)
    by_name = {}
    for path in train:
        by_name.setdefault(os.path.basename(path), []).append(path)
    shared = [
        path
        for path in validation
        for other in by_name.get(os.path.basename(path), ())
        if path == other or filecmp.cmp(path, other, shallow=False)
    ]
    if shared:
        logging.warning(
            "%s: %d of %d validation images are training images, too; the first is "
            "%s. The validation score will be too high. Remove them from one of the "
            "two splits.",
            name,
            len(shared),
            len(validation),
            shared[0],
        )


def named(names: Sequence[str], at_most: int = 10) -> str:
    """Lists names for a message, of many the first ones."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _tensor(values):
    is_ragged = isinstance(values, tf.RaggedTensor)
    return values if is_ragged else tf.constant(values)


def _row(values, index):
    """Returns a value of a column."""
    if not isinstance(values, tf.RaggedTensor):
        return values[index]
    # `values[index]` of a ragged tensor takes several times as long.
    start, end = values.row_splits[index], values.row_splits[index + 1]
    return values.values[start:end]


def indexed_source(name, class_names, columns: dict) -> Source:
    """Makes a source of examples that are all listed.

    Args:
        name: of the source.
        class_names: in the order of the labels.
        columns: `{split: {key: values}}` with a value for each example; those of a
            `tf.RaggedTensor` are each of their own length.

    Returns:
        The `Source`.
    """
    tensors = {
        split: {key: _tensor(x) for key, x in column.items()}
        for split, column in columns.items()
    }
    num_examples = {split: len(column["id"]) for split, column in columns.items()}

    def examples(split: str, seed: int | None) -> tf.data.Dataset:
        order = np.arange(num_examples[split])
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        return tf.data.Dataset.from_tensor_slices(order).map(
            lambda i: {key: _row(values, i) for key, values in tensors[split].items()}
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
    return indexed_source("digits", map(str, range(10)), columns)


def _image_files(folder: Path, others: Counter, litter: list[str]) -> list[str]:
    """Lists the images of a class; notes what is not taken, and counts its endings."""
    files = []
    for entry in sorted(folder.iterdir()):
        if is_litter(entry.name):
            litter.append(f"{folder.name}/{entry.name}")
        elif entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES:
            files.append(str(entry))
        else:
            others["folder" if entry.is_dir() else entry.suffix or entry.name] += 1
    return files


def _class_folders(path: Path, split: str) -> dict[str, list[str]]:
    """Lists `{class: image files}` of one split."""
    folder = path / split
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder. Expected {path}/train/<class>/* and "
            f"{path}/validation/<class>/*."
        )
    others, litter, classes = Counter(), [], {}
    for child in sorted(folder.iterdir()):
        if is_litter(child.name):
            litter.append(child.name)
        elif child.is_dir():
            classes[child.name] = _image_files(child, others, litter)
        else:
            others["file outside of the class folders"] += 1
    if litter:
        logging.warning(
            "%s: left out, since they are hidden or made by a system or tool: %s.",
            folder,
            named(litter),
        )
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
    if others:
        counts = ", ".join(f"{n} {ending}" for ending, n in others.most_common())
        logging.warning(
            "%s: skipped, since only files in <class>/* that end in %s are taken: %s",
            folder,
            ", ".join(IMAGE_SUFFIXES),
            counts,
        )
    return classes


def read_files(files: list[str], split: str) -> list[bytes]:
    """Reads files; one that cannot be read is empty, and skipped as such later."""
    contents = []
    for file in tqdm(files, f"reading {split}", unit="img", disable=None, leave=False):
        try:
            contents.append(Path(file).read_bytes())
        except OSError:
            contents.append(b"")
    return contents


def folder_source(path, cache: bool = False) -> Source:
    """Images in folders named by class: `PATH/train/<class>/*`, `PATH/validation/...`.

    Args:
        path: of the folder.
        cache: read all files now, and keep them in memory as they are.

    Raises:
        ValueError: if a folder is missing, there are no images, a class is empty or
            alone, or the splits have different classes.
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
    _refuse_one_class(f"folder:{path}", class_names, f"{path}/train/<class>/*")
    warn_of_similar_names(class_names, f"folder:{path}")
    columns = {}
    paths = {split: sum(classes.values(), []) for split, classes in listing.items()}
    warn_of_shared_images(f"folder:{path}", paths)
    for split, classes in listing.items():
        files = [file for name in class_names for file in classes[name]]
        counts = [len(classes[name]) for name in class_names]
        labels = np.repeat(np.arange(len(class_names), dtype=np.int32), counts)
        images = {"encoded": read_files(files, split)} if cache else {"path": files}
        columns[split] = {**images, "label": labels, "id": files}
    return indexed_source(f"folder:{path}", class_names, columns)


def _refuse_one_class(name: str, class_names: Sequence[str], where: str) -> None:
    """Raises a ValueError if there is nothing to tell apart."""
    if len(class_names) < 2:
        raise ValueError(
            f"{name} has one class alone, {named(class_names)}: whatever a classifier "
            f"is shown, the answer would be the same. Expected two or more, as {where}."
        )


def _class_label(features, name: str):
    """Returns the feature `label`, which names the classes."""
    features = features or {}
    label = features["label"] if "label" in features else None
    if not hasattr(label, "names") or "image" not in features:
        raise ValueError(
            f"tfds:{name} has no features `image` and `label` with named classes. "
            f"It has: {', '.join(features)}."
        )
    return label


def tfds_source(name: str) -> Source:
    """A classification data set of TensorFlow Datasets, downloaded when first used.

    Its `validation` split is used, or `test` where there is none. Images stay encoded
    until they are cropped.

    Raises:
        ValueError: if the data set has no images and labels, or no such splits.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name)
    label = _class_label(builder.info.features, name)
    _refuse_one_class(f"tfds:{name}", label.names, "the names of its feature `label`")
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


def evenly_spaced(source: Source, split: str, count: int) -> Source:
    """Returns a source of about `count` examples from all over a split.

    Stored orders go class by class, so the first examples would be of one class.
    """
    step = max(1, source.num_examples[split] // count)
    chosen = -(-source.num_examples[split] // step)

    def examples(name: str, seed: int | None) -> tf.data.Dataset:
        return source.examples(name, seed).shard(step, 0)

    num_examples = {split: chosen}
    return dataclasses.replace(source, num_examples=num_examples, examples=examples)
