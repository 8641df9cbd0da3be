"""The files of a network with one kind of output, each converted once."""

from pathlib import Path

import keras
import numpy as np

from tflite.checked_file import write_checked
from tflite.compare_with_keras import make_reference
from tflite.formats import conversion
from tflite.images import ImageSet
from tflite.tasks.task import Task


class Conversions:
    """Converts a network to the formats that a test asks for.

    `allowed` are the checks that formats other than `fp32` may fail: random weights
    give some tensors ranges that no trained network has.
    """

    def __init__(
        self,
        model: keras.Model,
        task: Task,
        validation: ImageSet,
        folder: Path,
        allowed: tuple[str, ...],
    ):
        self.folder, self.allowed, self.cards = folder, allowed, {}
        self.reference = make_reference(model, validation, validation.class_names, task)
        images = validation.images.astype(np.float32)
        self.prepared = conversion.prepare(
            model, images.shape[1], calibration=images, task=task
        )

    def path(self, file_format: str = "fp32") -> Path:
        return self.folder / f"{file_format}.tflite"

    def card(self, file_format: str = "fp32") -> dict:
        """Returns the card of a format's file."""
        if file_format not in self.cards:
            self.cards[file_format] = write_checked(
                self.prepared,
                file_format,
                [self.reference],
                self.path(file_format),
                {},
                () if file_format == "fp32" else self.allowed,
            )
        return self.cards[file_format]
