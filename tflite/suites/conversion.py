"""Converts the models of a suite: `python -m tflite.suites.conversion paper FOLDER`.

The weights are random and the images a few digits, since only latency is measured.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tflite.checked_file import write_checked
from tflite.compare_with_keras import make_reference
from tflite.formats.conversion import prepare
from tflite.images import load_images
from tflite.models import load_model
from tflite.suites.suites import SUITES, Entry, file_of
from tflite.tasks.registry import task_of

SEED = 0
CALIBRATION_IMAGES, VALIDATION_IMAGES = 16, 4
# Random weights have random ranges, which 8 bits round more than those of trained ones.
ALLOWED = ("psnr",)


def settle_batch_norms(model: keras.Model, images: np.ndarray) -> None:
    """Sets the statistics of batch normalization to those of images.

    With untrained statistics ranges shrink from layer to layer, until XNNPACK refuses
    the change of scale between two layers.
    """
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momentums = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momentums):
        norm.momentum = momentum


def convert_entry(entry: Entry, formats: Sequence[str], folder: Path) -> list[str]:
    """Converts a model of a suite to the formats whose files are missing.

    Returns error messages; a refused format does not stop the others.
    """
    missing = [name for name in formats if not file_of(entry, name, folder).exists()]
    if not missing:
        return []
    keras.utils.set_random_seed(SEED)
    model = load_model(entry.model, "none")
    task = task_of(model)
    found = load_images(task, "digits", "train", CALIBRATION_IMAGES, entry.size, 1.0)
    settle_batch_norms(model, found.images.astype(np.float32))
    conversion = prepare(model, entry.size, task=task, calibration=found.images)
    validation = load_images(
        task, "digits", "validation", VALIDATION_IMAGES, entry.size, 1.0
    )
    reference = make_reference(model, validation)
    provenance = {"model": entry.model, "weights": "none"}
    errors = []
    for name in missing:
        path = file_of(entry, name, folder)
        try:
            write_checked(conversion, name, [reference], path, provenance, ALLOWED)
        except (ValueError, RuntimeError) as error:
            errors.append(f"{path.name} was not written: {error}")
    return errors


def main(suite: str, folder: Path) -> None:
    """Converts the models of a suite, and exits with the errors."""
    row, errors = SUITES[suite], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in row.entries:
            print(f"converting {entry.title}", file=sys.stderr, flush=True)
            try:
                errors += convert_entry(entry, row.formats, folder)
            except (ValueError, RuntimeError) as error:
                errors.append(f"{entry.title} cannot be converted: {error}")
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the files that are written stay")
    if errors:
        sys.exit("\n".join(f"error: {error}" for error in errors))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("ERROR")  # it reports that each model is traced anew
    main(sys.argv[1], Path(sys.argv[2]))
