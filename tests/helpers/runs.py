"""Configurations and tasks of short runs."""

import dataclasses

import keras

from tests.helpers.networks import build_detector, build_network
from train.config import make_config
from train.tasks.classification.task import CLASSIFICATION
from train.tasks.detection.task import DETECTION

TWO_EPOCHS_OF_DIGITS = make_config(
    data="digits",
    sizes=(32, 48),
    base_size=32,
    batch_size=256,
    epochs=2,
    warmup_steps=2,
    eval_size=32,
)
DETECTION_CONFIG = make_config(
    task="detection", sizes=(64, 96), base_size=64, batch_size=8, epochs=1, eval_size=64
)


def build_small(config, source) -> keras.Model:
    """Builds a network that, untrained, finds all classes alike."""
    layers = [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10, kernel_initializer="zeros"),
    ]
    return keras.Sequential([keras.Input((None, None, 3)), *layers])


# The real networks run in tests/train/test_killed.py, and in the demo that
# tests/tflite/test_convert.py makes.
CLASSIFIER = dataclasses.replace(CLASSIFICATION, build_model=build_network)
SMALL = dataclasses.replace(CLASSIFICATION, build_model=build_small)
DETECTOR = dataclasses.replace(DETECTION, build_model=build_detector)
