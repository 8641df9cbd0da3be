"""Networks that the MobileViT paper compares with, in Keras.

They are the other networks of Table 3 of https://arxiv.org/abs/2110.02178, and two more
convolutional networks. All take RGB images with values in [0, 255] and return logits.
Their weights are random, since only their latency is measured.
"""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_mobilevit.blocks import pad_for_stride
from keras_mobilevit.layers import DotProductAttention
from tflite.graph.token_embedding import TokenEmbedding

SIZE = 224  # side of the images in their papers
CLASSES = 1000

# DeiT and PiT normalize values in [0, 1] with these, for each channel.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])

# Equal in DeiT and PiT (timm's `vision_transformer.py` and `pit.py`).
LAYER_NORM_EPSILON = 1e-6
MLP_RATIO = 4
POOL_KERNEL = 3


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """The architecture of a vision transformer with a class token.

    Between two stages the map of tokens is pooled to half its side.
    """

    name: str
    patch_size: int  # side in pixels of the patches that become tokens
    patch_stride: int  # distance between patches in pixels
    widths: tuple[int, ...]  # channels of the tokens in each stage
    depths: tuple[int, ...]  # transformer layers in each stage
    heads: tuple[int, ...]  # attention heads in each stage
    has_class_position: bool  # the class token has a position embedding too


# Table 1 of https://arxiv.org/abs/2012.12877, without the distillation token: timm's
# deit_tiny_patch16_224, 5,717,416 parameters.
DEIT_TINY = VitConfig("deit_tiny", 16, 16, (192,), (12,), (3,), True)
# Table 2 of https://arxiv.org/abs/2103.16302: timm's pit_ti_224, 4,847,272 parameters.
PIT_TINY = VitConfig("pit_tiny", 16, 8, (64, 128, 256), (2, 6, 4), (2, 4, 8), False)


def _normalize_images(x):
    """Normalizes pixels in [0, 255] with ImageNet's mean and standard deviation."""
    scale, offset = 1 / (255 * IMAGENET_STD), -IMAGENET_MEAN / IMAGENET_STD
    return layers.Rescaling(scale.tolist(), offset.tolist(), name="normalize")(x)


def _layer_norm(x, name: str):
    return layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=name)(x)


def _transformer_layer(x, num_heads: int, name: str):
    """Pre-norm transformer layer with exact GELU on tokens `[batch, N, channels]`."""
    channels = x.shape[-1]
    y = _layer_norm(x, f"{name}_attention_norm")
    query, key, value = (
        layers.Dense(channels, name=f"{name}_{part}")(y)
        for part in ("query", "key", "value")
    )
    y = DotProductAttention(num_heads, name=f"{name}_attention")(query, key, value)
    y = layers.Dense(channels, name=f"{name}_attention_output")(y)
    x = layers.Add(name=f"{name}_attention_add")([x, y])
    y = _layer_norm(x, f"{name}_mlp_norm")
    y = layers.Dense(MLP_RATIO * channels, "gelu", name=f"{name}_mlp_expand")(y)
    y = layers.Dense(channels, name=f"{name}_mlp_project")(y)
    return layers.Add(name=f"{name}_mlp_add")([x, y])


def _tokens_of_map(x, name: str):
    """Reshapes `[batch, height, width, channels]` to `[batch, tokens, channels]`."""
    _, height, width, channels = x.shape
    return layers.Reshape((height * width, channels), name=name)(x)


def _class_token_of(tokens, name: str):
    """Takes the class token, `[batch, 1, channels]`, of all tokens."""
    return layers.Cropping1D((0, tokens.shape[1] - 1), name=name)(tokens)


def _pool(tokens, side: int, width: int, name: str):
    """Halves the side of the map and widens the tokens (Figure 4b of PiT's paper).

    From `[batch, 1 + side**2, channels]`, the class token first, to
    `[batch, 1 + ceil(side / 2)**2, width]`; width is a multiple of channels.
    """
    channels = tokens.shape[-1]
    class_token = _class_token_of(tokens, f"{name}_class_token")
    class_token = layers.Dense(width, name=f"{name}_class_token_project")(class_token)
    x = layers.Cropping1D((1, 0), name=f"{name}_tokens")(tokens)
    x = layers.Reshape((side, side, channels), name=f"{name}_map")(x)
    x = layers.DepthwiseConv2D(
        POOL_KERNEL, strides=2, depth_multiplier=width // channels, name=f"{name}_conv"
    )(pad_for_stride(x, POOL_KERNEL, f"{name}_pad"))
    x = _tokens_of_map(x, f"{name}_pooled")
    return layers.Concatenate(axis=1, name=f"{name}_concat")([class_token, x])


def build_vit(
    config: VitConfig, size: int = SIZE, classes: int = CLASSES
) -> keras.Model:
    """Builds a vision transformer such as DeiT or PiT.

    It maps images `[batch, size, size, 3]` to logits `[batch, classes]`.
    """
    images = keras.Input((size, size, 3), name="images")
    x = layers.Conv2D(
        config.widths[0], config.patch_size, config.patch_stride, name="patches"
    )(_normalize_images(images))
    side = x.shape[1]
    x = _tokens_of_map(x, "tokens")
    x = TokenEmbedding(config.has_class_position, name="embedding")(x)
    stages = zip(config.widths, config.depths, config.heads)
    for stage, (width, depth, num_heads) in enumerate(stages):
        if stage:
            x = _pool(x, side, width, f"stage{stage}_pool")
            side = -(-side // 2)
        for i in range(depth):
            x = _transformer_layer(x, num_heads, f"stage{stage}_transformer{i}")
    # Only the class token is used, and the norm acts on each token by itself.
    x = layers.Flatten(name="class_features")(_class_token_of(x, "last_class_token"))
    x = _layer_norm(x, "norm")
    return keras.Model(images, layers.Dense(classes, name="head")(x), name=config.name)


def _build_mobilenet_v2() -> keras.Model:
    images = keras.Input((SIZE, SIZE, 3), name="images")
    built = keras.applications.MobileNetV2(
        input_tensor=layers.Rescaling(1 / 127.5, -1.0, name="normalize")(images),
        weights=None,
        classifier_activation=None,
    )
    return keras.Model(images, built.output, name="mobilenet_v2")


_MODEL = {
    "input_shape": (SIZE, SIZE, 3),
    "weights": None,
    "classifier_activation": None,
}
# Functional models from images `[batch, 224, 224, 3]` to logits `[batch, 1000]`.
# tflite/suites/suites.py has their names and published accuracies.
BASELINES: dict[str, Callable[[], keras.Model]] = {
    "mobilenet_v2": _build_mobilenet_v2,
    "mobilenet_v3_large": functools.partial(
        keras.applications.MobileNetV3Large, **_MODEL, name="mobilenet_v3_large"
    ),
    "efficientnet_b0": functools.partial(
        keras.applications.EfficientNetB0, **_MODEL, name="efficientnet_b0"
    ),
    "deit_tiny": functools.partial(build_vit, DEIT_TINY),
    "pit_tiny": functools.partial(build_vit, PIT_TINY),
}
