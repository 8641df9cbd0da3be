"""Non-maximum suppression of what a converted detector returns."""

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit.detection import non_max_suppression

# A thousand small operations an image, which are slow one by one.
_compiled_nms = tf.function(non_max_suppression, autograph=False, reduce_retracing=True)


def suppress_file_outputs(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what `keras_mobilevit.detect` does, from the outputs of a converted file.

    A file that contains the suppression returns it already.
    """
    if "classes" in outputs:
        return outputs
    # Image by image: the candidates of 80 classes take much memory for a whole batch.
    rows = [
        _compiled_nms(tf.constant(boxes[None]), tf.constant(scores[None]))
        for boxes, scores in zip(outputs["boxes"], outputs["scores"])
    ]
    return {
        name: np.concatenate([keras.ops.convert_to_numpy(row[name]) for row in rows])
        for name in rows[0]
    }
