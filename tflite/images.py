"""Real images to calibrate with and to compare on, as the training sees them."""

import dataclasses
from pathlib import Path

import numpy as np
from absl import logging

from tflite.tasks.task import Task
from train.data import images as decoding
from train.data.pipeline import eval_batches, join, unreadable
from train.data.registry import load_source
from train.data.source import (
    IMAGE_SUFFIXES,
    SPLITS,
    Source,
    evenly_spaced,
    indexed_source,
    is_litter,
)
from train.data.unreadable import NAMED, refuse_nothing_read, with_reason

BATCH_SIZE = 64
FEW_IMAGES = 50  # ranges of fewer images clip what others contain
TOO_FEW_IMAGES = 10  # with 3 photos a real network lost 5 points
DARK = 32  # of 255: photos reach higher


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Some images of one split.

    Attributes:
        data: as `--data` of the task's training.
        class_names: in the order of the labels.
        images: uint8 `[images, height, width, 3]`.
        targets: the task's, `{name: [images, ...]}`.
    """

    data: str
    class_names: tuple[str, ...]
    images: np.ndarray
    targets: dict[str, np.ndarray]


def photo_folder(data: str) -> Path | None:
    """Returns the folder that `--data` names, if it is one of photos without classes.

    Args:
        data: the path of a folder; or `folder:PATH`, of which those with `train` and
            `validation` inside are folders of classes instead.
    """
    kind, _, argument = data.partition(":")
    is_named = kind == "folder" and argument
    path = Path(argument if is_named else data).expanduser()
    if not path.is_dir() or data == "digits":
        return None
    if is_named and any((path / split).exists() for split in SPLITS):
        return None
    return path


def _photo_source(path: Path) -> Source:
    """Opens a folder of photos without classes, which are in both splits."""
    entries = sorted(path.iterdir())
    entries = [entry for entry in entries if not is_litter(entry.name)]
    files = [f for f in entries if f.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        folders = [f.name for f in entries if f.is_dir()]
        found = ", ".join(f.name for f in entries[:3]) or "nothing"
        hint = " Put all photos into one folder." if folders else ""
        raise ValueError(
            f"No photos in {path}. Expected files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}, or the folders train and validation with "
            f"a folder for each class. Found: {found}.{hint}"
        )
    names = [str(file) for file in files]
    column = {"path": names, "id": names}
    return indexed_source(str(path), (), dict.fromkeys(SPLITS, column))


def _refuse_no_folder(data: str) -> None:
    """Refuses a path that is no folder, which a task takes for a kind of data."""
    _, colon, _ = data.partition(":")
    if colon or data == "digits":
        return
    if Path(data).is_file():
        raise ValueError(f"{data} is a file. Name the folder that the photos are in.")
    raise ValueError(
        f"There is no folder {Path(data).expanduser().absolute()}. Expected a folder "
        "of photos, folder:PATH, or other data as --data of train/main.py."
    )


def _photo_loader(crops: bool):
    """Makes the function from an example of a photo to its image, without targets."""

    def load(example, size, crop_fraction: float) -> dict:
        if crops:
            return {"image": decoding.center_crop(example, size, crop_fraction)}
        image = decoding.decode(decoding.read(example))
        return {"image": decoding.resize(image, size)}

    return load


def load_images(
    task: Task, data: str, split: str, count: int, size: int, crop_fraction: float
) -> ImageSet:
    """Loads images from all over a split, cropped as for an evaluation.

    Args:
        task: of conversion; the sources and examples of its training are loaded.
        data: as `--data` of that training, or a folder of photos without classes.
        split: `train` or `validation`.
        count: about how many; 0 for all.
        size: side in pixels.
        crop_fraction: see `resize_and_center_crop`.

    Returns:
        An `ImageSet`; that of a folder of photos has no classes and no targets.

    Raises:
        ValueError: if there is no such data, or no image of it can be read.
    """
    folder = photo_folder(data)
    if folder is None:
        _refuse_no_folder(data)
        source = load_source(task.training.name, data)
        load = task.training.eval_example
    else:
        source, load = _photo_source(folder), _photo_loader(task.crops)
    if count:
        source = evenly_spaced(source, split, count)
    rows, bad = [], []
    for batch in eval_batches(
        source, split, size, BATCH_SIZE, crop_fraction, load=load
    ):
        bad += unreadable(batch)
        del batch["id"]
        readable = batch.pop("weight").numpy() > 0
        rows.append({name: x.numpy()[readable] for name, x in batch.items()})
    targets = join(rows)
    images = targets.pop("image")
    if not len(images):
        refuse_nothing_read(source, split, bad)
    if bad:
        told = "; ".join(map(with_reason, bad[:NAMED]))
        logging.warning("%d images cannot be read and are left out: %s", len(bad), told)
    return ImageSet(data, source.class_names, images, targets)


def check_calibration_images(calibration: ImageSet, wanted: int = 0) -> None:
    """Refuses calibration images that would mislead, and warns of few.

    Args:
        calibration: the images.
        wanted: how many were asked for.

    Raises:
        ValueError: if they are fewer than 10, all equal, or nearly black.
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
            f"is {images.max()} of 255. Perhaps they were scaled to [0, 1] when they "
            "were saved. Name other images with --calibration."
        )
    if len(images) < FEW_IMAGES:
        logging.warning(
            "Calibrating on only %d images of %s: ranges measured on so few clip what "
            "other images contain. Expected at least %d.",
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
