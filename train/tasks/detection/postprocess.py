"""Non-maximum suppression (NMS) of the outputs of a converted detector."""

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit.detection import non_max_suppression

# NMS runs a thousand small operations for each image, which are slow one by one. It is
# traced once for each file: it takes static shapes, which `reduce_retracing` removes.
_compiled_nms = tf.function(non_max_suppression, autograph=False)


def suppress_file_outputs(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts a file's outputs to the results of `keras_mobilevit.detect`.

    A file that contains NMS returns these already, the classes in floats.
    """
    if "classes" in outputs:
        classes = outputs["classes"].astype(np.int32)
        return {**{n: outputs[n] for n in ("boxes", "scores")}, "classes": classes}
    # Image by image: the candidates of 80 classes take much memory for a whole batch.
    rows = [
        _compiled_nms(tf.constant(boxes[None]), tf.constant(scores[None]))
        for boxes, scores in zip(outputs["boxes"], outputs["scores"])
    ]
    return {
        name: np.concatenate([keras.ops.convert_to_numpy(row[name]) for row in rows])
        for name in rows[0]
    }
