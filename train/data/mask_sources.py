"""Where images with masks come from: VOC's layout, and scenes of digits.

An example has, beside `path` or `encoded` and `id`, `mask`, a PNG in gray whose values
are the classes (see `train.data.masks`).
"""

from pathlib import Path

from absl import logging

from keras_mobilevit.class_names import VOC_NAMES
from train.data import digit_scenes
from train.data.masks import IGNORED, MaskedImage, encode_mask, voc_masks
from train.data.repairs import Repairs
from train.data.sources import (
    SPLITS,
    Source,
    indexed_source,
    named,
    read_files,
    warn_of_shared_images,
    warn_of_similar_names,
)
from train.data.voc import read_lines

MAX_UNNAMED = len(VOC_NAMES)  # classes without a list of names


def load_source(name: str, cache: bool = False) -> Source:
    """Opens a data source of images with masks.

    Args:
        name: `digits` (scenes of handwritten digits, made here) or `voc:PATH`.
        cache: keep the encoded images of a folder in memory.

    Returns:
        The `Source`.

    Raises:
        ValueError: if there is no such kind of source, or its data cannot be trained
            on; see `train.data.masks` for what is repaired.
    """
    kind, _, argument = name.partition(":")
    if kind == "digits":
        return digits_source()
    if kind == "voc" and argument:
        return voc_source(argument, cache)
    raise ValueError(
        f"Unknown data {name!r}. Segmentation takes `digits` or `voc:PATH`."
    )


def _named_classes(path: Path) -> list[str]:
    """Reads `classes.txt`, a name in a line; without the file there are none."""
    file = path / "classes.txt"
    if not file.is_file():
        return []
    names = read_lines(file)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{file} names classes twice: {', '.join(twice)}.")
    if not 1 < len(names) <= IGNORED:
        raise ValueError(
            f"{file} names {len(names)} classes. Expected 2 to {IGNORED}, a name in a "
            "line, in the order of the masks' values."
        )
    return names


def _refuse_gray_levels(path: Path, present: list[int]) -> None:
    """Raises a ValueError if values of masks do not count classes from 0.

    No list names them, so that nothing but their numbers tells: 0, 127 and 254 are
    levels of gray, and so is what JPEG leaves around them.
    """
    count = max(present) + 1
    if count <= MAX_UNNAMED and 2 * len(present) >= count:
        return
    raise ValueError(
        f"The masks of {path} have the values {named(list(map(str, present)), 20)}. "
        "Expected 0, 1, 2 and so on, a number for each class. If these are levels of "
        "gray, write masks with the numbers of the classes. If they come from JPEG, "
        "which blurs masks, make the masks anew as PNG. If they are numbers of "
        f"classes, name all from 0 to {count - 1} in {path / 'classes.txt'}, a name in "
        f"a line; only up to {MAX_UNNAMED} classes, of which masks have at least half, "
        "need no names."
    )


def _class_names(path: Path, splits: dict[str, list[MaskedImage]]) -> list[str]:
    """Returns the names of the classes: VOC's, or numbers, where no file has them."""
    train, validation = (_present(splits[split]) for split in SPLITS)
    if len(train) < 2:
        raise ValueError(
            f"The training masks of {path} have the class {train[0]} alone. Expected "
            "two or more: a background 0, and 1, 2 and so on. "
            f"{IGNORED} is for pixels that do not count; where it stands for a "
            "foreground, write 1 instead."
        )
    if names := _named_classes(path):
        return names
    _refuse_gray_levels(path, sorted({*train, *validation}))
    count = max(train) + 1
    if count == len(VOC_NAMES):
        return list(VOC_NAMES)
    return [str(label) for label in range(count)]


def _present(images: list[MaskedImage]) -> list[int]:
    """Returns the classes that masks have."""
    return sorted(frozenset().union(*(image.classes for image in images)))


def _check_classes(
    path: Path, class_names: list[str], splits: dict[str, list[MaskedImage]]
) -> None:
    """Refuses classes that have no name, and warns of those without examples."""
    for image in (image for images in splits.values() for image in images):
        highest = max(image.classes, default=0)
        if highest >= len(class_names):
            raise ValueError(
                f"{image.file} has the class {highest}, but there are "
                f"{len(class_names)}: 0 to {len(class_names) - 1}. They are the lines "
                "of classes.txt or, without that file, what the training masks have; "
                f"{IGNORED} is for pixels to ignore."
            )
    train = _present(splits["train"])
    missing = [n for label, n in enumerate(class_names) if label not in train]
    if missing:
        logging.warning(
            "voc:%s: %d of %d classes are in no training mask, and will not be found: "
            "%s.",
            path,
            len(missing),
            len(class_names),
            named(missing),
        )
    warn_of_similar_names(class_names, f"voc:{path}")


def voc_source(path, cache: bool = False) -> Source:
    """A data set in the layout of PASCAL VOC.

    `PATH/JPEGImages/*`, `PATH/SegmentationClass/*.png`, and
    `PATH/ImageSets/Segmentation/train.txt` and `val.txt`. Where there is a
    `train_aug.txt`, it lists the training images, with masks in
    `PATH/SegmentationClassAug`. `PATH/classes.txt` names the classes; without it they
    have VOC's names if there are as many, or numbers.

    Raises:
        ValueError: if a list is missing, a mask does not fit its image or has a class
            that there is none of, or the masks have levels of gray instead of classes.
    """
    path, repairs = Path(path).expanduser(), Repairs()
    splits = {
        split: voc_masks(path, voc_split, repairs)
        for split, voc_split in zip(SPLITS, ("train", "val"))
    }
    repairs.log()
    class_names = _class_names(path, splits)
    _check_classes(path, class_names, splits)
    paths = {split: [x.path for x in images] for split, images in splits.items()}
    warn_of_shared_images(f"voc:{path}", paths)
    columns = {}
    for split, images in splits.items():
        files = paths[split]
        columns[split] = {
            **({"encoded": read_files(files, split)} if cache else {"path": files}),
            "id": files,
            "mask": [image.mask for image in images],
        }
    return indexed_source(f"voc:{path}", class_names, columns)


def digits_source(counts: dict[str, int] = digit_scenes.SCENES) -> Source:
    """Scenes of scikit-learn's handwritten digits, see `train.data.digit_scenes`.

    Args:
        counts: of scenes, by split.
    """
    columns = {}
    for split, count in counts.items():
        scenes = digit_scenes.make_scenes(split, count)
        columns[split] = {
            "encoded": [scene.encoded for scene in scenes],
            "id": [scene.objects.path for scene in scenes],
            "mask": [encode_mask(scene.mask) for scene in scenes],
        }
    return indexed_source("digits", ("background", *map(str, range(10))), columns)
