"""The blocks of MobileViT (Figure 1 of https://arxiv.org/abs/2110.02178).

A block without state of its own is a function from tensor to tensor that names its
layers; what needs the size of the feature map at run time is a `keras.layers.Layer`.
Tensors are channels-last throughout.
"""

import warnings

import keras
from keras import layers, ops

from keras_mobilevit.backend import (
    Activation,
    BatchNormalization,
    DilatedConv2D,
    attention,
    resize_bilinear,
)

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # what PyTorch calls momentum 0.1
LAYER_NORM_EPSILON = 1e-5


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor` without losing more than a tenth.

    Source: MobileNetV2's channel rounding, https://arxiv.org/abs/1801.04381.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def batch_norm(x, name: str):
    """Batch normalization with the constants of the published weights."""
    return BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=name
    )(x)


def layer_norm(x, name: str):
    """Layer normalization over the last axis."""
    return layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=name)(x)


def dense(units: int, name: str, activation=None, dtype=None):
    """A linear layer with bias, initialised as the published code does."""
    return layers.Dense(
        units,
        activation=activation,
        # PyTorch's "truncated normal" of the published code ends at -2 and 2, which is
        # a hundred standard deviations away. Keras's ends at two of them, and so has a
        # standard deviation of 0.0176.
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
        dtype=dtype,
        name=name,
    )


def pad_for_stride(x, kernel_size: int, name: str):
    """Pads both sides alike, where `padding="same"` would pad an even map only after.

    With kernel 3 and stride 2 on an even size, "same" pads (0, 1); the published
    weights were trained with (1, 1).
    """
    return layers.ZeroPadding2D(kernel_size // 2, name=name)(x)


def conv(x, filters: int, kernel_size: int, strides: int, name: str, dilation: int = 1):
    """A convolution without bias, padded alike on every side.

    The padding is `kernel_size // 2` times the dilation, which takes stride 1.
    """
    if strides > 1:
        x = pad_for_stride(x, kernel_size, f"{name}_pad")
    kind = layers.Conv2D if dilation == 1 else DilatedConv2D
    return kind(
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


def conv_bn(x, filters: int, kernel_size: int, name: str, strides: int = 1):
    """Convolution, then batch normalization: the linear end of a bottleneck."""
    x = conv(x, filters, kernel_size, strides, name)
    return batch_norm(x, f"{name}_bn")


def conv_bn_act(x, filters: int, kernel_size: int, name: str, strides: int = 1):
    """Convolution, batch normalization, swish."""
    x = conv_bn(x, filters, kernel_size, name, strides)
    return Activation("silu", name=f"{name}_act")(x)


def depthwise_bn_act(x, name: str, strides: int = 1, dilation: int = 1):
    """3x3 depthwise convolution, batch normalization, swish."""
    if strides > 1:
        x = pad_for_stride(x, 3, f"{name}_pad")
    x = layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same" if strides == 1 else "valid",
        dilation_rate=dilation,
        use_bias=False,
        # Keras counts 9 * channels as a depthwise kernel's fan-in, which is what
        # PyTorch, and so the published recipe, counts as its fan-out.
        depthwise_initializer=keras.initializers.VarianceScaling(
            2.0, mode="fan_in", distribution="untruncated_normal"
        ),
        name=f"{name}_conv",
    )(x)
    x = batch_norm(x, f"{name}_bn")
    return Activation("silu", name=f"{name}_act")(x)


def inverted_residual(
    x, filters: int, expansion: int, name: str, strides: int = 1, dilation: int = 1
):
    """MobileNetV2's block ("MV2" in Figure 1b), with swish.

    The input is added back where shape allows it: stride 1 and as many channels out
    as in.

    Args:
        x: feature map `[batch, height, width, channels]`.
        filters: output channels.
        expansion: hidden channels are this times the input's, rounded to eights.
        name: prefix of the layers' names.
        strides: 1 or 2, of the depthwise convolution.
        dilation: of the depthwise convolution; more than 1 takes stride 1.

    Returns:
        Feature map `[batch, ceil(height / strides), ceil(width / strides), filters]`.
    """
    inputs = x
    channels = x.shape[-1]
    x = conv_bn_act(x, make_divisible(channels * expansion), 1, f"{name}_expand")
    x = depthwise_bn_act(x, f"{name}_depthwise", strides, dilation)
    x = conv_bn(x, filters, 1, f"{name}_project")
    if strides == 1 and channels == filters:
        x = layers.Add(name=f"{name}_add")([inputs, x])
    return x


def _check_patch_size(patch_size) -> int:
    if int(patch_size) < 1:
        raise ValueError(
            f"`patch_size` must be a positive integer. Received: {patch_size}."
        )
    return int(patch_size)


def _round_up(size, multiple: int):
    return (size + multiple - 1) // multiple * multiple


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class Unfold(layers.Layer):
    """Cuts a feature map into patches and lines up their pixels (section 3.1).

    Pixel `p` of every patch forms one sequence, so that attention runs between
    patches and separately for each of the `P = patch_size ** 2` pixel positions.
    A map that the patch does not divide is first resized, bilinearly, to the next
    multiple.

    Args:
        patch_size: side of a patch, in pixels of the feature map.

    Input shape: `[batch, height, width, channels]`, height and width may be `None`.

    Output shape: `[batch * P, N, channels]` with `N` patches in row-major order. Pixel
    positions (row-major too) vary faster than the batch.
    """

    def __init__(self, patch_size: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = _check_patch_size(patch_size)

    def call(self, x):
        patch = self.patch_size
        _, height, width, channels = ops.shape(x)
        height, width = _round_up(height, patch), _round_up(width, patch)
        x = resize_bilinear(x, height, width)
        rows, columns = height // patch, width // patch
        # Nothing above rank 4: mobile delegates refuse it.
        x = ops.reshape(x, (-1, rows, patch, width * channels))
        x = ops.transpose(x, (0, 2, 1, 3))  # [B, patch row, rows, W * C]
        x = ops.reshape(x, (-1, rows * columns, patch, channels))
        x = ops.transpose(x, (0, 2, 1, 3))  # [B * patch rows, patch column, N, C]
        return ops.reshape(x, (-1, rows * columns, channels))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        patches = None
        if height is not None and width is not None:
            patches = -(-height // self.patch_size) * -(-width // self.patch_size)
        return (batch and batch * self.patch_size**2, patches, channels)

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class Fold(layers.Layer):
    """Puts the pixels of the patches back where `Unfold` took them from.

    Args:
        patch_size: side of a patch, as given to `Unfold`.

    Inputs: the tokens `[batch * P, N, channels]`, and the feature map that was
    unfolded, which only lends its height and width.

    Output shape: `[batch, height, width, channels]`.
    """

    def __init__(self, patch_size: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = _check_patch_size(patch_size)

    def call(self, tokens, features):
        patch = self.patch_size
        _, height, width, _ = ops.shape(features)
        channels = tokens.shape[-1]
        rows = _round_up(height, patch) // patch
        columns = _round_up(width, patch) // patch
        x = ops.reshape(tokens, (-1, patch, rows * columns, channels))
        x = ops.transpose(x, (0, 2, 1, 3))  # [B * patch rows, N, patch column, C]
        x = ops.reshape(x, (-1, patch, rows, columns * patch * channels))
        x = ops.transpose(x, (0, 2, 1, 3))  # [B, rows, patch row, W * C]
        x = ops.reshape(x, (-1, rows * patch, columns * patch, channels))
        return resize_bilinear(x, height, width)

    def compute_output_shape(self, tokens_shape, features_shape):
        return (*features_shape[:3], tokens_shape[-1])

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class DotProductAttention(layers.Layer):
    """Multi-head attention between projected queries, keys and values.

    Stateless: the projections are `Dense` layers beside it. One matrix product a
    step and nothing above rank 4, which trains faster on a CPU than slices of one
    fused projection, and converts to plain TFLite operations.

    Args:
        num_heads: number of heads; divides the channels.

    Inputs: query, key and value, each `[batch, tokens, channels]`.

    Output shape: `[batch, tokens, channels]`.
    """

    def __init__(self, num_heads: int, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = int(num_heads)

    def build(self, query_shape, key_shape, value_shape):
        if query_shape[-1] % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the channels. Received: num_heads="
                f"{self.num_heads} and channels={query_shape[-1]}."
            )

    def call(self, query, key, value, training=None):
        _, tokens, channels = ops.shape(query)
        head_dim = channels // self.num_heads

        def split_heads(x):  # to [B, heads, tokens, head_dim]
            x = ops.reshape(x, (-1, tokens, self.num_heads, head_dim))
            return ops.transpose(x, (0, 2, 1, 3))

        with warnings.catch_warnings():
            # At 32 pixels there is one token, whose softmax is rightly always 1.
            warnings.filterwarnings("ignore", "You are using a softmax over axis")
            x = attention(
                split_heads(query * head_dim**-0.5),
                split_heads(key),
                split_heads(value),
                training,
            )
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, tokens, channels))

    def compute_output_shape(self, query_shape, key_shape, value_shape):
        return query_shape

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}


def transformer_layer(x, num_heads: int, dropout: float, name: str):
    """A pre-norm transformer layer with swish between its feed-forward layers.

    Args:
        x: tokens `[batch, tokens, channels]`.
        num_heads: number of attention heads.
        dropout: rate after the attention's and after the feed-forward's last layer.
        name: prefix of the layers' names.

    Returns:
        Tokens of the same shape.
    """
    channels = x.shape[-1]
    y = layer_norm(x, f"{name}_attention_norm")
    query, key, value = (
        dense(channels, f"{name}_attention_{part}")(y)
        for part in ("query", "key", "value")
    )
    y = DotProductAttention(num_heads, name=f"{name}_attention")(query, key, value)
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
    x,
    transformer_dim: int,
    depth: int,
    num_heads: int,
    patch_size: int,
    dropout: float,
    name: str,
):
    """The MobileViT block (Figure 1b, section 3.1): convolutions see near, tokens far.

    Args:
        x: feature map `[batch, height, width, channels]`.
        transformer_dim: channels `d` of the tokens.
        depth: number `L` of transformer layers.
        num_heads: attention heads of each.
        patch_size: side of a patch, in pixels of the feature map.
        dropout: rate inside the transformer layers.
        name: prefix of the layers' names.

    Returns:
        Feature map of the input's shape.
    """
    channels = x.shape[-1]
    # Local representation: n x n convolution, then a projection to d channels.
    y = conv_bn_act(x, channels, 3, f"{name}_local")
    local = conv(y, transformer_dim, 1, 1, f"{name}_local_project")
    # Global representation: transformers over the unfolded patches.
    tokens = Unfold(patch_size, name=f"{name}_unfold")(local)
    for i in range(depth):
        tokens = transformer_layer(tokens, num_heads, dropout, f"{name}_transformer{i}")
    tokens = layer_norm(tokens, f"{name}_norm")
    y = Fold(patch_size, name=f"{name}_fold")(tokens, local)
    # Fusion: back to C channels, beside the input, which comes first.
    y = conv_bn_act(y, channels, 1, f"{name}_global_project")
    y = layers.Concatenate(name=f"{name}_concat")([x, y])
    return conv_bn_act(y, channels, 3, f"{name}_fusion")
