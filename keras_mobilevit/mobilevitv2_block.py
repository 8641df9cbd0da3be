"""The MobileViTv2 block (https://arxiv.org/abs/2206.02680).

Source of the constants and of what the paper leaves open: ml-cvnets 0.2.
"""

from keras import layers

from keras_mobilevit.backend import Activation, Tensor
from keras_mobilevit.blocks import conv, conv_bn, depthwise_bn, linear_initializer
from keras_mobilevit.layers import (
    PATCH_SIZE,
    ContextPooling,
    Fold,
    ResizeToMultiple,
    Unfold,
)

GROUP_NORM_EPSILON = 1e-5


def image_norm(x: Tensor, name: str) -> Tensor:
    """Normalizes by the mean and variance of all numbers of an image."""
    return layers.GroupNormalization(1, epsilon=GROUP_NORM_EPSILON, name=name)(x)


def project(x: Tensor, filters: int, name: str) -> Tensor:
    """Applies a 1x1 convolution with bias, a linear layer of tokens.

    The published code initializes it as other convolutions. With the smaller spread of
    MobileViT's linear layers, a transformer starts close to the identity, and a short
    training from scratch learns much more (docs/benchmarks.md).
    """
    return conv(x, filters, 1, 1, name, use_bias=True, initializer=linear_initializer())


def separable_attention(x: Tensor, name: str) -> Tensor:
    """Applies separable self-attention (section 3.2) to tokens `[batch, P, N, d]`.

    Each token has one score. The softmax of the scores over the `N` patches weights the
    sum of the keys, the context vector. It multiplies the values of all tokens.
    """
    channels = x.shape[-1]
    scores = project(x, 1, f"{name}_query")
    # The weights of a sum add up to 1, so the weighted sum of the keys is the key of
    # the weighted sum. The paper projects all tokens first, and sums then.
    context = ContextPooling(name=f"{name}_context")(scores, x)  # [B, P, 1, d]
    context = project(context, channels, f"{name}_key")
    value = project(x, channels, f"{name}_value")
    value = layers.ReLU(name=f"{name}_value_act")(value)
    y = layers.Multiply(name=f"{name}_scale")([value, context])
    return project(y, channels, f"{name}_output")


def linear_transformer_layer(x: Tensor, name: str) -> Tensor:
    """Applies a pre-norm transformer layer to tokens `[batch, P, N, d]`."""
    channels = x.shape[-1]
    y = image_norm(x, f"{name}_attention_norm")
    y = separable_attention(y, f"{name}_attention")
    x = layers.Add(name=f"{name}_attention_add")([x, y])

    y = image_norm(x, f"{name}_ffn_norm")
    y = project(y, 2 * channels, f"{name}_ffn_expand")
    y = Activation("silu", name=f"{name}_ffn_act")(y)
    y = project(y, channels, f"{name}_ffn_project")
    return layers.Add(name=f"{name}_ffn_add")([x, y])


def mobilevitv2_block(
    x: Tensor,
    transformer_dim: int,
    depth: int,
    dropout: float,
    dilation: int,
    name: str,
) -> Tensor:
    """Applies the MobileViTv2 block to a feature map.

    A depthwise convolution, which has the dilation, combines neighboring pixels.
    `depth` transformers on tokens of `transformer_dim` channels combine distant
    patches. Unlike MobileViT's, the block has no fusion with its input and no
    activation at its end. The dropout rate is ignored: the published networks have no
    dropout.

    The result is `[batch, height, width, channels]` with the channels of `x`, and with
    its height and width rounded up to even numbers.
    """
    channels = x.shape[-1]
    x = ResizeToMultiple(PATCH_SIZE, name=f"{name}_resize")(x)
    # Local representation: a depthwise convolution, then a projection to d channels.
    y = depthwise_bn(x, f"{name}_local", dilation=dilation)
    y = Activation("silu", name=f"{name}_local_act")(y)
    local = conv(y, transformer_dim, 1, 1, f"{name}_local_project")
    # Global representation: transformers on the tokens [B, P, N, d].
    tokens = Unfold(PATCH_SIZE, per_image=True, name=f"{name}_unfold")(local)
    for i in range(depth):
        tokens = linear_transformer_layer(tokens, f"{name}_transformer{i}")
    tokens = image_norm(tokens, f"{name}_norm")
    y = Fold(PATCH_SIZE, name=f"{name}_fold")(tokens, local)
    return conv_bn(y, channels, 1, f"{name}_global_project")
