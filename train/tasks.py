"""The tasks by their names."""

from train.classification import CLASSIFICATION
from train.detection import DETECTION
from train.segmentation import SEGMENTATION
from train.task import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (CLASSIFICATION, DETECTION, SEGMENTATION)
}
