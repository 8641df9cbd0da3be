"""Every kind of data source, one row each, and the function that opens a source.

To add a kind, write its reader in a file of its own and add one row to `SOURCE_KINDS`.
Readers are named, not imported: they load TensorFlow, and `--help` must not.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.data.source import Source


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """The reader of one kind of source for one task.

    The reader takes the text after the colon of `--data` and whether to keep the
    encoded images in memory, and returns a `train.data.source.Source`.
    """

    reader: str  # "module:function"
    argument: str  # what follows the kind and a colon: PATH, NAME, or nothing
    help: str
    recipe: str  # the default, see `train.recipes`


SOURCE_KINDS: dict[tuple[str, str], SourceKind] = {
    ("classification", "digits"): SourceKind(
        "train.data.digits:digits_source",
        "",
        "scikit-learn's handwritten digits, no download",
        "digits",
    ),
    ("classification", "folder"): SourceKind(
        "train.data.folder:folder_source",
        "PATH",
        "PATH/<class>/*, of which 20 % validate; or PATH/train/<class>/* and "
        "PATH/validation/<class>/*, also called val or valid",
        "folder_small",
    ),
    ("classification", "tfds"): SourceKind(
        "train.data.tfds:label_source", "NAME", "TensorFlow Datasets", "imagenet"
    ),
    ("detection", "digits"): SourceKind(
        "train.data.digits:box_scene_source", "", "scenes of digits", "digits_detection"
    ),
    ("detection", "voc"): SourceKind(
        "train.data.voc.boxes:voc_box_source",
        "PATH",
        "PATH/Annotations/*.xml, JPEGImages, ImageSets/Main/train.txt and val.txt",
        "voc_detection_small",
    ),
    ("detection", "coco"): SourceKind(
        "train.data.coco.boxes:coco_source",
        "PATH",
        "PATH/annotations/instances_train*.json and instances_val*.json, and the "
        "images in PATH/train*, PATH/val*; or, as Roboflow writes it, "
        "_annotations.coco.json beside the images in PATH/train and PATH/valid",
        "coco",
    ),
    ("detection", "tfds"): SourceKind(
        "train.data.tfds:box_source", "NAME", "TensorFlow Datasets", "coco"
    ),
    ("segmentation", "digits"): SourceKind(
        "train.data.digits:mask_scene_source",
        "",
        "scenes of digits",
        "digits_segmentation",
    ),
    ("segmentation", "voc"): SourceKind(
        "train.data.voc.masks:voc_mask_source",
        "PATH",
        "PATH/JPEGImages, SegmentationClass/*.png, ImageSets/Segmentation/train.txt "
        "and val.txt, and classes.txt, the names",
        "voc_segmentation_small",
    ),
}


def load_source(task: str, name: str, cache: bool = False) -> Source:
    """Opens a data source; with `cache`, encoded images of a folder stay in memory.

    Raises:
        ValueError: if the task has no such source, or its data cannot be trained on.
    """
    kind = find_kind(task, name)
    module, _, function = kind.reader.partition(":")
    reader = getattr(importlib.import_module(module), function)
    return reader(name.partition(":")[2], cache)


def find_kind(task: str, name: str) -> SourceKind:
    """Returns the row of a source; a ValueError lists the kinds if there is none."""
    kind, _, argument = name.partition(":")
    tasks = dict.fromkeys(name for name, _ in SOURCE_KINDS)
    if task not in tasks:
        raise ValueError(f"Unknown task {task!r}. Expected one of: {', '.join(tasks)}.")
    row = SOURCE_KINDS.get((task, kind))
    if row is None or bool(row.argument) != bool(argument):
        forms = [f"`{form}`" for form in _rows(task)]
        raise ValueError(
            f"Unknown data {name!r}. {task.capitalize()} takes "
            f"{' or '.join(filter(None, [', '.join(forms[:-1]), forms[-1]]))}."
        )
    return row


def is_path_kind(kind: str) -> bool:
    """Tells whether the argument of a kind is a path."""
    rows = (row for (_, name), row in SOURCE_KINDS.items() if name == kind)
    return any(row.argument == "PATH" for row in rows)


def describe_kinds() -> str:
    """Describes all kinds of all tasks, for `--help`."""
    sentences = []
    for task in dict.fromkeys(task for task, _ in SOURCE_KINDS):
        kinds = [f"`{form}` ({row.help})" for form, row in _rows(task).items()]
        sentences.append(f"{task.capitalize()}: {', '.join(kinds)}.")
    return " ".join(sentences)


def _rows(task: str) -> dict[str, SourceKind]:
    """Returns a task's rows by the form of `--data`: `digits`, `folder:PATH`..."""
    return {
        f"{kind}:{row.argument}" if row.argument else kind: row
        for (name, kind), row in SOURCE_KINDS.items()
        if name == task
    }
