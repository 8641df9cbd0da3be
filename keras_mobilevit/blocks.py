"""The blocks of convolutions that all networks share.

A block is a function from a channels-last tensor to another. It names its layers.
"""

from typing import Any

import keras
from keras import layers

from keras_mobilevit.backend import (
    Activation,
    BatchNormalization,
    DilatedConv2D,
    Tensor,
)

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # PyTorch calls it momentum 0.1


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor`, but not down by more than a tenth.

    Source: MobileNetV2's channel rounding, https://arxiv.org/abs/1801.04381.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def batch_norm(x: Tensor, name: str) -> Tensor:
    """Applies batch normalization with the constants of the published weights."""
    return BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=name
    )(x)


def linear_initializer() -> keras.initializers.Initializer:
    """Returns the initializer of the transformers' projections.

    Each call returns another one: the same object would draw the same numbers again.
    """
    # The published code uses PyTorch's truncated normal, which is cut off at -2 and 2,
    # so at a hundred standard deviations. Keras's truncated normal is cut off at two
    # standard deviations and would have a spread of 0.0176.
    return keras.initializers.RandomNormal(stddev=0.02)


def dense(
    units: int, name: str, activation: Any = None, dtype: str | None = None
) -> layers.Dense:
    """Returns a linear layer with bias and the initialization of the published code."""
    return layers.Dense(
        units,
        activation=activation,
        kernel_initializer=linear_initializer(),
        dtype=dtype,
        name=name,
    )


def pad_for_stride(x: Tensor, kernel_size: int, name: str) -> Tensor:
    """Pads both sides equally, as the published weights were trained.

    With kernel 3 and stride 2 on an even size, `padding="same"` pads (0, 1). This
    function pads (1, 1).
    """
    return layers.ZeroPadding2D(kernel_size // 2, name=name)(x)


def conv(
    x: Tensor,
    filters: int,
    kernel_size: int,
    strides: int,
    name: str,
    dilation: int = 1,
    use_bias: bool = False,
    initializer: keras.Initializer | None = None,
) -> Tensor:
    """Applies a convolution, padded equally on all sides.

    The padding is `kernel_size // 2` times the dilation. Dilation requires stride 1.
    """
    if strides > 1:
        x = pad_for_stride(x, kernel_size, f"{name}_pad")
    layer_class = layers.Conv2D if dilation == 1 else DilatedConv2D
    return layer_class(
        filters,
        kernel_size,
        strides=strides,
        padding="same" if strides == 1 else "valid",
        dilation_rate=dilation,
        use_bias=use_bias,
        kernel_initializer=initializer
        or keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        ),
        name=f"{name}_conv",
    )(x)


def conv_bn(
    x: Tensor, filters: int, kernel_size: int, name: str, strides: int = 1
) -> Tensor:
    """Applies a convolution and batch normalization: a bottleneck's linear end."""
    x = conv(x, filters, kernel_size, strides, name)
    return batch_norm(x, f"{name}_bn")


def conv_bn_act(
    x: Tensor, filters: int, kernel_size: int, name: str, strides: int = 1
) -> Tensor:
    """Applies a convolution, batch normalization and swish."""
    x = conv_bn(x, filters, kernel_size, name, strides)
    return Activation("silu", name=f"{name}_act")(x)


def depthwise_bn(
    x: Tensor,
    name: str,
    strides: int = 1,
    dilation: int = 1,
    initializer: keras.Initializer | None = None,
) -> Tensor:
    """Applies a 3x3 depthwise convolution and batch normalization."""
    if strides > 1:
        x = pad_for_stride(x, 3, f"{name}_pad")
    x = layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same" if strides == 1 else "valid",
        dilation_rate=dilation,
        use_bias=False,
        # Keras's fan-in of a depthwise kernel is 9 * channels. PyTorch, and so the
        # published recipe, calls this number the fan-out.
        depthwise_initializer=initializer
        or keras.initializers.VarianceScaling(
            2.0, mode="fan_in", distribution="untruncated_normal"
        ),
        name=f"{name}_conv",
    )(x)
    return batch_norm(x, f"{name}_bn")


def inverted_residual(
    x: Tensor,
    filters: int,
    expansion: int,
    name: str,
    strides: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Applies MobileNetV2's block ("MV2" in Figure 1b), with swish.

    The result is `[batch, ceil(height / strides), ceil(width / strides), filters]`.
    The input is added to it if both have the same shape. A dilation above 1 requires
    stride 1.
    """
    inputs = x
    channels = x.shape[-1]
    x = conv_bn_act(x, make_divisible(channels * expansion), 1, f"{name}_expand")
    x = depthwise_bn(x, f"{name}_depthwise", strides, dilation)
    x = Activation("silu", name=f"{name}_depthwise_act")(x)
    x = conv_bn(x, filters, 1, f"{name}_project")
    if strides == 1 and channels == filters:
        x = layers.Add(name=f"{name}_add")([inputs, x])
    return x
