"""SSDLite: an object detector with separable heads, for every backbone.

Source: section 4.2 of MobileViT, https://arxiv.org/abs/2110.02178, Table 1; SSD,
https://arxiv.org/abs/1512.02325; SSDLite, https://arxiv.org/abs/1801.04381.
"""

import os

import keras
from keras import layers, ops

from keras_mobilevit.anchors import ANCHORS_PER_CELL, STRIDES
from keras_mobilevit.argument_checks import (
    check_input_shape,
    check_positive,
    check_weights,
)
from keras_mobilevit.backbone import MobileViTBackbone
from keras_mobilevit.backend import Tensor, output_dtype
from keras_mobilevit.blocks import batch_norm, depthwise_bn
from keras_mobilevit.configs import DETECTOR_SIZE, get_variant
from keras_mobilevit.detector import Detector
from keras_mobilevit.weights.hub import CLASSIFIER_WEIGHTS, weights_file
from keras_mobilevit.weights.load import load_weights

COCO_CLASSES = 80

EXTRA_CHANNELS = {64: 256, 128: 128, 256: 128}  # channels of the maps, by stride
GLOBAL_CHANNELS = 64  # of the map with a single cell
HEAD_CHANNELS = (512, 256, 256, 128, 128)  # after the projection of each map
MAP_NAMES = (*(f"ssd{stride}" for stride in STRIDES), "ssd_global")


def _conv(filters: int, name: str, use_bias: bool = False) -> layers.Conv2D:
    """Returns a 1x1 convolution with the initialization of the published heads."""
    return layers.Conv2D(
        filters, 1, use_bias=use_bias, kernel_initializer="glorot_uniform", name=name
    )


def _conv_bn_relu(x: Tensor, filters: int, name: str) -> Tensor:
    x = batch_norm(_conv(filters, f"{name}_conv")(x), f"{name}_bn")
    return layers.ReLU(name=f"{name}_act")(x)


def _depthwise_bn(x: Tensor, name: str, strides: int = 1) -> Tensor:
    """Applies the first half of a separable convolution; no activation follows."""
    return depthwise_bn(x, name, strides, initializer="glorot_uniform")


def _detection_maps(maps: dict[str, Tensor]) -> list[Tensor]:
    """Returns the backbone's maps at strides 16 and 32 and four coarser maps."""
    results = [maps["P4"], maps["P5"]]
    for stride, channels in EXTRA_CHANNELS.items():
        name = f"ssd{stride}_extra"
        x = _depthwise_bn(results[-1], f"{name}_depthwise", strides=2)
        results.append(_conv_bn_relu(x, channels, f"{name}_pointwise"))
    x = layers.GlobalAveragePooling2D(keepdims=True, name="ssd_global_pool")(
        results[-1]
    )
    x = _conv(GLOBAL_CHANNELS, "ssd_global_extra_conv")(x)
    return [*results, layers.ReLU(name="ssd_global_extra_act")(x)]


def _predict(x: Tensor, index: int, numbers: int) -> Tensor:
    """Predicts `numbers` values for each anchor: `[batch, anchors, numbers]`."""
    name = MAP_NAMES[index]
    if index < len(STRIDES):
        if x.shape[-1] != HEAD_CHANNELS[index]:
            x = _conv_bn_relu(x, HEAD_CHANNELS[index], f"{name}_project")
        x = _depthwise_bn(x, f"{name}_depthwise")
    filters = ANCHORS_PER_CELL[index] * numbers
    x = _conv(filters, f"{name}_predictions", use_bias=True)(x)
    return layers.Reshape((-1, numbers), name=f"{name}_anchors")(x)


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class SplitPredictions(layers.Layer):
    """Splits the predictions `[batch, anchors, 4 + classes + 1]` for each anchor.

    Output: a dict with the box deltas `offsets` `[batch, anchors, 4]` and the `logits`
    `[batch, anchors, classes + 1]`.
    """

    def call(self, x: Tensor) -> dict[str, Tensor]:
        """Splits a tensor in its last axis."""
        box_deltas, logits = ops.split(x, [4], axis=-1)
        return {"offsets": box_deltas, "logits": logits}

    def compute_output_shape(self, input_shape: tuple) -> dict[str, tuple]:
        """Returns the shapes of the dict."""
        *anchors, numbers = input_shape
        return {"offsets": (*anchors, 4), "logits": (*anchors, numbers - 4)}


