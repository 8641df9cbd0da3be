"""Images with masks in PASCAL VOC's layout, and SBD's additions to it.

An example has, beside `path` or `encoded` and `id`, `mask`: a gray PNG whose values are
the classes. All masks are read and checked before the training starts. Those that are
missing or unreadable are skipped and counted. One that does not fit its image or the
classes ends the run: other masks are then likely to be wrong, too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from keras_mobilevit.class_names import VOC_NAMES
from train.data.annotation_report import AnnotationReport
from train.data.box_annotations import image_header
from train.data.geometry import find_canvas
from train.data.masks import IGNORE_INDEX, encode_mask, read_mask
from train.data.source import (
    IMAGE_SUFFIXES,
    SPLITS,
    Source,
    image_columns,
    indexed_source,
    join_names,
    warn_of_missing_classes,
    warn_of_similar_names,
)
from train.data.voc.files import (
    MASK_SUFFIXES,
    Files,
    read_lines,
    read_names,
    without_ending,
)

MAX_UNNAMED = len(VOC_NAMES)  # classes without a list of names


class MaskedImage(NamedTuple):
    """An image and the classes of its pixels, without `IGNORE_INDEX`.

    `file` is of the mask, and `mask` a gray PNG, see `train.data.masks.encode_mask`.
    """

    path: str
    file: str
    mask: bytes
    classes: frozenset[int]


def voc_mask_source(argument: str, cache: bool = False) -> Source:
    """Opens a data set of masks in PASCAL VOC's layout.

    `PATH/JPEGImages/*`, `PATH/SegmentationClass/*.png`, and
    `PATH/ImageSets/Segmentation/train.txt` and `val.txt`. If there is a
    `train_aug.txt`, it lists the training images, whose masks are in
    `PATH/SegmentationClassAug`. `PATH/classes.txt` names the classes; without it they
    have VOC's names if there are as many, or numbers.
    """
    path, report = Path(argument).expanduser(), AnnotationReport()
    name = f"voc:{path}"
    splits = {
        split: voc_masks(path, voc_split, report)
        for split, voc_split in zip(SPLITS, ("train", "val"))
    }
    report.log()
    class_names = _class_names(path, splits)
    _check_classes(path, class_names, splits)
    paths = {split: [x.path for x in images] for split, images in splits.items()}
    columns = image_columns(name, paths, cache)
    for split, images in splits.items():
        columns[split]["mask"] = [image.mask for image in images]
    return indexed_source(name, class_names, columns)


def voc_masks(path: Path, split: str, report: AnnotationReport) -> list[MaskedImage]:
    """Reads the readable images and masks of `train` or `val`, in the list's order."""
    file, folder = _find_list(path, split)
    images = Files(path / "JPEGImages", IMAGE_SUFFIXES)
    masks = Files(folder, MASK_SUFFIXES)
    found, names = [], read_names(file, (masks, images), report)
    for name in tqdm(names, f"{split} masks", disable=None, leave=False):
        image, mask = images.find_one(name), masks.find_one(name)
        if image is None:
            report.add("images that are missing, skipped", f"{file}: {name}")
        elif mask is None:
            missing = folder / f"{without_ending(name)}.png"
            report.add("masks that are missing, images skipped", str(missing))
        elif pair := _read_pair(image, mask, report):
            found.append(pair)
    if not found:
        raise ValueError(
            f"{file} lists {len(names)} images, and none of them has both an image in "
            f"{path}/JPEGImages and a readable mask in {folder}. Expected NAME.jpg and "
            "NAME.png for each NAME."
        )
    if not any(pair.classes for pair in found):
        raise ValueError(
            f"None of the {len(found)} masks in {folder} that {file} lists has a pixel "
            f"with a class. {IGNORE_INDEX} means that a pixel is ignored."
        )
    return found


def _find_list(path: Path, split: str) -> tuple[Path, Path]:
    """Finds the list of a split, `train` or `val`, and the folder of its masks."""
    lists = path / "ImageSets" / "Segmentation"
    file, folder = lists / f"{split}.txt", path / "SegmentationClass"
    if split == "train" and (lists / "train_aug.txt").is_file():
        file, folder = lists / "train_aug.txt", path / "SegmentationClassAug"
    if not file.is_file() or not folder.is_dir():
        missing = folder if file.is_file() else file
        raise ValueError(
            f"There is no {missing}. Expected the layout of PASCAL VOC: {path}/"
            "JPEGImages/*, SegmentationClass/*.png, ImageSets/Segmentation/train.txt "
            "and val.txt; with SBD's masks train_aug.txt and SegmentationClassAug/*."
        )
    return file, folder


