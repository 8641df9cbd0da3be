"""From a segmenter's logits to the classes of an image's pixels."""

import numpy as np
from keras import ops

from keras_mobilevit.backend import resize_bilinear


def class_map(logits, height: int, width: int) -> np.ndarray:
    """Finds the class of every pixel of an image of any size.

    Args:
        logits: of one image, `[rows, columns, classes]`, of any resolution.
        height: of the result.
        width: of the result.

    Returns:
        int32 `[height, width]`: the class with the largest logit, after these are
        resized bilinearly.

    Example:
    >>> logits = model.predict(images)  # [1, 512, 512, 21]
    >>> class_map(logits[0], 480, 640).shape
    (480, 640)
    """
    logits = ops.convert_to_tensor(logits)
    best = np.full((height, width), -np.inf, np.float32)
    classes = np.zeros((height, width), np.int32)
    # One class after the other: all of them at once would take gigabytes for a photo
    # of twelve megapixels.
    for label in range(logits.shape[-1]):
        plane = resize_bilinear(logits[None, ..., label : label + 1], height, width)
        plane = ops.convert_to_numpy(plane)[0, ..., 0]
        classes[plane > best] = label
        best = np.maximum(best, plane)
    return classes
