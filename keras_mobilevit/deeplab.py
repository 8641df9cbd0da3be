"""DeepLabv3: a segmenter with a MobileViT or MobileViTv2 backbone.

Source: section 4.2 of MobileViT, https://arxiv.org/abs/2110.02178, Table 2; DeepLabv3,
https://arxiv.org/abs/1706.05587.
"""

import os
from typing import Any

import keras
from keras import layers, ops

from keras_mobilevit.argument_checks import (
    check_input_shape,
    check_positive,
    check_weights,
    is_positive,
)
from keras_mobilevit.backbone import MobileViTBackbone
from keras_mobilevit.backend import Tensor, output_dtype, resize_bilinear
from keras_mobilevit.blocks import batch_norm, conv
from keras_mobilevit.configs import SEGMENTER_SIZE, ModelConfig, get_variant
from keras_mobilevit.weights.hub import (
    CLASSIFIER_WEIGHTS,
    VOC_FILES,
    weights_file,
)
from keras_mobilevit.weights.load import load_weights
from keras_mobilevit.weights.pytorch_layout import family_of

VOC_CLASSES = 21  # including the background
OUTPUT_STRIDES = (8, 16)
RATES = (6, 12, 18)
DROPOUT = 0.1
MIN_AUXILIARY_CHANNELS = 128

CLASSIFIER = "deeplab_classifier"  # name of a layer that only segmenters have


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class ResizeLike(layers.Layer):
    """Resizes feature maps bilinearly to the height and width of another tensor.

    Args:
        align_corners: whether the centers of the corner pixels stay in place. If not,
            pixels have half-pixel centers.

    Inputs: feature maps `[batch, rows, columns, channels]` and a tensor
    `[batch, height, width, any]`, whose height and width may be `None`.
    """

    def __init__(self, align_corners: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.align_corners = bool(align_corners)

    def call(self, x: Tensor, like: Tensor) -> Tensor:
        """Resizes `x` to the size of `like`."""
        _, height, width, _ = ops.shape(like)
        return resize_bilinear(x, height, width, self.align_corners)

    def compute_output_shape(self, x_shape: tuple, like_shape: tuple) -> tuple:
        """Returns the shape of the resized feature maps."""
        return (*like_shape[:3], x_shape[-1])

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "align_corners": self.align_corners}


def _conv_bn_relu(
    x: Tensor, filters: int, kernel_size: int, name: str, dilation: int = 1
) -> Tensor:
    x = conv(x, filters, kernel_size, 1, name, dilation)
    x = batch_norm(x, f"{name}_bn")
    return layers.ReLU(name=f"{name}_act")(x)


def _classify(x: Tensor, classes: int, name: str) -> Tensor:
    # Keras's default initialization. With the published code's, the first logits depend
    # on the number of classes: about 10 for two classes, and 3 for twenty-one.
    return layers.Conv2D(classes, 1, dtype=output_dtype(), name=name)(x)


def spatial_pyramid(x: Tensor, channels: int, rates: tuple[int, int, int]) -> Tensor:
    """Applies atrous spatial pyramid pooling (section 3.3 of DeepLabv3).

    `channels` are those of each branch and of the result, `rates` the dilations of the
    three 3x3 convolutions.
    """
    branches = [_conv_bn_relu(x, channels, 1, "deeplab_aspp0")]
    for i, rate in enumerate(rates, start=1):
        branches.append(_conv_bn_relu(x, channels, 3, f"deeplab_aspp{i}", rate))
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="deeplab_pool")(x)
    pooled = _conv_bn_relu(pooled, channels, 1, "deeplab_pool")
    branches.append(ResizeLike(name="deeplab_pool_resize")(pooled, x))
    x = layers.Concatenate(name="deeplab_concat")(branches)
    x = _conv_bn_relu(x, channels, 1, "deeplab_project")
    return layers.Dropout(DROPOUT, name="deeplab_project_dropout")(x)


def segmentation_head(
    maps: dict[str, Tensor], classes: int, channels: int, rates: tuple[int, int, int]
) -> Tensor:
    """Predicts logits `[batch, height, width, classes]` of the size of `maps["P5"]`."""
    x = spatial_pyramid(maps["P5"], channels, rates)
    # A second dropout, of whole channels, as in the authors' release.
    x = layers.SpatialDropout2D(DROPOUT, name="deeplab_dropout")(x)
    return _classify(x, classes, CLASSIFIER)


