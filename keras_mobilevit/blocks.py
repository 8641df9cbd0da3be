"""The blocks of MobileViT (Figure 1 of https://arxiv.org/abs/2110.02178).

A block is a function from a channels-last tensor to another. It names its layers.
"""

import keras
from keras import layers

from keras_mobilevit.backend import (
    Activation,
    BatchNormalization,
    DilatedConv2D,
    Tensor,
)
from keras_mobilevit.configs import NUM_HEADS, PATCH_SIZE
from keras_mobilevit.layers import DotProductAttention, Fold, Unfold

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # PyTorch calls it momentum 0.1
LAYER_NORM_EPSILON = 1e-5


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


def layer_norm(x: Tensor, name: str) -> Tensor:
    """Applies layer normalization over the last axis."""
    return layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=name)(x)


def dense(units: int, name: str, activation=None, dtype=None) -> layers.Dense:
    """Returns a linear layer with bias and the initialization of the published code."""
    return layers.Dense(
        units,
        activation=activation,
        # The published code uses PyTorch's truncated normal, which is cut off at -2 and
        # 2, so at a hundred standard deviations. Keras's truncated normal is cut off at
        # two standard deviations and would have a spread of 0.0176.
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
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
) -> Tensor:
    """Applies a convolution without bias, padded equally on all sides.

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
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
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
    x: Tensor, name: str, strides: int = 1, dilation: int = 1, initializer=None
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


def transformer_layer(x: Tensor, dropout: float, name: str) -> Tensor:
    """Applies a pre-norm transformer layer to tokens `[batch, tokens, channels]`.

    The feed-forward part has swish. Both parts end in a dropout of the rate `dropout`.
    """
    channels = x.shape[-1]
    y = layer_norm(x, f"{name}_attention_norm")
    query, key, value = (
        dense(channels, f"{name}_attention_{part}")(y)
        for part in ("query", "key", "value")
    )
    y = DotProductAttention(NUM_HEADS, name=f"{name}_attention")(query, key, value)
    y = dense(channels, f"{name}_attention_output")(y)
    y = layers.Dropout(dropout, name=f"{name}_attention_dropout")(y)
    x = layers.Add(name=f"{name}_attention_add")([x, y])

    y = layer_norm(x, f"{name}_ffn_norm")
    y = dense(2 * channels, f"{name}_ffn_expand")(y)
    y = Activation("silu", name=f"{name}_ffn_act")(y)
    y = dense(channels, f"{name}_ffn_project")(y)
    y = layers.Dropout(dropout, name=f"{name}_ffn_dropout")(y)
    return layers.Add(name=f"{name}_ffn_add")([x, y])


def mobilevit_block(
    x: Tensor, transformer_dim: int, depth: int, dropout: float, name: str
) -> Tensor:
    """Applies the MobileViT block (Figure 1b, section 3.1) to a feature map.

    Convolutions combine neighboring pixels. `depth` transformers on tokens of
    `transformer_dim` channels combine distant patches.
    """
    channels = x.shape[-1]
    # Local representation: 3x3 convolution, then a projection to d channels.
    y = conv_bn_act(x, channels, 3, f"{name}_local")
    local = conv(y, transformer_dim, 1, 1, f"{name}_local_project")
    # Global representation: transformers on the tokens [batch * P, N, d].
    tokens = Unfold(PATCH_SIZE, name=f"{name}_unfold")(local)
    for i in range(depth):
        tokens = transformer_layer(tokens, dropout, f"{name}_transformer{i}")
    tokens = layer_norm(tokens, f"{name}_norm")
    y = Fold(PATCH_SIZE, name=f"{name}_fold")(tokens, local)
    # Fusion: projection to the input's channels, then concatenation with the input.
    y = conv_bn_act(y, channels, 1, f"{name}_global_project")
    y = layers.Concatenate(name=f"{name}_concat")([x, y])
    return conv_bn_act(y, channels, 3, f"{name}_fusion")
