"""The backbone: computes feature maps at five strides from an image."""

import os
import pkgutil
import re

import keras
from keras import layers

from keras_mobilevit.argument_checks import check_input_shape, check_weights
from keras_mobilevit.backend import Tensor
from keras_mobilevit.blocks import conv_bn_act, inverted_residual
from keras_mobilevit.configs import (
    FAMILIES,
    FIRST_BLOCK,
    TRANSFORMER_DEPTHS,
    ModelConfig,
    get_variant,
)
from keras_mobilevit.weights.hub import CLASSIFIER_WEIGHTS, weights_file
from keras_mobilevit.weights.load import load_backbone

BACKBONE_STRIDES = (8, 16, 32)
# Names of the layers with weights, but not those that a user gives, such as
# `stage_logits`. The 1x1 convolution before MobileViT's classifier is published with
# the backbone.
_OWN_LAYERS = re.compile(r"(stem|stage[1-5]_(mv\d|vit))_|head_(conv|bn|act)$")

# The import registers the layers of the blocks with Keras.
for _family in FAMILIES:
    pkgutil.resolve_name(_family.block)


def feature_maps(
    x: Tensor, config: ModelConfig, output_stride: int = 32
) -> dict[str, Tensor]:
    """Applies the stem and the five stages to RGB images with values in [0, 1].

    Returns the outputs of stages 1 to 5 as `"P1"` to `"P5"`, which are also the names
    of layers. `"Pn"` has the stride `min(2**n, output_stride)`: at an output stride of
    8 or 16, later stages keep the size of their input. A side of `s` pixels becomes
    `ceil(s / 2)` at each stride. In stages 3 to 5 of MobileViTv2, it is then rounded up
    to an even number.
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
        # The last layer of a stage has another name in each family. This one does not.
        x = layers.Identity(name=f"P{stage}")(x)
        maps[f"P{stage}"] = x
    return maps


def MobileViTBackbone(
    variant: str = "mobilevit_s",
    *,
    weights: str | os.PathLike | None = "imagenet",
    output_stride: int = 32,
    input_shape: tuple = (None, None, 3),
    include_preprocessing: bool = True,
    name: str | None = None,
) -> keras.Model:
    """Feature maps at five strides, for a decoder or a head of your own.

    Args:
        variant: a name of `keras_mobilevit.VARIANTS`, such as `"mobilevit_s"` or
            `"mobilevitv2_100"`.
        weights: `"imagenet"` (the published weights, downloaded once),
            `"imagenet22k"` (`"mobilevitv2_175"` only), `None` (random initialization),
            or a file of any model with this backbone, by its path or its address on the
            Hugging Face Hub, `hf://owner/name`; see `keras_mobilevit.load_backbone`.
        output_stride: stride of the last map. At 32, the maps have the strides 2, 4, 8,
            16 and 32. At 16 or 8, later stages keep the size of their input, and
            convolutions are dilated instead, as in `DeepLabV3`.
        input_shape: `(height, width, channels)`; height and width may be `None`.
        include_preprocessing: if true, the model expects values in [0, 255] and scales
            them; if false, it expects values in [0, 1]. Images are RGB.
        name: name of the model.

    Returns:
        A functional `keras.Model` from images `[batch, height, width, channels]` to a
        dict of feature maps `"P1"` to `"P5"`, the outputs of the five stages. `"P3"` is
        `[batch, height / 8, width / 8, channels]`, with sides rounded up. In every
        model of this package, layers of these names have the same outputs. With
        `trainable = False`, batch normalization keeps its statistics.

    Raises:
        ValueError: if an argument is not valid, or if the weights do not fit; the
            message says what was expected.
        OSError: if the published weights are not cached and cannot be downloaded.

    Example:
    >>> backbone = keras_mobilevit.MobileViTBackbone("mobilevit_xxs", weights=None)
    >>> backbone.trainable = False  # trains only what you add
    >>> maps = backbone(keras.Input((256, 256, 3)))
    >>> maps["P3"].shape, maps["P5"].shape
    ((None, 32, 32, 48), (None, 8, 8, 80))

    Source: Table 4 of https://arxiv.org/abs/2110.02178; output strides as in section
    4.2.
    """
    config = get_variant(variant)
    check_weights(weights, CLASSIFIER_WEIGHTS)
    if output_stride not in BACKBONE_STRIDES:
        raise ValueError(
            "`output_stride` must be 8, 16 or 32. "
            f"Received: output_stride={output_stride!r}."
        )
    inputs = keras.Input(check_input_shape(input_shape, weights), name="images")
    x = inputs
    if include_preprocessing:
        x = layers.Rescaling(1 / 255, name="rescaling")(x)
    maps = feature_maps(x, config, output_stride)
    model = keras.Model(inputs, maps, name=name or f"{config.name}_backbone")
    if weights is not None:
        load_backbone(model, weights_file(weights, config.name))
    return model


def freeze_backbone(model: keras.Model) -> None:
    """Makes only the head of a model trainable: phase one of fine-tuning.

    Frozen batch normalization keeps its statistics. Compile the model afterwards.

    Args:
        model: a classifier, detector or segmenter of this package, or a functional
            model with layers added to one.

    Raises:
        ValueError: if the model has no backbone among its layers.

    Example:
    >>> model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=3)
    >>> keras_mobilevit.freeze_backbone(model)
    >>> model.compile("adam")
    """
    _set_trainable(model, False)


def unfreeze_backbone(model: keras.Model) -> None:
    """Makes the backbone trainable again: phase two of fine-tuning.

    Compile the model afterwards. `model.trainable = True` is not enough: Keras ignores
    it if the model itself was not frozen.

    Args:
        model: a model whose backbone `freeze_backbone` froze.

    Raises:
        ValueError: if the model has no backbone among its layers.

    Example:
    >>> keras_mobilevit.unfreeze_backbone(model)
    >>> model.compile(keras.optimizers.Adam(1e-5))
    """
    _set_trainable(model, True)


def _set_trainable(model: keras.Model, is_trainable: bool) -> None:
    found = [layer for layer in model.layers if _OWN_LAYERS.match(layer.name)]
    if not found:
        raise ValueError(
            f"The model {model.name!r} has no layers of a MobileViT's backbone. If the "
            "backbone is one layer of it, set `trainable` of that layer."
        )
    if is_trainable and not model.trainable:
        model.trainable = True  # else the flags of its layers have no effect
    for layer in found:
        layer.trainable = is_trainable
