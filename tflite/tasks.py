"""The tasks of conversion, and which of them a model is for."""

import keras

from keras_mobilevit.ssdlite import is_detector
from tflite.classification import CLASSIFICATION
from tflite.detection import BY_NMS
from tflite.task import Task


def task_of(model: keras.Model, nms: str = "none") -> Task:
    """Returns the task of a model.

    Args:
        model: a classifier or a detector.
        nms: of a detector: `none` for boxes and scores of every anchor, `builtin` for
            non-maximum suppression inside the file.
    """
    return BY_NMS[nms] if is_detector(model) else CLASSIFICATION
