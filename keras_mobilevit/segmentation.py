"""Converts a segmenter's logits to the class of each pixel."""

import numpy as np
from keras import ops

from keras_mobilevit.backend import Tensor, resize_bilinear


def class_map(logits: Tensor, height: int, width: int) -> np.ndarray:
    """Finds the class of each pixel of an image.

    Args:
        logits: logits of one image, `[rows, columns, classes]`, of any resolution.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        int32 `[height, width]`: the class with the largest logit, after bilinear
        resizing of the logits.

    Example:
    >>> logits = model.predict(images)  # [1, 512, 512, 21]
    >>> class_map(logits[0], 480, 640).shape
    (480, 640)
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