def detection_head(maps: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    """Predicts the output of `SSDLite` from the feature maps `"P4"` and `"P5"`."""
    numbers = 4 + 1 + classes  # box deltas, background, classes
    predictions = [
        _predict(x, index, numbers) for index, x in enumerate(_detection_maps(maps))
    ]
    x = layers.Concatenate(axis=1, name="ssd_concat")(predictions)
    return SplitPredictions(dtype=output_dtype(), name="ssd_split")(x)


def is_detector(model: keras.Model) -> bool:
    """Tells whether a model has the outputs of `SSDLite`."""
    # A Sequential model that was never called has no output.
    output = getattr(model, "output", None)
    return isinstance(output, dict) and set(output) == {"offsets", "logits"}


def SSDLite(
    backbone: str = "mobilevit_s",
    *,
    classes: int = COCO_CLASSES,
    weights: str | os.PathLike | None = "default",
    input_shape: tuple = (DETECTOR_SIZE, DETECTOR_SIZE, 3),
    include_preprocessing: bool = True,
    name: str | None = None,
) -> Detector:
    """SSDLite detector: predicts a box and its class for each anchor of an image.

    Args:
        backbone: a name of `keras_mobilevit.VARIANTS`, such as `"mobilevit_s"` or
            `"mobilevitv2_100"`.
        classes: number of classes, without the background.
        weights: `"coco"` (Apple's published detector of 80 classes, downloaded once;
            reading it needs PyTorch), `"imagenet"` (the published backbone, downloaded
            once, with a random head), `None` (random initialization), or a file of a
            whole detector, by its path or its address on the Hugging Face Hub,
            `hf://owner/name`: `.keras`, `.weights.h5`, `.safetensors` with ml-cvnets'
            names, or Apple's `.pt`; see also `keras_mobilevit.load_weights`.
            `"default"` is `"coco"` for 80 classes and
            `"imagenet"` for another number.
        input_shape: `(height, width, channels)`; height and width may be `None`.
        include_preprocessing: if true, the model expects values in [0, 255] and scales
            them; if false, it expects values in [0, 1]. Images are RGB.
        name: name of the model.

    Returns:
        A `keras_mobilevit.Detector`: a functional `keras.Model` that `compile` and
        `fit` train on boxes. Its input is images `[batch, height, width, channels]`;
        resize whole images to this size, whatever their aspect ratio. Its output is a
        dict: `offsets` `[batch, anchors, 4]`, the box deltas from
        `anchor_boxes(height, width, backbone)`, and `logits`
        `[batch, anchors, classes + 1]`, where class 0 is the background. `detect`
        converts them to boxes and scores. They are float32 even if the layers compute
        in 16 bits.

    To load a saved model with `keras.saving.load_model`, import `keras_mobilevit`
    first. Otherwise Keras does not find the layers.

    Raises:
        ValueError: if an argument or a combination of arguments is not valid, or if the
            weights do not fit; the message says what was expected.
        OSError: if the published weights are not cached and cannot be downloaded.

    Example:
    >>> model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=3, weights=None)
    >>> outputs = model.predict(images)  # [2, 320, 320, 3], values in [0, 255]
    >>> found = keras_mobilevit.detect(outputs, (320, 320))
    >>> found["boxes"].shape
    (2, 200, 4)

    Source: Table 1 of https://arxiv.org/abs/2110.02178. According to their release, the
    published weights reach 19.9 (XXS), 24.8 (XS) and 27.9 (S) COCO mAP at 320x320, and
    21.2 to 30.2 with MobileViTv2 at widths 0.5 to 2.0.
    """
    config = get_variant(backbone)
    check_weights(weights, ("default", *CLASSIFIER_WEIGHTS, "coco"))
    check_positive(classes=classes)
    if weights == "default":
        weights = "coco" if classes == COCO_CLASSES else "imagenet"
    if weights == "coco" and classes != COCO_CLASSES:
        raise ValueError(
            f'`weights="coco"` has {COCO_CLASSES} classes. For another number, use '
            f'`weights="imagenet"`. Received: classes={classes}.'
        )
    is_backbone_only = weights in CLASSIFIER_WEIGHTS
    features = MobileViTBackbone(
        config.name,
        weights=weights if is_backbone_only else None,
        input_shape=check_input_shape(input_shape, weights),
        include_preprocessing=include_preprocessing,
    )
    outputs = detection_head(features.output, classes)
    model = Detector(features.input, outputs, name=name or f"ssdlite_{config.name}")
    if weights is not None and not is_backbone_only:
        load_weights(model, weights_file(weights, config.name))
    return model
