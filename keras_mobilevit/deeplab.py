"""DeepLabv3: a MobileViT backbone, and a head that tells the class of every pixel.

Source: section 4.2 of MobileViT, https://arxiv.org/abs/2110.02178, Table 2; DeepLabv3,
https://arxiv.org/abs/1706.05587.
"""

import keras
from keras import layers, ops

from keras_mobilevit.backbone import feature_maps
from keras_mobilevit.backend import output_dtype, resize_bilinear
from keras_mobilevit.configs import SEGMENTER_SIZE, get_variant
from keras_mobilevit.layers import batch_norm, conv
from keras_mobilevit.validation import (
    check_classes,
    check_input_shape,
    check_weights,
)
from keras_mobilevit.weights.hub import weights_file
from keras_mobilevit.weights.load import load_backbone, load_weights

VOC_CLASSES = 21  # with the background
OUTPUT_STRIDES = (8, 16)
ASPP_CHANNELS = 256
RATES = (6, 12, 18)
DROPOUT = 0.1
MIN_AUXILIARY_CHANNELS = 128

CLASSIFIER = "deeplab_classifier"  # the layer that only segmenters have


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class ResizeLike(layers.Layer):
    """Resizes feature maps to the height and width of another tensor, bilinearly.

    Inputs: feature maps `[batch, rows, columns, channels]`, and a tensor
    `[batch, height, width, any]`, which only lends its height and width; they may be
    `None`.

    Output shape: `[batch, height, width, channels]`.
    """

    def call(self, x, like):
        _, height, width, _ = ops.shape(like)
        # In 16 bits too, where TensorFlow resizes to sizes of the run time in float32.
        return ops.cast(resize_bilinear(x, height, width), x.dtype)

    def compute_output_shape(self, x_shape, like_shape):
        return (*like_shape[:3], x_shape[-1])


def _conv_bn_relu(x, filters: int, kernel_size: int, name: str, dilation: int = 1):
    x = conv(x, filters, kernel_size, 1, name, dilation)
    x = batch_norm(x, f"{name}_bn")
    return layers.ReLU(name=f"{name}_act")(x)


def _classify(x, classes: int, name: str):
    # Keras's own initialization. The published code's grows where classes are few: it
    # starts two of them with logits of about 10, and twenty-one with 3.
    return layers.Conv2D(classes, 1, dtype=output_dtype(), name=name)(x)


def spatial_pyramid(x, channels: int, rates: tuple[int, int, int]):
    """Atrous spatial pyramid pooling (section 3.3 of DeepLabv3).

    Args:
        x: feature map `[batch, height, width, any]`.
        channels: of each branch and of the result.
        rates: dilations of the three 3x3 convolutions.

    Returns:
        Feature map `[batch, height, width, channels]`.
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
    maps: dict, classes: int, channels: int = ASPP_CHANNELS, rates: tuple = RATES
):
    """Predicts logits from the last feature map.

    Args:
        maps: the feature maps of `feature_maps`, of which `"P5"` is used.
        classes: number of classes; a background is one of them.
        channels: of the spatial pyramid.
        rates: dilations of the spatial pyramid.

    Returns:
        Logits `[batch, height, width, classes]` at the stride of the map.
    """
    x = spatial_pyramid(maps["P5"], channels, rates)
    # A second dropout, of whole channels, as in the release that the paper came with.
    x = layers.SpatialDropout2D(DROPOUT, name="deeplab_dropout")(x)
    return _classify(x, classes, CLASSIFIER)


def auxiliary_head(maps: dict, classes: int):
    """Predicts logits from the feature map before the last, for training alone.

    Args:
        maps: the feature maps of `feature_maps`, of which `"P4"` is used.
        classes: number of classes.

    Returns:
        Logits `[batch, height, width, classes]` at the stride of the map.
    """
    x = maps["P4"]
    channels = max(x.shape[-1] // 4, MIN_AUXILIARY_CHANNELS)
    x = _conv_bn_relu(x, channels, 3, "deeplab_auxiliary")
    x = layers.SpatialDropout2D(DROPOUT, name="deeplab_auxiliary_dropout")(x)
    return _classify(x, classes, "deeplab_auxiliary_classifier")


def is_segmenter(model: keras.Model) -> bool:
    """Tells whether a model gives what `DeepLabV3` describes."""
    return any(layer.name == CLASSIFIER for layer in model.layers)


def without_auxiliary(model: keras.Model) -> keras.Model:
    """Takes the auxiliary head off a trained segmenter.

    Args:
        model: made by `DeepLabV3`, with the auxiliary head or without.

    Returns:
        A model with the same layers and weights whose output is the logits alone.

    Example:
    >>> model = keras_mobilevit.DeepLabV3(weights="imagenet", auxiliary=True)
    >>> without_auxiliary(model).output.shape
    (None, 512, 512, 21)
    """
    if not isinstance(model.output, dict):
        return model
    return keras.Model(model.input, model.output["logits"], name=model.name)


def _is_positive(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_pyramid(channels, rates) -> None:
    if not _is_positive(channels):
        raise ValueError(
            "`aspp_channels` must be a positive integer. Received: "
            f"aspp_channels={channels!r}."
        )
    is_list = isinstance(rates, (list, tuple)) and len(rates) == 3
    if not is_list or not all(map(_is_positive, rates)):
        raise ValueError(
            f"`rates` must be 3 positive integers. Received: rates={rates!r}."
        )


def _check_arguments(weights, classes, output_stride, channels, rates, auxiliary):
    """Refuses arguments that do not fit; returns the weights that "default" means."""
    check_weights(weights, ("default", "imagenet", "voc"))
    check_classes(classes)
    _check_pyramid(channels, rates)
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(
            f"`output_stride` must be 8 or 16. Received: output_stride={output_stride}."
        )
    fits = (classes, channels, auxiliary) == (VOC_CLASSES, ASPP_CHANNELS, False)
    if weights == "voc" and not fits:
        raise ValueError(
            f'`weights="voc"` has {VOC_CLASSES} classes, {ASPP_CHANNELS} channels in '
            'the spatial pyramid and no auxiliary head; `weights="imagenet"` takes '
            f"any. Received: classes={classes}, aspp_channels={channels}, "
            f"auxiliary={auxiliary}."
        )
    if weights == "default":
        return "voc" if fits else "imagenet"
    return weights


def DeepLabV3(
    backbone: str = "mobilevit_s",
    classes: int = VOC_CLASSES,
    weights: str | None = "default",
    input_shape: tuple = (SEGMENTER_SIZE, SEGMENTER_SIZE, 3),
    include_preprocessing: bool = True,
    name: str | None = None,
    *,
    output_stride: int = 16,
    upsample: bool = True,
    aspp_channels: int = ASPP_CHANNELS,
    rates: tuple[int, int, int] = RATES,
    auxiliary: bool = False,
) -> keras.Model:
    """DeepLabv3 segmenter: logits of the classes at every pixel of an image.

    Args:
        backbone: `"mobilevit_xxs"`, `"mobilevit_xs"` or `"mobilevit_s"`.
        classes: number of classes; a background is one of them.
        weights: `"voc"` (Apple's published segmenter of PASCAL VOC's 20 classes and
            the background, downloaded once), `"imagenet"` (the published backbone,
            downloaded once, and a head of random weights), `None` for random
            initialization, or the path of a file that holds a whole segmenter:
            `.keras`, `.weights.h5`, `.safetensors` with the names of transformers or
            ml-cvnets, or Apple's `.pt`; see also `channel_order` of
            `keras_mobilevit.load_weights`. `"default"` is `"voc"` where that fits (21
            classes, 256 channels in the pyramid, no auxiliary head), otherwise
            `"imagenet"`.
        input_shape: `(height, width, channels)`; height and width may be `None`.
        include_preprocessing: if true, the model takes values in [0, 255] and scales
            them itself; if false, it takes values in [0, 1]. Images are RGB.
        name: name of the model.
        output_stride: 16, or 8 for a map of four times as many pixels at the same
            number of weights.
        upsample: whether the logits are resized to the image's size; otherwise they
            stay at the output stride.
        aspp_channels: channels of the spatial pyramid; ml-cvnets' later recipe has 512.
        rates: its three dilations; (12, 24, 36) fit an output stride of 8.
        auxiliary: whether there is a second, small head on stage 4, whose loss helps
            training; `keras_mobilevit.without_auxiliary` takes it off.

    Returns:
        A functional `keras.Model` from images `[batch, height, width, channels]` to
        logits `[batch, height, width, classes]`, whose argmax is the class of a pixel.
        With `upsample=False` their height and width are those of the image divided by
        the output stride, rounded up. With the auxiliary head the output is a dict,
        `logits` and `auxiliary`, of the same shape where they are upsampled; otherwise
        those of `auxiliary` have stride 16, or 8 if the output stride is 8. Outputs are
        in float32 also where the layers compute in 16 bits.

    Once saved, the model is loaded with `keras.models.load_model`, in a program that
    has imported `keras_mobilevit`: Keras imports no package by itself, and would not
    find the layers.

    Raises:
        ValueError: if an argument or a combination of them is not valid, or the weights
            do not fit; the message says what was expected.
        OSError: if the published weights are not cached and cannot be downloaded.

    Example:
    >>> model = keras_mobilevit.DeepLabV3("mobilevit_xxs", classes=3, weights=None)
    >>> model(images).shape  # [2, 512, 512, 3], values in [0, 255]
    (2, 512, 512, 3)

    Source: Table 2 of https://arxiv.org/abs/2110.02178. By their release, the published
    weights reach 72.8 (XXS), 77.1 (XS) and 79.3 (S) mIoU on PASCAL VOC 2012 at 512x512.
    """
    config = get_variant(backbone)
    weights = _check_arguments(
        weights, classes, output_stride, aspp_channels, rates, auxiliary
    )
    inputs = keras.Input(check_input_shape(input_shape, weights), name="images")
    x = inputs
    if include_preprocessing:
        x = layers.Rescaling(1 / 255, name="rescaling")(x)
    maps = feature_maps(x, config, output_stride)
    outputs = {"logits": segmentation_head(maps, classes, aspp_channels, tuple(rates))}
    if auxiliary:
        outputs["auxiliary"] = auxiliary_head(maps, classes)
    if upsample:
        outputs = {
            key: ResizeLike(dtype=output_dtype(), name=f"deeplab_{key}_resize")(
                value, inputs
            )
            for key, value in outputs.items()
        }
    model = keras.Model(
        inputs,
        outputs if auxiliary else outputs["logits"],
        name=name or f"deeplabv3_{config.name}",
    )
    if weights == "imagenet":
        load_backbone(model, weights_file(weights, config.name))
    elif weights is not None:
        load_weights(model, weights_file(weights, config.name))
    return model