def auxiliary_head(maps: dict[str, Tensor], classes: int) -> Tensor:
    """Predicts logits of the size of `maps["P4"]`, for an auxiliary loss."""
    x = maps["P4"]
    channels = max(x.shape[-1] // 4, MIN_AUXILIARY_CHANNELS)
    x = _conv_bn_relu(x, channels, 3, "deeplab_auxiliary")
    x = layers.SpatialDropout2D(DROPOUT, name="deeplab_auxiliary_dropout")(x)
    return _classify(x, classes, "deeplab_auxiliary_classifier")


def is_segmenter(model: keras.Model) -> bool:
    """Tells whether a model has the classifier of `DeepLabV3`."""
    return any(layer.name == CLASSIFIER for layer in model.layers)


def aligns_corners(model: keras.Model) -> bool:
    """Tells whether a segmenter's logits are resized with the corners in place.

    The family tells, also for a model made with `upsample=False`.
    """
    family = family_of(model)
    if family is not None:
        return family.aligns_corners
    resizing = (layer for layer in model.layers if isinstance(layer, ResizeLike))
    return any(layer.align_corners for layer in resizing)


def without_auxiliary(model: keras.Model) -> keras.Model:
    """Removes the auxiliary head of a trained segmenter.

    Args:
        model: a model made by `DeepLabV3`, with or without the auxiliary head.

    Returns:
        A model with the same layers and weights. Its only output is the logits.

    Raises:
        ValueError: if the model is not a segmenter.

    Example:
    >>> model = keras_mobilevit.DeepLabV3(weights="imagenet", auxiliary=True)
    >>> without_auxiliary(model).output.shape
    (None, 512, 512, 21)
    """
    if not is_segmenter(model):
        raise ValueError(
            f"The model {model.name!r} is not a segmenter. Expected a model made by "
            "`DeepLabV3`."
        )
    if not isinstance(model.output, dict):
        return model
    return keras.Model(model.input, model.output["logits"], name=model.name)


def _check_arguments(
    config: ModelConfig,
    weights: str | os.PathLike | None,
    classes: int,
    output_stride: int,
    channels: int,
    rates: tuple[int, int, int],
    auxiliary: bool,
) -> str | os.PathLike | None:
    """Checks the arguments and returns the weights; resolves `"default"`."""
    check_weights(weights, ("default", *CLASSIFIER_WEIGHTS, "voc"))
    check_positive(classes=classes, aspp_channels=channels)
    is_list = isinstance(rates, (list, tuple)) and len(rates) == 3
    if not is_list or not all(map(is_positive, rates)):
        raise ValueError(
            f"`rates` must be 3 positive integers. Received: rates={rates!r}."
        )
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(
            f"`output_stride` must be 8 or 16. Received: output_stride={output_stride}."
        )
    published = config.family.aspp_channels
    fits = (classes, channels, auxiliary) == (VOC_CLASSES, published, False)
    if weights == "voc" and not fits:
        raise ValueError(
            f'`weights="voc"` has {VOC_CLASSES} classes, {published} channels in '
            "the spatial pyramid and no auxiliary head. For another head, use "
            f'`weights="imagenet"`. Received: classes={classes}, '
            f"aspp_channels={channels}, auxiliary={auxiliary}."
        )
    if weights == "default":
        return "voc" if fits and config.name in VOC_FILES else "imagenet"
    return weights


def DeepLabV3(
    backbone: str = "mobilevit_s",
    *,
    classes: int = VOC_CLASSES,
    weights: str | os.PathLike | None = "default",
    input_shape: tuple = (SEGMENTER_SIZE, SEGMENTER_SIZE, 3),
    include_preprocessing: bool = True,
    name: str | None = None,
    output_stride: int = 16,
    upsample: bool = True,
    aspp_channels: int | None = None,
    rates: tuple[int, int, int] = RATES,
    auxiliary: bool = False,
) -> keras.Model:
    """DeepLabv3 segmenter: predicts the class of each pixel of an image.

    Args:
        backbone: a name of `keras_mobilevit.VARIANTS`, such as `"mobilevit_s"` or
            `"mobilevitv2_100"`.
        classes: number of classes, including the background.
        weights: `"voc"` (Apple's published segmenter of PASCAL VOC's 20 classes and
            the background, downloaded once), `"imagenet"` (the published backbone,
            downloaded once, with a random head), `None` (random initialization), or
            a file of a whole segmenter, by its path or its address on the Hugging Face
            Hub, `hf://owner/name`: `.keras`, `.weights.h5`, `.safetensors` with the
            names of transformers or ml-cvnets, or Apple's `.pt`; see also
            `keras_mobilevit.load_weights`.
            `"default"` is `"voc"` if it exists for the backbone and fits (21 classes,
            the default pyramid, no auxiliary head), otherwise `"imagenet"`.
        input_shape: `(height, width, channels)`; height and width may be `None`.
        include_preprocessing: if true, the model expects values in [0, 255] and scales
            them; if false, it expects values in [0, 1]. Images are RGB.
        name: name of the model.
        output_stride: 16, or 8 for four times as many pixels with the same weights.
        upsample: whether to resize the logits to the image's size.
        aspp_channels: channels of the spatial pyramid. The default is the published
            number: 256 with MobileViT and 512 with MobileViTv2.
        rates: dilations of the spatial pyramid; (12, 24, 36) fit an output stride of 8.
        auxiliary: whether to add a small head on stage 4, whose loss helps training.
            `keras_mobilevit.without_auxiliary` removes it.

    Returns:
        A functional `keras.Model` from images `[batch, height, width, channels]` to
        logits `[batch, height, width, classes]`. The class of a pixel is the argmax of
        its logits. With `upsample=False`, the logits have the image's height and width
        divided by the output stride, rounded up. With the auxiliary head, the output is
        a dict of `logits` and `auxiliary`. With `upsample=False`, `auxiliary` has
        stride 16, or 8 if the output stride is 8. Outputs are float32 even if the
        layers compute in 16 bits.

    To load a saved model with `keras.saving.load_model`, import `keras_mobilevit`
    first. Otherwise Keras does not find the layers.

    Raises:
        ValueError: if an argument or a combination of arguments is not valid, or if the
            weights do not fit; the message says what was expected.
        OSError: if the published weights are not cached and cannot be downloaded.

    Example:
    >>> model = keras_mobilevit.DeepLabV3("mobilevit_xxs", classes=3, weights=None)
    >>> model(images).shape  # [2, 512, 512, 3], values in [0, 255]
    (2, 512, 512, 3)

    Source: Table 2 of https://arxiv.org/abs/2110.02178. According to their release, the
    published weights reach 72.8 (XXS), 77.1 (XS) and 79.3 (S) mIoU on PASCAL VOC 2012
    at 512x512, and 78.9 with MobileViTv2 at width 1.0.
    """
    config = get_variant(backbone)
    if aspp_channels is None:
        aspp_channels = config.family.aspp_channels
    weights = _check_arguments(
        config, weights, classes, output_stride, aspp_channels, rates, auxiliary
    )
    is_backbone_only = weights in CLASSIFIER_WEIGHTS
    features = MobileViTBackbone(
        config.name,
        weights=weights if is_backbone_only else None,
        output_stride=output_stride,
        input_shape=check_input_shape(input_shape, weights),
        include_preprocessing=include_preprocessing,
    )
    inputs, maps = features.input, features.output
    outputs = {"logits": segmentation_head(maps, classes, aspp_channels, rates)}
    if auxiliary:
        outputs["auxiliary"] = auxiliary_head(maps, classes)
    if upsample:
        outputs = {
            key: ResizeLike(
                config.family.aligns_corners,
                dtype=output_dtype(),
                name=f"deeplab_{key}_resize",
            )(value, inputs)
            for key, value in outputs.items()
        }
    model = keras.Model(
        inputs,
        outputs if auxiliary else outputs["logits"],
        name=name or f"deeplabv3_{config.name}",
    )
    if weights is not None and not is_backbone_only:
        load_weights(model, weights_file(weights, config.name))
    return model
