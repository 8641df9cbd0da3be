"""Real images to calibrate with and to compare on, as the training sees them."""

import dataclasses

import numpy as np
from absl import logging

from train.data import eval_batches
from train.sources import evenly_spaced
from train.task import Task

BATCH_SIZE = 64
FEW_IMAGES = 50  # ranges of fewer images clip what others contain
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


def load_images(
    task: Task, data: str, split: str, count: int, size: int, crop_fraction: float
) -> ImageSet:
    """Loads images from all over a split, cropped as for an evaluation.

    Args:
        task: of training, whose sources and examples are loaded.
        data: as `--data` of its training.
        split: `train` or `validation`.
        count: about how many; 0 for all.
        size: side in pixels.
        crop_fraction: see `resize_and_center_crop`.

    Returns:
        An `ImageSet`.

    Raises:
        ValueError: if there is no such data, or no image of it can be read.
    """
    source = task.load_source(data)
    if count:
        source = evenly_spaced(source, split, count)
    rows = []
    for batch in eval_batches(
        source, split, size, BATCH_SIZE, crop_fraction, load=task.eval_example
    ):
        readable = batch.pop("weight").numpy() > 0
        del batch["id"]
        rows.append({name: x.numpy()[readable] for name, x in batch.items()})
    targets = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    images = targets.pop("image")
    if not len(images):
        raise ValueError(f"None of the {split} images of {data} can be read.")
    return ImageSet(data, source.class_names, images, targets)


def check_calibration_images(calibration: ImageSet) -> None:
    """Says what bad calibration images lead to.

    Raises:
        ValueError: if all of them are equal.
    """
    images = calibration.images
    if len(images) > 1 and np.all(images == images[0]):
        raise ValueError(
            f"All {len(images)} calibration images of {calibration.data} are equal. "
            "Ranges measured on them would clip every other image."
        )
    if len(images) < FEW_IMAGES:
        logging.warning(
            "Only %d calibration images in %s: ranges measured on so few clip what "
            "other images contain. Expected at least %d.",
            len(images),
            calibration.data,
            FEW_IMAGES,
        )
    if images.max() < DARK:
        logging.warning(
            "The calibration images of %s are nearly black (largest value %d of 255): "
            "perhaps scaled to [0, 1] when they were saved. Brighter images will be "
            "clipped.",
            calibration.data,
            images.max(),
        )
