"""MobileViT for Keras: https://arxiv.org/abs/2110.02178."""

from keras_mobilevit.classifier import MobileViT_S, MobileViT_XS, MobileViT_XXS
from keras_mobilevit.configs import VARIANTS
from keras_mobilevit.preprocessing import decode_predictions, preprocess_input
from keras_mobilevit.weights import save_safetensors

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "MobileViT_S",
    "MobileViT_XS",
    "MobileViT_XXS",
    "decode_predictions",
    "preprocess_input",
    "save_safetensors",
]
