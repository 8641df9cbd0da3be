"""A data set as the pipeline sees it, and what the readers of all kinds share."""

import dataclasses
import filecmp
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from keras_mobilevit.image_files import SUFFIXES

SPLITS = ("train", "validation")
IMAGE_SUFFIXES = SUFFIXES
# Systems and tools put these beside data, besides hidden files.
IGNORED_FILES = frozenset(
    "__MACOSX @eaDir #recycle $RECYCLE.BIN __pycache__ lost+found "
    "Thumbs.db desktop.ini".split()
)
# One value for each example; a ragged column has as many values as an example has.
Columns = Mapping[str, tf.Tensor | tf.RaggedTensor]


@dataclasses.dataclass(frozen=True)
class Source:
    """A set of images with targets in two splits.

    An example is a dict: `encoded` or `path`, `index`, and the task's targets; for
    classification `label`. It is read either from `columns`, in any order, or from a
    `stream`, in the order of the stream. Its int64 `index` in the split stands for its
    name in batches, since accelerators take no strings; `name_of` looks the name up.
    For columns it is the row, and the column `id`, also in the examples, has the names.
    """

    name: str  # as given to `train.data.registry.load_source`
    class_names: tuple[str, ...]  # in the order of the labels
    num_examples: dict[str, int]  # by split
    # Takes a split and a seed, or `None` for the stored order; returns examples.
    stream: Callable[[str, int | None], tf.data.Dataset] | None = None
    columns: Mapping[str, Columns] | None = None  # by split, in the stored order
    # Takes a split and the `index` of one of the stream's examples; returns its name.
    stream_name: Callable[[str, int], str] | None = None

    def examples(self, split: str, seed: int | None) -> tf.data.Dataset:
        """Returns the examples of a split, shuffled by a seed or as stored."""
        if self.stream is not None:
            return self.stream(split, seed)
        if self.columns is None:
            raise ValueError(f"The source {self.name} has no examples.")
        columns = self.columns[split]
        order = example_order(self.num_examples[split], seed)
        return tf.data.Dataset.from_tensor_slices(order).map(
            lambda index: {**read_row(columns, index), "index": index}
        )

    def name_of(self, split: str, index: int) -> str:
        """Returns the name of an example for messages; the path of a file."""
        if self.stream_name is not None:
            return self.stream_name(split, index)
        if self.columns is None:
            raise ValueError(f"The source {self.name} has no names of examples.")
        return os.fsdecode(self.columns[split]["id"][index].numpy())


def indexed_source(
    name: str, class_names: Sequence[str], columns: Mapping[str, Mapping[str, Any]]
) -> Source:
    """Makes a source, read in any order, of `{split: {key: values}}`."""
    tensors = {
        split: {
            key: x if isinstance(x, tf.RaggedTensor) else _to_tensor(x)
            for key, x in column.items()
        }
        for split, column in columns.items()
    }
    num_examples = {split: len(column["id"]) for split, column in columns.items()}
    return Source(name, tuple(class_names), num_examples, columns=tensors)


def _to_tensor(values: Any) -> tf.Tensor:
    """Makes a tensor; texts become the bytes that the system has for file names.

    These need not be UTF-8: on Linux a name may have any bytes.
    """
    if isinstance(values, list) and isinstance(next(iter(values), None), str):
        values = [os.fsencode(value) for value in values]
    return tf.constant(values)


def example_order(count: int, seed: int | None) -> np.ndarray:
    """Returns the order in which examples come: stored, or shuffled by a seed."""
    order = np.arange(count)
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    return order


def read_row(columns: Columns, index) -> dict[str, tf.Tensor]:
    """Returns the example at an index of the stored order."""
    return {key: _read_value(values, index) for key, values in columns.items()}


def _read_value(values: tf.Tensor | tf.RaggedTensor, index) -> tf.Tensor:
    if not isinstance(values, tf.RaggedTensor):
        return values[index]
    # `values[index]` of a ragged tensor takes several times as long.
    start, end = values.row_splits[index], values.row_splits[index + 1]
    return values.values[start:end]


