"""All code that depends on the Keras backend.

The rest of the library uses only `keras.layers` and `keras.ops`. Each function here
returns the same numbers on every backend.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensor = Any  # a tensor of the backend, a `keras.KerasTensor` or a NumPy array


def _tensorflow() -> Any:
    """Returns the TensorFlow module, or `None` with another backend."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow

    return tensorflow


def output_dtype() -> str | None:
    """Returns the `dtype` of a model's last layer; `None` means the current policy.

    It is float32 if layers compute in 16 bits, as Keras's guide to mixed precision
    recommends.
    """
    is_short = keras.config.dtype_policy().compute_dtype in ("float16", "bfloat16")
    return "float32" if is_short else None


def resize_bilinear(
    x: Tensor, height: Any, width: Any, align_corners: bool = False
) -> Tensor:
    """Resizes feature maps `[batch, rows, columns, channels]` bilinearly.

    Pixels have half-pixel centers. With `align_corners`, the centers of the corner
    pixels stay in place instead.

    Height and width are integers, or known only at run time: then they are tensors on
    TensorFlow, which `keras.ops` does not accept; in JAX exports, symbolic dimensions.
    """
    is_static = all(isinstance(side, int) for side in (height, width))
    if is_static and (height, width) == tuple(x.shape[1:3]):
        return x
    tf = _tensorflow()
    if tf and (align_corners or not is_static):
        resized = tf.raw_ops.ResizeBilinear(
            images=x,
            size=tf.stack([height, width]),
            align_corners=align_corners,
            half_pixel_centers=not align_corners,
        )
        return tf.cast(resized, x.dtype)  # the kernel returns float32
    if align_corners:
        return _interpolate(_interpolate(x, 1, height), 2, width)
    return ops.image.resize(
        x,
        (height, width),
        interpolation="bilinear",
        antialias=False,
        data_format="channels_last",
    )


def _interpolate(x: Tensor, axis: int, size: Any) -> Tensor:
    """Interpolates along an axis; the first and last position stay in place."""
    last = ops.shape(x)[axis] - 1
    index = ops.arange(size, dtype="int32")
    # Position index * last / (size - 1), as a whole number and a rest.
    steps = ops.maximum(ops.cast(size, "int32") - 1, 1)
    lower, rest = index * last // steps, index * last % steps
    shape = [-1 if i == axis else 1 for i in range(len(x.shape))]
    fraction = ops.reshape(
        ops.cast(rest, "float32") / ops.cast(steps, "float32"), shape
    )
    fraction = ops.cast(fraction, x.dtype)
    upper = ops.minimum(lower + 1, last)
    return (
        ops.take(x, lower, axis) * (1 - fraction) + ops.take(x, upper, axis) * fraction
    )


