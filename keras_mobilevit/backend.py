"""What depends on the Keras backend, all in this file.

Everything else in this library is `keras.layers` and `keras.ops`. Each function here
gives the same numbers on every backend.
"""

import keras
from keras import ops


def _tensorflow():
    """Returns the TensorFlow module if it is the backend, otherwise None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow

    return tensorflow


def resize_bilinear(x, height, width):
    """Resizes feature maps with half-pixel centres (`align_corners=False`).

    Args:
        x: feature maps `[batch, rows, columns, channels]`.
        height: rows of the result; a number, or a tensor where it is only known at run
            time, which only happens on TensorFlow and which `keras.ops` refuses.
        width: columns of the result, likewise.

    Returns:
        Feature maps `[batch, height, width, channels]`.
    """
    is_static = isinstance(height, int) and isinstance(width, int)
    if not is_static:
        return _tensorflow().image.resize(x, (height, width), method="bilinear")
    if (height, width) == tuple(x.shape[1:3]):
        return x
    return ops.image.resize(
        x,
        (height, width),
        interpolation="bilinear",
        antialias=False,
        data_format="channels_last",
    )


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, with TensorFlow's fused kernel in training.

    Keras composes the batch statistics from elementwise operations; the kernel reads
    the feature map once. Channels-last float32 feature maps take it.
    """

    def call(self, inputs, training=None, mask=None):
        tf = _tensorflow()
        is_fusable = (
            len(inputs.shape) == 4
            and inputs.dtype == "float32"
            and self.axis in (-1, 3)
            and self.center
            and self.scale
            and not self.synchronized
            and mask is None
        )
        if not (tf and training and self.trainable and is_fusable):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
        )
        # The kernel's variance is the unbiased estimate; Keras averages the biased.
        count = ops.cast(ops.size(inputs) // inputs.shape[-1], "float32")
        variance = variance * (count - 1) / count
        for moving, batch in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs
