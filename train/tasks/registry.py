"""The tasks by their names."""

from train.tasks.classification.task import CLASSIFICATION
from train.tasks.detection.task import DETECTION
from train.tasks.segmentation.task import SEGMENTATION
from train.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (CLASSIFICATION, DETECTION, SEGMENTATION)
}
