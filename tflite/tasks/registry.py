"""The tasks of conversion, and which of them a model is for."""

import keras

from keras_mobilevit.deeplab import is_segmenter
from keras_mobilevit.ssdlite import is_detector
from tflite.tasks.classification import classification_of
from tflite.tasks.detection import BY_NMS
from tflite.tasks.outputs import returned_structure, task_of_outputs
from tflite.tasks.segmentation import BY_OUTPUT
from tflite.tasks.task import Task

__all__ = ["BY_NMS", "BY_OUTPUT", "FORMS", "task_of"]

# By the flag that chooses: whose tasks have several forms, and which.
FORMS = {"nms": ("detectors", BY_NMS), "output": ("segmenters", BY_OUTPUT)}


def task_of(model: keras.Model, nms: str = "none", output: str = "logits") -> Task:
    """Returns the task of a model.

    Args:
        model: a classifier, a detector, a segmenter, or any other network of images.
        nms: of a detector: `none` for boxes and scores of every anchor, `builtin` for
            non-maximum suppression inside the file.
        output: of a segmenter: `logits` or `classmap`.
    """
    if is_detector(model):
        return BY_NMS[nms]
    if is_segmenter(model):
        return BY_OUTPUT[output]
    returned = returned_structure(model)
    is_one = keras.utils.is_keras_tensor(returned)
    if is_one and len(returned.shape) == 2:
        return classification_of(model)
    return task_of_outputs(model)
