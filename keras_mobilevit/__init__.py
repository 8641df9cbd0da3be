"""MobileViT for Keras: https://arxiv.org/abs/2110.02178.

Import this package before `keras.models.load_model` loads a saved MobileViT. The import
registers the layers with Keras.
"""

import importlib

from keras_mobilevit.command_line import quiet_start

with quiet_start():  # has an effect only under `python -m keras_mobilevit`
    try:
        importlib.import_module("keras")
    except ImportError as error:
        raise ImportError(
            f"Keras cannot load its backend: {error}. Run `pip install tensorflow`, or "
            "install jax or torch and set the environment variable KERAS_BACKEND to it."
        ) from error

from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.classifier import MobileViT_S, MobileViT_XS, MobileViT_XXS
from keras_mobilevit.configs import VARIANTS
from keras_mobilevit.deeplab import DeepLabV3, without_auxiliary
from keras_mobilevit.detection import detect
from keras_mobilevit.preprocessing import decode_predictions, preprocess_input
from keras_mobilevit.ssdlite import SSDLite
from keras_mobilevit.weights.load import load_backbone, load_weights
from keras_mobilevit.weights.save import save_safetensors

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "DeepLabV3",
    "MobileViT_S",
    "MobileViT_XS",
    "MobileViT_XXS",
    "SSDLite",
    "anchor_boxes",
    "decode_predictions",
    "detect",
    "load_backbone",
    "load_weights",
    "preprocess_input",
    "save_safetensors",
    "without_auxiliary",
]
