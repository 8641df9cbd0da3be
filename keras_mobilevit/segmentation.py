"""Converts a segmenter's logits to the class of each pixel."""

import numpy as np
from keras import ops

from keras_mobilevit.backend import Tensor, resize_bilinear


def class_map(logits: Tensor, height: int, width: int) -> np.ndarray:
    """Returns the class of each pixel of an image, int32 `[height, width]`.

    The logits of the image, `[rows, columns, classes]` of any resolution, are resized
    bilinearly.
    """
    logits = ops.convert_to_tensor(logits)
    best = np.full((height, width), -np.inf, np.float32)
    classes = np.zeros((height, width), np.int32)
    # Class by class: all classes at once would take gigabytes for a large photo.
    for label in range(logits.shape[-1]):
        plane = resize_bilinear(logits[None, ..., label : label + 1], height, width)
        plane = ops.convert_to_numpy(plane)[0, ..., 0]
        classes[plane > best] = label
        best = np.maximum(best, plane)
    return classes
