"""The backbone: computes feature maps at five strides from an image."""

import pkgutil

from keras_mobilevit.backend import Tensor
from keras_mobilevit.blocks import conv_bn_act, inverted_residual
from keras_mobilevit.configs import (
    FAMILIES,
    FIRST_BLOCK,
    TRANSFORMER_DEPTHS,
    ModelConfig,
)

# The import registers the layers of the blocks with Keras.
for _family in FAMILIES:
    pkgutil.resolve_name(_family.block)


def feature_maps(
    x: Tensor, config: ModelConfig, output_stride: int = 32
) -> dict[str, Tensor]:
    """Applies the stem and the five stages to RGB images with values in [0, 1].

    Returns the outputs of stages 1 to 5 as `"P1"` to `"P5"`. `"Pn"` has the stride
    `min(2**n, output_stride)`: at an output stride of 8 or 16, later stages keep the
    size of their input. A side of `s` pixels becomes `ceil(s / 2)` at each stride. In
    stages 3 to 5 of MobileViTv2, it is then rounded up to an even number.
    """
    stages = zip(config.stage_channels, config.family.mobilenet_blocks)
    add_transformers = pkgutil.resolve_name(config.family.block)
    x = conv_bn_act(x, config.stem_channels, 3, "stem", strides=2)
    stride, dilation, maps = 2, 1, {}
    for stage, (channels, blocks) in enumerate(stages, start=1):
        name = f"stage{stage}"
        strides = 2 if 1 < stage and stride < output_stride else 1
        x = inverted_residual(
            x, channels, config.expansion, f"{name}_mv0", strides, dilation
        )
        for block in range(1, blocks):
            x = inverted_residual(x, channels, config.expansion, f"{name}_mv{block}")
        stride *= strides
        if stage >= FIRST_BLOCK:
            # The published networks replace a stride by dilation only after the
            # MobileNetV2 block that omits the stride.
            dilation = dilation * 2 // strides
            index = stage - FIRST_BLOCK
            x = add_transformers(
                x,
                config.transformer_dims[index],
                TRANSFORMER_DEPTHS[index],
                config.dropout,
                dilation,
                f"{name}_vit",
            )
        maps[f"P{stage}"] = x
    return maps
