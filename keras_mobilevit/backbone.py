"""The MobileViT backbone: an image in, feature maps at five strides out."""

from keras_mobilevit.configs import (
    NUM_HEADS,
    PATCH_SIZE,
    TRANSFORMER_DEPTHS,
    ModelConfig,
)
from keras_mobilevit.layers import conv_bn_act, inverted_residual, mobilevit_block


def feature_maps(x, config: ModelConfig) -> dict:
    """Applies the stem and the five stages to an image tensor.

    Args:
        x: images `[batch, height, width, channels]`, values in [0, 1], RGB.
        config: the variant.

    Returns:
        The outputs of stages 1 to 5 as `"P1"` to `"P5"`, where `"Pn"` has stride
        `2**n`: `[batch, ceil(height / 2**n), ceil(width / 2**n), channels]`.
    """
    c1, c2, *block_channels = config.stage_channels
    expansion = config.expansion
    maps = {}

    x = conv_bn_act(x, config.stem_channels, 3, "stem", strides=2)
    maps["P1"] = x = inverted_residual(x, c1, expansion, "stage1_mv0")

    x = inverted_residual(x, c2, expansion, "stage2_mv0", strides=2)
    x = inverted_residual(x, c2, expansion, "stage2_mv1")
    maps["P2"] = x = inverted_residual(x, c2, expansion, "stage2_mv2")

    rows = zip(block_channels, config.transformer_dims, TRANSFORMER_DEPTHS)
    for stage, (channels, dim, depth) in enumerate(rows, start=3):
        x = inverted_residual(x, channels, expansion, f"stage{stage}_mv0", strides=2)
        maps[f"P{stage}"] = x = mobilevit_block(
            x, dim, depth, NUM_HEADS, PATCH_SIZE, config.dropout, f"stage{stage}_vit"
        )
    return maps
