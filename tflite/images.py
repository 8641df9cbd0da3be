"""Real images for calibration and validation, preprocessed as in training."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from absl import logging

from tflite.tasks.task import Task
from train.data import images as decoding
from train.data.folder import class_folders, has_parts, has_photos, photos_in
from train.data.pipeline import eval_batches, join, unreadable
from train.data.registry import load_source
from train.data.source import (
    IMAGE_SUFFIXES,
    SPLITS,
    Source,
    evenly_spaced,
    indexed_source,
    is_ignored_file,
    join_names,
)
from train.data.unreadable import NAMED, refuse_nothing_read, with_reason

BATCH_SIZE = 64
FEW_IMAGES = 50  # ranges measured on fewer images clip values of other images
TOO_FEW_IMAGES = 10  # with 3 photos a real network lost 5 points
DARK = 32  # of 255: the largest value of a photo is higher


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Some images of one split."""

    data: str  # a value of `--data`
    class_names: tuple[str, ...]  # in the order of the labels
    images: np.ndarray  # uint8 `[images, height, width, 3]`
    targets: dict[str, np.ndarray]  # of the training task, `[images, ...]` each


def photo_folder(data: str) -> Path | None:
    """Returns the folder of photos without classes named by `--data`, or `None`.

    `data` is the path of a folder, or `folder:PATH`. Only `folder:PATH` may have
    classes: if it has folders `train` and `validation`, or class folders and no photo
    beside them.
    """
    kind, _, argument = data.partition(":")
    is_named = kind == "folder" and argument
    path = Path(argument if is_named else data).expanduser()
    if not path.is_dir() or data == "digits":
        return None
    if is_named and _has_classes(path):
        return None
    return path


def _has_classes(path: Path) -> bool:
    if has_parts(path):
        return True
    return not has_photos(path) and bool(class_folders(path))


def _photo_source(path: Path) -> Source:
    """Opens a folder of photos without classes; each split has all of them.

    The photos lie directly in the folder or, if none does, in folders of any names.
    """
    files, folders = photos_in(path), class_folders(path)
    if files and folders:
        logging.warning(
            "%s: took the %d photos that lie directly in this folder, and none of its "
            "folders %s. Name one of these folders, or move all photos into one.",
            path,
            len(files),
            join_names([folder.name for folder in folders]),
        )
    if not files:
        files = [file for folder in folders for file in photos_in(folder)]
    if not files:
        _refuse_no_photos(path)
    column = {"path": files, "id": files}
    return indexed_source(str(path), (), dict.fromkeys(SPLITS, column))


def _refuse_no_photos(path: Path) -> None:
    """Raises a ValueError that says what is in a folder instead of photos."""
    entries = sorted(path.iterdir())
    names = [entry.name for entry in entries if not is_ignored_file(entry.name)]
    hint = ""
    if has_parts(path):
        hint = f" Write folder:{path} for train and validation with class folders."
    raise ValueError(
        f"No photos in {path}. Expected files that end in {', '.join(IMAGE_SUFFIXES)}, "
        f"directly inside or in class folders. Found: "
        f"{', '.join(names[:3]) or 'nothing'}.{hint}"
    )


def _refuse_no_folder(data: str) -> None:
    """Raises a ValueError that names the path, if `data` is one and not a folder."""
    _, colon, _ = data.partition(":")
    if colon or data == "digits":
        return
    if Path(data).is_file():
        raise ValueError(f"{data} is a file. Name the folder with the photos.")
    raise ValueError(
        f"There is no folder {Path(data).expanduser().absolute()}. Expected a folder "
        "of photos, folder:PATH, or another value of --data of train/main.py."
    )


def _load_photo(crops: bool, example, size, crop_fraction: float) -> dict:
    """Loads the image of an example, without targets."""
    if crops:
        return {"image": decoding.center_crop(example, size, crop_fraction)}
    picture = decoding.open_picture(decoding.read(example))
    return {"image": decoding.crop_and_resize(picture, decoding.whole(picture), size)}


def load_images(
    task: Task, data: str, split: str, count: int, size: int, crop_fraction: float
) -> ImageSet:
    """Loads images that are spread over a split, cropped as for an evaluation.

    Photos of a folder have no classes and no targets. `count` is approximate; 0 means
    all. `size` is the side of the images in pixels.
    """
    folder = photo_folder(data)
    if folder is None:
        _refuse_no_folder(data)
        source = load_source(task.training.name, data)
        load = task.training.eval_example
    else:
        source, load = _photo_source(folder), functools.partial(_load_photo, task.crops)
    if count:
        source = evenly_spaced(source, split, count)
    rows, bad = [], []
    batches = eval_batches(source, split, size, BATCH_SIZE, crop_fraction, load=load)
    for batch in batches:
        bad += unreadable(source, split, batch)
        del batch["index"]
        readable = batch.pop("weight").numpy() > 0
        rows.append({name: x.numpy()[readable] for name, x in batch.items()})
    targets = join(rows)
    images = targets.pop("image")
    if not len(images):
        refuse_nothing_read(source, split, bad)
    if bad:
        examples = "; ".join(map(with_reason, bad[:NAMED]))
        logging.warning("Skipped %d unreadable images: %s", len(bad), examples)
    return ImageSet(data, source.class_names, images, targets)


def check_calibration_images(calibration: ImageSet, wanted: int = 0) -> None:
    """Refuses calibration images that mislead, and warns if there are few.

    `wanted` is the number that was asked for, 0 for any.
    """
    images, data = calibration.images, calibration.data
    if len(images) < TOO_FEW_IMAGES:
        raise ValueError(
            f"{len(images)} calibration images of {data} are too few: ranges measured "
            f"on them would clip other images. Expected at least {FEW_IMAGES}."
        )
    if np.all(images == images[0]):
        raise ValueError(
            f"All {len(images)} calibration images of {data} are equal. Ranges "
            "measured on them would clip every other image. Name other images with "
            "--calibration."
        )
    if images.max() < DARK:
        raise ValueError(
            f"The calibration images of {data} are nearly black: their largest value "
            f"is {images.max()} of 255. Perhaps they were scaled to [0, 1] before they "
            "were saved. Name other images with --calibration."
        )
    if len(images) < FEW_IMAGES:
        logging.warning(
            "Calibrating on only %d images of %s: ranges measured on so few clip "
            "values of other images. Expected at least %d.",
            len(images),
            data,
            FEW_IMAGES,
        )
    elif len(images) < wanted:
        logging.warning(
            "%s has %d calibration images; --calibration_images asked for %d.",
            data,
            len(images),
            wanted,
        )
