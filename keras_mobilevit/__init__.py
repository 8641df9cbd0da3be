"""MobileViT and MobileViTv2 for Keras.

Sources: https://arxiv.org/abs/2110.02178 and https://arxiv.org/abs/2206.02680.

Import this package before `keras.saving.load_model` loads a saved model. The import
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
from keras_mobilevit.backbone import (
    MobileViTBackbone,
    freeze_backbone,
    unfreeze_backbone,
)
from keras_mobilevit.box_metric import BoxAveragePrecision
from keras_mobilevit.box_targets import detection_targets
from keras_mobilevit.classifier import classifier_function
from keras_mobilevit.configs import VARIANTS
from keras_mobilevit.deeplab import DeepLabV3, without_auxiliary
from keras_mobilevit.detection import DetectObjects, detect
from keras_mobilevit.detector import Detector
from keras_mobilevit.preprocessing import decode_predictions, preprocess_input
from keras_mobilevit.ssd_loss import SSDLoss
from keras_mobilevit.ssdlite import SSDLite
from keras_mobilevit.weights.load import load_backbone, load_weights
from keras_mobilevit.weights.save import save_safetensors

MobileViT_XXS = classifier_function("mobilevit_xxs")
MobileViT_XS = classifier_function("mobilevit_xs")
MobileViT_S = classifier_function("mobilevit_s")
MobileViTV2_050 = classifier_function("mobilevitv2_050")
MobileViTV2_075 = classifier_function("mobilevitv2_075")
MobileViTV2_100 = classifier_function("mobilevitv2_100")
MobileViTV2_125 = classifier_function("mobilevitv2_125")
MobileViTV2_150 = classifier_function("mobilevitv2_150")
MobileViTV2_175 = classifier_function("mobilevitv2_175")
MobileViTV2_200 = classifier_function("mobilevitv2_200")

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "BoxAveragePrecision",
    "DeepLabV3",
    "DetectObjects",
    "Detector",
    "MobileViTBackbone",
    "MobileViTV2_050",
    "MobileViTV2_075",
    "MobileViTV2_100",
    "MobileViTV2_125",
    "MobileViTV2_150",
    "MobileViTV2_175",
    "MobileViTV2_200",
    "MobileViT_S",
    "MobileViT_XS",
    "MobileViT_XXS",
    "SSDLite",
    "SSDLoss",
    "anchor_boxes",
    "decode_predictions",
    "detect",
    "detection_targets",
    "freeze_backbone",
    "load_backbone",
    "load_weights",
    "preprocess_input",
    "save_safetensors",
    "unfreeze_backbone",
    "without_auxiliary",
]
