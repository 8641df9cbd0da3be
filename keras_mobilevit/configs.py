"""The variants of the networks as one table, and what the variants of a family share.

Sources: Mehta and Rastegari, "MobileViT: Light-weight, General-purpose, and
Mobile-friendly Vision Transformer", https://arxiv.org/abs/2110.02178, Table 4, and
"Separable Self-attention for Mobile Vision Transformers",
https://arxiv.org/abs/2206.02680.
"""

import dataclasses

# The same for every variant of every family.
FIRST_BLOCK = 3  # the first stage with transformers
TRANSFORMER_DEPTHS = (2, 4, 3)  # layers in the blocks of stages 3, 4 and 5
MIN_SIZE = 32  # a smaller image side leaves less than one pixel at stride 32
# The sizes at which the papers train and evaluate (sections 4.1 and 4.2 of MobileViT).
CLASSIFIER_SIZE = 256
DETECTOR_SIZE = 320
SEGMENTER_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Family:
    """What the variants of a family share.

    Attributes:
        title: name of the networks.
        paper: title and address of the paper.
        block: `"module:name"` of the function that adds the transformers to stages 3, 4
            and 5, so that this table does not load Keras. The function takes a feature
            map, the width and the number of the transformers, the dropout rate, the
            dilation of convolutions, and a name.
        mobilenet_blocks: number of MobileNetV2 blocks in stages 1 to 5.
        has_head: whether a 1x1 convolution precedes the classifier.
        map_multiple: the sides of the feature maps of stages 3, 4 and 5 are rounded up
            to a multiple of this.
        classifier_dropout: rate before the classifier.
        aspp_channels: channels of the spatial pyramid in the published segmenters.
        aligns_corners: whether the published segmenters resize their logits so that the
            centers of the corner pixels stay in place.
    """

    title: str
    paper: str
    block: str
    mobilenet_blocks: tuple[int, int, int, int, int]
    has_head: bool
    map_multiple: int
    classifier_dropout: float
    aspp_channels: int
    aligns_corners: bool


MOBILEVIT = Family(
    title="MobileViT",
    paper="[MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision "
    "Transformer](https://arxiv.org/abs/2110.02178)",
    block="keras_mobilevit.mobilevit_block:mobilevit_block",
    mobilenet_blocks=(1, 3, 1, 1, 1),
    has_head=True,
    map_multiple=1,
    classifier_dropout=0.1,
    aspp_channels=256,
    aligns_corners=False,
)
MOBILEVITV2 = Family(
    title="MobileViTv2",
    paper="[Separable Self-attention for Mobile Vision Transformers]"
    "(https://arxiv.org/abs/2206.02680)",
    block="keras_mobilevit.mobilevitv2_block:mobilevitv2_block",
    mobilenet_blocks=(1, 2, 1, 1, 1),
    has_head=False,
    map_multiple=2,
    classifier_dropout=0.0,
    aspp_channels=512,
    aligns_corners=True,
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One variant of a family.

    A network is a strided 3x3 convolution (the stem), five stages, and, if the family
    has it, a 1x1 convolution before the classifier (the head). Stages 1 and 2 are
    MobileNetV2 blocks; stages 3, 4 and 5 are a strided MobileNetV2 block and a block of
    transformers.

    Attributes:
        family: what the variant shares with others.
        title: name of the public function; the variant's name in lower case.
        parameters: trainable parameters of the classifier with 1,000 classes.
        top1: accuracy of the published weights on ImageNet-1k at 256x256, in percent.
        stem_channels: output channels of the stem, at stride 2.
        stage_channels: output channels of the stages, at strides 2, 4, 8, 16 and 32.
        transformer_dims: width `d` of the transformers in stages 3, 4 and 5. Their
            feed-forward layers are twice as wide (section 4.1 of the paper).
        head_channels: output channels of the head; 0 if there is none.
        expansion: expansion ratio of the MobileNetV2 blocks.
        dropout: rate after attention and feed-forward layers.
    """

    family: Family
    title: str
    parameters: int
    top1: float
    stem_channels: int
    stage_channels: tuple[int, int, int, int, int]
    transformer_dims: tuple[int, int, int]
    head_channels: int
    expansion: int
    dropout: float

    @property
    def name(self) -> str:
        """Name of the variant."""
        return self.title.lower()


# Top-1 is from the authors' releases: examples/README-mobilevit.md of ml-cvnets 0.1,
# and the model zoo of ml-cvnets 0.2. MobileViT's paper (section 4.1) states 69.0, 74.8
# and 78.4.
# fmt: off
_MOBILEVIT = (
    # title, parameters, top-1, channels of the stem and of stages 1 to 5,
    # d of stages 3 to 5, channels of the head, expansion, dropout
    ("MobileViT_XXS", 1_272_024, 69.0, 16, (16, 24, 48, 64, 80),
     (64, 80, 96), 320, 2, 0.05),
    ("MobileViT_XS", 2_317_848, 74.7, 16, (32, 48, 64, 80, 96),
     (96, 120, 144), 384, 4, 0.1),
    ("MobileViT_S", 5_578_632, 78.3, 16, (32, 64, 96, 128, 160),
     (144, 192, 240), 640, 4, 0.1),
)
# fmt: on
# The width multiplies all channels. Only these widths were published.
_MOBILEVITV2 = (
    # title, width, parameters, top-1
    ("MobileViTV2_050", 0.50, 1_370_593, 70.2),
    ("MobileViTV2_075", 0.75, 2_866_009, 75.6),
    ("MobileViTV2_100", 1.00, 4_901_841, 78.1),
    ("MobileViTV2_125", 1.25, 7_478_089, 79.7),
    ("MobileViTV2_150", 1.50, 10_594_753, 80.4),
    ("MobileViTV2_175", 1.75, 14_251_833, 80.8),
    ("MobileViTV2_200", 2.00, 18_449_329, 81.2),
)


def _mobilevitv2(title: str, width: float, parameters: int, top1: float) -> ModelConfig:
    stem, c1, c2, c3, c4, c5 = (int(width * n) for n in (32, 64, 128, 256, 384, 512))
    channels, dims = (c1, c2, c3, c4, c5), (c3 // 2, c4 // 2, c5 // 2)
    return ModelConfig(
        MOBILEVITV2, title, parameters, top1, stem, channels, dims, 0, 2, 0.0
    )


_CONFIGS = (
    *(ModelConfig(MOBILEVIT, *row) for row in _MOBILEVIT),
    *(_mobilevitv2(*row) for row in _MOBILEVITV2),
)
VARIANTS = {config.name: config for config in _CONFIGS}
"""A dict of all variants: a name such as `"mobilevit_s"`, and its configuration."""
FAMILIES = tuple(dict.fromkeys(config.family for config in _CONFIGS))


def get_variant(name: str) -> ModelConfig:
    """Returns the configuration of a variant, whose name may be in upper case."""
    config = VARIANTS.get(str(name).lower())
    if config is None:
        raise ValueError(
            f"Unknown model {name!r}. Expected one of: {', '.join(VARIANTS)}."
        )
    return config