def evenly_spaced(source: Source, split: str, count: int) -> Source:
    """Returns a source of about `count` examples, evenly spaced over a split.

    Sources store one class after the other, so the first examples would all have the
    same class.
    """
    step = max(1, source.num_examples[split] // count)
    if source.columns is not None:
        rows = {key: values[::step] for key, values in source.columns[split].items()}
        return indexed_source(source.name, source.class_names, {split: rows})

    def stream(name: str, seed: int | None) -> tf.data.Dataset:
        return source.examples(name, seed).shard(step, 0)

    num_examples = {split: -(-source.num_examples[split] // step)}
    return dataclasses.replace(source, num_examples=num_examples, stream=stream)


def is_ignored_file(name: str) -> bool:
    """Tells whether a file or folder is hidden or was left by a system or tool."""
    return name.startswith(".") or name in IGNORED_FILES


def join_names(names: Sequence[str], at_most: int = 10) -> str:
    """Joins names for a message: the first ones, and how many more there are."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def image_columns(
    name: str, paths: Mapping[str, Sequence[str]], cache: bool
) -> dict[str, dict[str, Any]]:
    """Makes the columns of images by split: `id`, and `path` or with `cache` `encoded`.

    Warns of images in both splits of the source `name`.
    """
    _warn_of_shared_images(name, paths)
    return {
        split: {"id": files}
        | ({"encoded": _read_files(files, split)} if cache else {"path": files})
        for split, files in paths.items()
    }


def _read_files(paths: Sequence[str], split: str) -> list[bytes]:
    """Reads files; an unreadable file becomes empty, so that the pipeline skips it."""
    contents = []
    for path in tqdm(paths, f"reading {split}", unit="img", disable=None, leave=False):
        try:
            contents.append(Path(path).read_bytes())
        except OSError:
            contents.append(b"")
    return contents


def refuse_one_class(name: str, class_names: Sequence[str], where: str) -> None:
    """Raises a ValueError for a single class; `where` says where classes belong."""
    if len(class_names) < 2:
        raise ValueError(
            f"{name} has only one class, {join_names(class_names)}: a classifier would "
            f"give the same answer for every image. Expected two or more, as {where}."
        )


def refuse_other_classes(
    where: str, train: Iterable[str], validation: Iterable[str]
) -> None:
    """Raises a ValueError if the splits have different classes."""
    first, second = set(train), set(validation)
    if first != second:
        raise ValueError(
            f"The splits of {where} have different classes. Only in train: "
            f"{join_names(sorted(first - second)) or 'none'}. Only in validation: "
            f"{join_names(sorted(second - first)) or 'none'}. Write the same names in "
            "both."
        )


def warn_of_missing_classes(
    name: str, class_names: Sequence[str], learned: Container[int], problem: str
) -> None:
    """Warns of classes that cannot be learned; `problem` is for the message."""
    missing = [n for label, n in enumerate(class_names) if label not in learned]
    if missing:
        logging.warning(
            "%s: %d of %d classes %s, so the model will not find them: %s.",
            name,
            len(missing),
            len(class_names),
            problem,
            join_names(missing),
        )


def warn_of_similar_names(names: Sequence[str], where: str) -> None:
    """Warns of class names in `where` that differ only in case or spaces."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            logging.warning(
                "%s has the classes %s, whose names differ only in case or spaces. "
                "They count as different classes. If they are one class, give them "
                "one name.",
                where,
                ", ".join(map(repr, group)),
            )


def _warn_of_shared_images(name: str, paths: Mapping[str, Sequence[str]]) -> None:
    """Warns of images in both splits, which make the validation score too high.

    Only files with the same name are compared.
    """
    train, validation = (paths[split] for split in SPLITS)
    by_name: dict[str, list[str]] = {}
    for path in train:
        by_name.setdefault(os.path.basename(path), []).append(path)
    shared = [
        path
        for path in validation
        if any(
            path == other or filecmp.cmp(path, other, shallow=False)
            for other in by_name.get(os.path.basename(path), ())
        )
    ]
    if shared:
        logging.warning(
            "%s: %d of %d validation images are training images, too; the first is "
            "%s. The validation score will be too high. Keep one copy of each.",
            name,
            len(shared),
            len(validation),
            shared[0],
        )
