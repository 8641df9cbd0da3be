"""Networks that are traced in a second, real ones without dropout, and images."""

import keras
import numpy as np

from keras_mobilevit.backend import Activation, BatchNormalization
from keras_mobilevit.deeplab import CLASSIFIER, ResizeLike
from keras_mobilevit.ssdlite import detection_head
from train.tasks.classification.task import CLASSIFICATION


def build_network(config, source, dropout: float = 0.2) -> keras.Model:
    """Builds a classifier with statistics and, in its dropout, random state."""
    layers = keras.layers
    inputs = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    for filters in (8, 16):
        name = f"conv{filters}"
        x = layers.Conv2D(filters, 3, strides=2, use_bias=False, name=name)(x)
        x = Activation("silu")(BatchNormalization(name=f"norm{filters}")(x))
    x = layers.Dropout(dropout, name="dropout")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(10, name="predictions")(x))


def build_detector(config, source) -> keras.Model:
    """Builds a detector of the real anchors on four convolutions."""
    inputs = keras.Input((None, None, 3))
    x, maps = keras.layers.Rescaling(1 / 255)(inputs), {}
    for stride in (4, 8, 16, 32):
        strides = 4 if stride == 4 else 2
        x = keras.layers.Conv2D(
            8, 5, strides=strides, padding="same", activation="relu"
        )(x)
        maps[stride] = x
    maps = {"P4": maps[16], "P5": maps[32]}
    return keras.Model(inputs, detection_head(maps, len(source.class_names)))


def build_segmenter(config, source) -> keras.Model:
    """Builds a segmenter on three convolutions, with an auxiliary head if asked to."""
    layers, classes = keras.layers, len(source.class_names)
    inputs = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(8, 5, strides=2, padding="same", activation="relu")(x)
    stem = layers.Conv2D(16, 5, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2D(16, 5, padding="same", activation="relu", name="deeplab")(stem)
    outputs = {"logits": layers.Conv2D(classes, 1, name=CLASSIFIER)(x)}
    if config.auxiliary_weight:
        outputs["auxiliary"] = layers.Conv2D(classes, 1, name="auxiliary")(stem)
    outputs = {key: ResizeLike()(value, inputs) for key, value in outputs.items()}
    is_single = len(outputs) == 1
    return keras.Model(inputs, outputs["logits"] if is_single else outputs)


def build_without_dropout(config, source) -> keras.Model:
    """Builds the real classifier without dropout.

    No two numbers of devices, and no two compilers, draw it alike.
    """
    model = CLASSIFICATION.build_model(config, source)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def photos(count: int, size: int = 64) -> np.ndarray:
    """Makes images of a few large spots of color, which are uneven like photos."""
    random = np.random.default_rng(0)
    small = random.uniform(0, 255, (count, 5, 5, 3)).astype(np.float32)
    return np.array(keras.ops.image.resize(small, (size, size)))
