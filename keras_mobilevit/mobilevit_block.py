"""The MobileViT block (Figure 1b of https://arxiv.org/abs/2110.02178)."""

from keras import layers

from keras_mobilevit.backend import Activation, Tensor
from keras_mobilevit.blocks import conv, conv_bn_act, dense
from keras_mobilevit.layers import PATCH_SIZE, DotProductAttention, Fold, Unfold

NUM_HEADS = 4
LAYER_NORM_EPSILON = 1e-5


def layer_norm(x: Tensor, name: str) -> Tensor:
    """Applies layer normalization over the last axis."""
    return layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=name)(x)


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
    x: Tensor,
    transformer_dim: int,
    depth: int,
    dropout: float,
    dilation: int,
    name: str,
) -> Tensor:
    """Applies the MobileViT block (Figure 1b, section 3.1) to a feature map.

    Convolutions combine neighboring pixels. `depth` transformers on tokens of
    `transformer_dim` channels combine distant patches. The dilation is ignored: in the
    published segmenters only MobileNetV2 blocks are dilated.
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
