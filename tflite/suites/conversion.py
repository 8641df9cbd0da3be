"""Converts the models of a suite: python -m tflite.suites.conversion paper FOLDER

With random weights, since only their time is of interest, and on a few digits.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tflite.exporter import convert, make_reference, prepare
from tflite.images import load_images
from tflite.models import load_model
from tflite.suites.suites import SUITES, Entry, file_of
from tflite.tasks.registry import task_of

SEED = 0
CALIBRATION_IMAGES, VALIDATION_IMAGES = 16, 4
# Random weights make random ranges, so 8 bits lose what they would not lose otherwise.
ALLOWED = ("psnr",)


def settle_batch_norms(model: keras.Model, images: np.ndarray) -> None:
    """Gives a network with random weights the statistics of images, as training does.

    Untrained ones let ranges shrink from layer to layer, until XNNPACK does not take
    the steps from one to the next.
    """
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def convert_entry(entry: Entry, formats, folder: Path) -> list[str]:
    """Writes a model of a suite in some formats, unless they are there.

    Returns:
        What went wrong; the formats after one that is refused are still written.
    """
    missing = [name for name in formats if not file_of(entry, name, folder).exists()]
    if not missing:
        return []
    keras.utils.set_random_seed(SEED)
    model = load_model(entry.model, "none")
    task = task_of(model)
    found = load_images(task, "digits", "train", CALIBRATION_IMAGES, entry.size, 1.0)
    images = found.images.astype(np.float32)
    settle_batch_norms(model, images)
    conversion = prepare(model, entry.size, True, lambda: images, None)
    validation = load_images(
        task, "digits", "validation", VALIDATION_IMAGES, entry.size, 1.0
    )
    reference = make_reference(model, validation)
    provenance = {"model": entry.model, "weights": "none"}
    faults = []
    for name in missing:
        path = file_of(entry, name, folder)
        try:
            convert(conversion, name, [reference], path, provenance, ALLOWED)
        except (ValueError, RuntimeError) as error:
            faults.append(f"{path.name} was not written: {error}")
    return faults


def main(suite: str, folder: Path) -> None:
    row, faults = SUITES[suite], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in row.entries:
            print(f"converting {entry.title}", file=sys.stderr, flush=True)
            try:
                faults += convert_entry(entry, row.formats, folder)
            except (ValueError, RuntimeError) as error:
                faults.append(f"{entry.title} cannot be converted: {error}")
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is converted stays")
    if faults:
        sys.exit("\n".join(f"error: {fault}" for fault in faults))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("ERROR")  # each model is traced anew, as it says
    main(sys.argv[1], Path(sys.argv[2]))
