"""The table of the tasks, and the function that loads one.

To add a task, make a folder with its value, a `train.tasks.task.Task`, and add one row
to `TASKS`. The row names the value and does not import it: the value loads TensorFlow,
and `--help` must not.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """The parts of a task that the flags need."""

    value: str  # "module:NAME" of the `train.tasks.task.Task`
    help: str  # what the model returns
    own_fields: tuple[str, ...] = ()  # fields of `TrainConfig` that not all tasks use


TASKS: dict[str, TaskRow] = {
    "classification": TaskRow(
        "train.tasks.classification.task:CLASSIFICATION",
        "the class of an image",
        ("eval_crop", "rand_augment", "random_erasing", "mixup", "cutmix"),
    ),
    "detection": TaskRow(
        "train.tasks.detection.task:DETECTION",
        "SSDLite: boxes and classes of objects",
        ("color_jitter",),
    ),
    "segmentation": TaskRow(
        "train.tasks.segmentation.task:SEGMENTATION",
        "DeepLabv3: the class of every pixel",
        ("color_jitter", "output_stride", "auxiliary_weight"),
    ),
}


def load_task(name: str) -> Task:
    """Loads a task by its name, and TensorFlow with it."""
    module, _, value = TASKS[name].value.partition(":")
    return getattr(importlib.import_module(module), value)


def tasks_with_field(field: str) -> tuple[str, ...]:
    """Returns the names of the tasks that use a field of `train.config.TrainConfig`."""
    owners = tuple(name for name, row in TASKS.items() if field in row.own_fields)
    return owners or tuple(TASKS)


def describe_tasks() -> str:
    """Describes all tasks, for `--help`."""
    return ", ".join(f"{name} ({row.help})" for name, row in TASKS.items())
