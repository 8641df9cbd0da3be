"""The MobileViT backbone: computes feature maps at five strides from an image."""

from keras_mobilevit.backend import Tensor
from keras_mobilevit.blocks import conv_bn_act, inverted_residual, mobilevit_block
from keras_mobilevit.configs import TRANSFORMER_DEPTHS, ModelConfig


def feature_maps(
    x: Tensor, config: ModelConfig, output_stride: int = 32
) -> dict[str, Tensor]:
    """Applies the stem and the five stages to RGB images with values in [0, 1].

    Returns the outputs of stages 1 to 5 as `"P1"` to `"P5"`. `"Pn"` has the stride
    `s = min(2**n, output_stride)` and the shape
    `[batch, ceil(height / s), ceil(width / s), channels]`: at an output stride of 8 or
    16, later stages keep the size of their input.
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
    stride, dilation = 4, 1
    for stage, (channels, dim, depth) in enumerate(rows, start=3):
        strides = 2 if stride < output_stride else 1
        x = inverted_residual(
            x, channels, expansion, f"stage{stage}_mv0", strides, dilation
        )
        # The published networks replace a stride by dilation only in later stages, not
        # in the stage that omits the stride: at stride 16 nothing is dilated.
        stride, dilation = stride * strides, dilation * 2 // strides
        maps[f"P{stage}"] = x = mobilevit_block(
            x, dim, depth, config.dropout, f"stage{stage}_vit"
        )
    return maps