# With this many values per channel, the statistics of one batch are as good as those of
# successive steps. docs/training.md has the measurement.
ENOUGH_VALUES = 8


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, with TensorFlow's fused kernel in training.

    Keras composes the batch statistics from elementwise operations. The fused kernel
    reads the feature map only once, and computes the statistics in float32.

    As in Keras, the running variance is the average of the batches' biased variances.
    PyTorch averages unbiased variances, which are larger by `n / (n - 1)` for `n`
    values per channel: 2 % for 50 values, and negligible for feature maps.

    The class has the name of Keras's layer, because `.weights.h5` files contain it.

    Attributes:
        learns_over_steps: set this before training if batches have too few values per
            channel; see `_normalize_over_steps`. It is not saved.
    """

    learns_over_steps = False

    def _normalize_over_steps(self, inputs: Tensor) -> Tensor:
        """Updates the moving statistics, then normalizes by them.

        A single value has no variance, but it has a distance from the moving mean. The
        statistics are the exponentially weighted mean and variance of all values so
        far (Finch, "Incremental calculation of weighted mean and variance", 2009). Each
        value has the weight of a value in a batch with `ENOUGH_VALUES` per channel. No
        gradient flows through the statistics.
        """
        x = ops.cast(inputs, "float32")
        axis = self.axis % len(x.shape)
        axes = [i for i in range(len(x.shape)) if i != axis]
        mean, variance = ops.moments(x, axes, synchronized=self.synchronized)
        old_mean, old_variance = (
            ops.cast(moving, "float32")
            for moving in (self.moving_mean, self.moving_variance)
        )
        values = ops.cast(ops.size(x) // x.shape[axis], "float32")
        rate = (1 - self.momentum) * ops.minimum(values / ENOUGH_VALUES, 1.0)
        moving_mean = old_mean + rate * (mean - old_mean)
        # The distances from the old and from the new mean, as in Finch's formula.
        variance = variance + (mean - old_mean) * (mean - moving_mean)
        moving_variance = old_variance + rate * (variance - old_variance)
        moving_mean = ops.stop_gradient(moving_mean)
        moving_variance = ops.stop_gradient(moving_variance)
        self.moving_mean.assign(moving_mean)
        self.moving_variance.assign(moving_variance)
        outputs = ops.batch_normalization(
            x, moving_mean, moving_variance, axis, self.beta, self.gamma, self.epsilon
        )
        return ops.cast(outputs, self.compute_dtype)

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor = None
    ) -> Tensor:
        """Normalizes a feature map `[batch, height, width, channels]`."""
        if training and self.trainable and self.learns_over_steps:
            return self._normalize_over_steps(inputs)
        tf = _tensorflow()
        is_fusable = (
            len(inputs.shape) == 4
            and inputs.dtype in ("float32", "bfloat16", "float16")
            and self.axis in (-1, 3)
            and self.center
            and self.scale
            and not self.synchronized
            and not getattr(self, "renorm", False)  # missing in older versions of Keras
            and mask is None
        )
        if not (tf and training and self.trainable and is_fusable):
            return super().call(inputs, training=training, mask=mask)
        scale, offset = (ops.cast(x, "float32") for x in (self.gamma, self.beta))
        outputs, mean, variance, *_ = tf.compat.v1.nn.fused_batch_norm(
            inputs, scale, offset, epsilon=self.epsilon, is_training=True
        )
        # The kernel returns the unbiased variance. Keras averages the biased one.
        count = ops.cast(ops.size(inputs) // inputs.shape[-1], "float32")
        variance = variance * (count - 1) / count
        for moving, batch in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(
                ops.cast(moving, "float32") * self.momentum
                + batch * (1 - self.momentum)
            )
        return outputs


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class Activation(keras.layers.Activation):
    """`keras.layers.Activation`, with one kernel for swish and one for its gradient.

    TensorFlow composes the gradient of swish from six elementwise operations. XLA fuses
    them to one kernel. Only training uses these kernels.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Applies the activation to a tensor of any shape."""
        tf = _tensorflow()
        if tf and training and self.activation is keras.activations.silu:
            return _fused_silu(tf)(inputs)
        return super().call(inputs)


@functools.cache
def _fused_silu(tf: Any) -> Callable[[Tensor], Tensor]:
    @tf.function(jit_compile=True)
    def silu(x: Tensor) -> Tensor:
        return x * tf.sigmoid(x)

    @tf.function(jit_compile=True)
    def gradient(x: Tensor, upstream: Tensor) -> Tensor:
        sigmoid = tf.sigmoid(x)
        return upstream * sigmoid * (1 + x * (1 - sigmoid))

    @tf.custom_gradient
    def fused(x: Tensor) -> tuple[Tensor, Callable]:
        return silu(x), lambda upstream: gradient(x, upstream)

    return fused


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class DilatedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a faster gradient for large dilations.

    TensorFlow's layer splits the feature map into `dilation ** 2` small images and
    joins them again. On a map of 20x20 at dilation 18, forward pass and gradient take
    seven times as long as without dilation, and thirty times with XLA. The faster
    gradient applies to stride 1 and `padding="same"`.
    """

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Convolves a feature map `[batch, height, width, channels]`."""
        tf = _tensorflow()
        is_plain = (
            self.padding == "same"
            and self.strides == (1, 1)
            and self.groups == 1
            and self.data_format == "channels_last"
            and all(side % 2 for side in self.kernel_size)
        )
        if not (tf and is_plain):
            return super().convolution_op(inputs, kernel)
        convolution = _dilated_conv(tf, self.dilation_rate)
        return convolution(inputs, tf.convert_to_tensor(kernel))


@functools.cache
def _dilated_conv(
    tf: Any, dilation: tuple[int, int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a dilated convolution whose gradient runs on any device.

    Some CPUs lack TensorFlow's kernels for the gradients of a dilated convolution. Here
    the input's gradient is the same convolution with the kernel rotated by 180 degrees,
    and the kernel's gradient is one matrix product over its taps.
    """

    def convolve(x: Tensor, kernel: Tensor) -> Tensor:
        return tf.nn.conv2d(x, kernel, 1, "SAME", dilations=dilation)

    def kernel_gradient(x: Tensor, kernel_shape: tuple, upstream: Tensor) -> Tensor:
        *sides, channels, filters = kernel_shape
        pads = [side // 2 * step for side, step in zip(sides, dilation)]
        padded = tf.pad(x, [[0, 0], *([pad, pad] for pad in pads), [0, 0]])
        _, height, width, _ = ops.shape(x)
        taps = [
            padded[:, top : top + height, left : left + width]
            for top in range(0, 2 * pads[0] + 1, dilation[0])
            for left in range(0, 2 * pads[1] + 1, dilation[1])
        ]
        taps = tf.reshape(tf.concat(taps, axis=-1), (-1, len(taps) * channels))
        product = tf.matmul(
            taps, tf.reshape(upstream, (-1, filters)), transpose_a=True
        )  # [taps * channels, filters]
        return tf.reshape(product, kernel_shape)

    @tf.custom_gradient
    def convolution(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable]:
        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            rotated = tf.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
            return (
                convolve(upstream, rotated),
                kernel_gradient(x, kernel.shape, upstream),
            )

        return convolve(x, kernel), gradient

    return convolution


def attention(
    query: Tensor, key: Tensor, value: Tensor, training: bool | None = None
) -> Tensor:
    """Applies softmax attention. The softmax is in float32.

    The query, which is already scaled, the key, the value and the result are
    `[batch, heads, tokens, channels]`.
    """
    tf = _tensorflow()
    if tf and training and query.dtype == "float32":
        return _attention_for_training(tf)(query, key, value)
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    weights = ops.softmax(ops.cast(scores, "float32"))  # [batch, heads, tokens, tokens]
    return ops.matmul(ops.cast(weights, value.dtype), value)


@functools.cache
def _attention_for_training(
    tf: Any,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns `attention` with a gradient that reads the weights fewer times.

    For weights P with gradient dP, the gradient of the scores is `P * (dP - D)`, where
    D is the sum of `P * dP` over a row. D equals the sum of `output * upstream`
    (https://arxiv.org/abs/2205.14135, appendix B), which has few channels. An
    additional column in the matrix product that computes dP subtracts D.
    """

    @tf.custom_gradient
    def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Callable]:
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        output = tf.matmul(weights, value)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            row_sums = tf.reduce_sum(output * upstream, axis=-1, keepdims=True)
            shifted = tf.matmul(  # [batch, heads, tokens, tokens]
                tf.concat([upstream, -row_sums], axis=-1),
                tf.concat([value, tf.ones_like(value[..., :1])], axis=-1),
                transpose_b=True,
            )
            scores = weights * shifted
            return (
                tf.matmul(scores, key),
                tf.matmul(scores, query, transpose_a=True),
                tf.matmul(weights, upstream, transpose_a=True),
            )

        return output, gradient

    return attend
