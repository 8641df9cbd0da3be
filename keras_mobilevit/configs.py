"""The MobileViT variants as one table.

Source: Mehta and Rastegari, "MobileViT: Light-weight, General-purpose, and
Mobile-friendly Vision Transformer", https://arxiv.org/abs/2110.02178, Table 4.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One column of Table 4.

    A network is a strided 3x3 convolution (the stem), five stages, and a 1x1
    convolution before the classifier (the head). Stages 1 and 2 are MobileNetV2 blocks;
    stages 3, 4 and 5 are a strided MobileNetV2 block and a MobileViT block.

    Attributes:
        name: lower-case name of the variant.
        stem_channels: output channels of the stem, at stride 2.
        stage_channels: output channels of the stages, at strides 2, 4, 8, 16 and 32.
        transformer_dims: width `d` of the transformers in stages 3, 4 and 5. Their
            feed-forward layers are twice as wide (section 4.1 of the paper).
        head_channels: output channels of the head.
        expansion: expansion ratio of the MobileNetV2 blocks.
        dropout: rate after attention and feed-forward layers.
    """

    name: str
    stem_channels: int
    stage_channels: tuple[int, int, int, int, int]
    transformer_dims: tuple[int, int, int]
    head_channels: int
    expansion: int
    dropout: float


# The same for every variant (Table 4 and section 4.1).
TRANSFORMER_DEPTHS = (2, 4, 3)  # layers in the blocks of stages 3, 4 and 5
NUM_HEADS = 4
PATCH_SIZE = 2
CLASSIFIER_DROPOUT = 0.1
MIN_SIZE = 32  # a smaller image side leaves less than one pixel at stride 32
# The sizes at which the paper trains and evaluates (sections 4.1 and 4.2).
CLASSIFIER_SIZE = 256
DETECTOR_SIZE = 320
SEGMENTER_SIZE = 512

# Trainable parameters with 1,000 classes, and top-1 accuracy of the published weights
# on ImageNet-1k at 256x256, from examples/README-mobilevit.md of ml-cvnets 0.1. The
# paper (section 4.1) states 69.0, 74.8 and 78.4.
#   mobilevit_xxs  1,272,024  69.0
#   mobilevit_xs   2,317,848  74.7
#   mobilevit_s    5,578,632  78.3
_ROWS = (
    # name          stem  stages 1 to 5            d of stages 3-5  head  exp.  dropout
    ("mobilevit_xxs", 16, (16, 24, 48, 64, 80), (64, 80, 96), 320, 2, 0.05),
    ("mobilevit_xs", 16, (32, 48, 64, 80, 96), (96, 120, 144), 384, 4, 0.1),
    ("mobilevit_s", 16, (32, 64, 96, 128, 160), (144, 192, 240), 640, 4, 0.1),
)

VARIANTS = {row[0]: ModelConfig(*row) for row in _ROWS}


def get_variant(name: str) -> ModelConfig:
    """Returns the configuration of a variant, whose name may be in upper case."""
    config = VARIANTS.get(str(name).lower())
    if config is None:
        raise ValueError(
            f"Unknown model {name!r}. Expected one of: {', '.join(VARIANTS)}."
        )
    return config
