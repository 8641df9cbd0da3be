"""Keras's outputs for the validation images, and their comparison with a file's."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tflite.formats.conversion import outputs_as_list
from tflite.formats.table import FileType
from tflite.images import ImageSet
from tflite.models import has_classes_of, network_images
from tflite.tasks.registry import task_of
from tflite.tasks.task import Outputs, Task

KERAS_BATCH = 8  # MobileViT_S at 256 needs 100 MB per image


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The outputs of the Keras model for the validation images."""

    task: Task
    model: keras.Model
    validation: ImageSet
    images: np.ndarray  # float32, in the range that the model takes
    outputs: Outputs  # `{name: [images, ...]}`, the expected outputs of a file
    has_labels: bool  # whether the model's classes are those of the images


def make_reference(
    model: keras.Model,
    validation: ImageSet,
    labels: Sequence[str] = (),
    task: Task | None = None,
) -> Reference:
    """Runs the Keras model on the validation images.

    `labels` are the names of the model's classes; without them there is no accuracy.
    """
    task = task or task_of(model)
    images = network_images(model, validation.images)
    run = outputs_as_list(model)
    postprocess = task.reference(model, images.shape[1])
    rows = []
    for start in range(0, len(images), KERAS_BATCH):
        found = postprocess(run(images[start : start + KERAS_BATCH]))
        rows.append({n: keras.ops.convert_to_numpy(x) for n, x in found.items()})
    outputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    if not all(np.all(np.isfinite(values)) for values in outputs.values()):
        raise ValueError(
            f"{model.name} returns numbers that are not finite for images of "
            f"{validation.data}."
        )
    has_labels = has_classes_of(labels, validation.class_names)
    return Reference(task, model, validation, images, outputs, has_labels)


def compare_file(path: Path, file_type: FileType, reference: Reference) -> dict:
    """Runs a file on the validation images.

    Returns the entries `parity` and `accuracy` of its card.
    """
    task, validation = reference.task, reference.validation
    names = list(reference.outputs)
    outputs = file_type.run(path, validation.images, reference.images, names)
    _refuse_not_finite(outputs)
    images = len(reference.images)
    description = {
        "data": validation.data,
        "split": "validation",
        "images": images,
        "size": reference.images.shape[1],
    }
    accuracy = None
    if reference.has_labels and task.score:
        accuracy = description | {
            "metric": task.metric,
            task.metric: task.score(validation, outputs),
            f"keras_{task.metric}": task.score(validation, reference.outputs),
            "tolerance": task.tolerance(images),
        }
    differences = task.compare(reference.outputs, outputs)
    return {"parity": differences | description, "accuracy": accuracy}


def _refuse_not_finite(outputs: Outputs) -> None:
    for name, values in outputs.items():
        bad = ~np.all(np.isfinite(values.reshape(len(values), -1)), axis=-1)
        if bad.any():
            raise ValueError(
                f"The file's {name} are not finite for {bad.sum()} of {len(bad)} "
                "images; Keras's are."
            )
