"""Where images with masks come from: VOC's layout, and scenes of digits.

An example has, beside `path` or `encoded` and `id`, `mask`, a PNG in gray whose values
are the classes (see `train.masks`).
"""

from pathlib import Path

from keras_mobilevit.voc_names import VOC_NAMES
from train import digit_scenes
from train.annotations import Repairs, read_lines
from train.masks import IGNORED, MaskedImage, encode_mask, voc_masks
from train.sources import SPLITS, Source, indexed_source


def load_source(name: str, cache: bool = False) -> Source:
    """Opens a data source of images with masks.

    Args:
        name: `digits` (scenes of handwritten digits, made here) or `voc:PATH`.
        cache: keep the encoded images of a folder in memory.

    Returns:
        The `Source`.

    Raises:
        ValueError: if there is no such kind of source, or its data cannot be trained
            on; see `train.masks` for what is repaired.
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
    names = [line.strip() for line in read_lines(file) if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{file} names classes twice: {', '.join(twice)}.")
    if not 1 < len(names) <= IGNORED:
        raise ValueError(
            f"{file} names {len(names)} classes. Expected 2 to {IGNORED}, a name in a "
            "line, in the order of the masks' values."
        )
    return names


def _class_names(path: Path, train: list[MaskedImage]) -> list[str]:
    """Returns the names of the classes: VOC's, or numbers, where no file has them."""
    if names := _named_classes(path):
        return names
    count = max(image.highest for image in train) + 1
    if count < 2:
        raise ValueError(
            f"The training masks of {path} have the class 0 alone. Expected two or "
            f"more: a background 0, and 1, 2 and so on. {IGNORED} is for pixels that "
            "do not count; where it stands for a foreground, write 1 instead."
        )
    if count == len(VOC_NAMES):
        return list(VOC_NAMES)
    return [str(label) for label in range(count)]


def _refuse_unknown(images: list[MaskedImage], class_names: list[str]) -> None:
    for image in images:
        if image.highest >= len(class_names):
            raise ValueError(
                f"{image.file} has the class {image.highest}, but there are "
                f"{len(class_names)}: 0 to {len(class_names) - 1}. They are the lines "
                "of classes.txt or, without that file, what the training masks have; "
                f"{IGNORED} is for pixels to ignore."
            )


def voc_source(path, cache: bool = False) -> Source:
    """A data set in the layout of PASCAL VOC.

    `PATH/JPEGImages/*`, `PATH/SegmentationClass/*.png`, and
    `PATH/ImageSets/Segmentation/train.txt` and `val.txt`. Where there is a
    `train_aug.txt`, it lists the training images, with masks in
    `PATH/SegmentationClassAug`. `PATH/classes.txt` names the classes; without it they
    have VOC's names if there are as many, or numbers.

    Raises:
        ValueError: if a list is missing, or a mask is none of its image or has a class
            that there is none of.
    """
    path, repairs = Path(path).expanduser(), Repairs()
    splits = {
        split: voc_masks(path, voc_split, repairs)
        for split, voc_split in zip(SPLITS, ("train", "val"))
    }
    repairs.log()
    class_names = _class_names(path, splits["train"])
    columns = {}
    for split, images in splits.items():
        _refuse_unknown(images, class_names)
        paths = [image.path for image in images]
        files = {"encoded": [Path(p).read_bytes() for p in paths]} if cache else {}
        columns[split] = {
            **(files or {"path": paths}),
            "id": paths,
            "mask": [image.mask for image in images],
        }
    return indexed_source(f"voc:{path}", class_names, columns)


def digits_source(counts: dict[str, int] = digit_scenes.SCENES) -> Source:
    """Scenes of scikit-learn's handwritten digits, see `train.digit_scenes`.

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