def _read_pair(image: Path, file: Path, report: AnnotationReport) -> MaskedImage | None:
    """Reads a mask and fits it to its image; `None` if one of them is unreadable."""
    header, mask = image_header(image, report), read_mask(file)
    if mask is None:
        report.add("masks that cannot be read, skipped", str(file))
    if header is None or mask is None:
        return None
    height, width = mask.shape
    canvas = find_canvas(header, (width, height), f"{file} has", image, report)
    mask = canvas.turn_mask(mask, header.size)
    classes = frozenset(np.unique(mask).tolist()) - {IGNORE_INDEX}
    encoded = encode_mask(np.ascontiguousarray(mask))
    return MaskedImage(str(image), str(file), encoded, classes)


def _named_classes(path: Path) -> list[str]:
    """Reads `classes.txt`, one name a line; an empty list if there is no such file."""
    file = path / "classes.txt"
    if not file.is_file():
        return []
    names = read_lines(file)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{file} names classes twice: {', '.join(twice)}.")
    if not 1 < len(names) <= IGNORE_INDEX:
        raise ValueError(
            f"{file} names {len(names)} classes. Expected 2 to {IGNORE_INDEX}, one "
            "name a line, in the order of the masks' values."
        )
    return names


def _refuse_gray_levels(path: Path, present: list[int]) -> None:
    """Raises a ValueError if values of unnamed classes do not count from 0.

    Values such as 0, 127 and 254 are levels of gray, and JPEG leaves other values
    around them.
    """
    count = max(present) + 1
    if count <= MAX_UNNAMED and 2 * len(present) >= count:
        return
    raise ValueError(
        f"The masks of {path} have the values {join_names([*map(str, present)], 20)}. "
        "Expected 0, 1, 2 and so on, a number for each class. If these are levels of "
        "gray, write masks with the numbers of the classes. If they come from JPEG, "
        "which blurs masks, save the original masks as PNG. If they are numbers of "
        f"classes, name all classes from 0 to {count - 1} in {path / 'classes.txt'}, "
        f"one name a line. Names are optional for up to {MAX_UNNAMED} classes if the "
        "masks contain at least half of them."
    )


def _class_names(path: Path, splits: dict[str, list[MaskedImage]]) -> list[str]:
    """Returns the names of the classes: of `classes.txt`, VOC's, or numbers."""
    train, validation = (_present_classes(splits[split]) for split in SPLITS)
    if len(train) < 2:
        raise ValueError(
            f"The training masks of {path} have only the class {train[0]}. Expected "
            "two or more: 0 for the background, and 1, 2 and so on. "
            f"{IGNORE_INDEX} is for ignored pixels; if it stands for a foreground, "
            "write 1 instead."
        )
    if names := _named_classes(path):
        return names
    _refuse_gray_levels(path, sorted({*train, *validation}))
    count = max(train) + 1
    return list(VOC_NAMES if count == len(VOC_NAMES) else map(str, range(count)))


def _present_classes(images: Sequence[MaskedImage]) -> list[int]:
    """Returns the classes that the masks have, sorted."""
    return sorted({label for image in images for label in image.classes})


def _check_classes(
    path: Path, class_names: list[str], splits: dict[str, list[MaskedImage]]
) -> None:
    """Refuses classes without a name, and warns of classes without examples."""
    for image in (image for images in splits.values() for image in images):
        highest = max(image.classes, default=0)
        if highest >= len(class_names):
            raise ValueError(
                f"{image.file} has the class {highest}, but there are "
                f"{len(class_names)} classes: 0 to {len(class_names) - 1}. classes.txt "
                "names them or, without that file, the training masks contain them; "
                f"{IGNORE_INDEX} is for ignored pixels."
            )
    train = _present_classes(splits["train"])
    problem = "are in no training mask"
    warn_of_missing_classes(f"voc:{path}", class_names, train, problem)
    warn_of_similar_names(class_names, f"voc:{path}")
