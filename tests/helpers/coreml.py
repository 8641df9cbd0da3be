"""Small Core ML packages, and a stand-in for the parsed flags."""

import functools
import types
from pathlib import Path

import keras
import numpy as np

from keras_mobilevit import VARIANTS
from keras_mobilevit.classifier import build_classifier
from tests.helpers.graphs import randomized
from tflite.formats.coreml import package
from tflite.formats.coreml.classifier import make_classifier
from tflite.graph.reader import read_model
from tflite.graph.rewrites import COREML_REWRITES, deployment_graph

CLASSES = 10


def classifier(name: str = "mobilevit_xxs", classes: int = CLASSES) -> keras.Model:
    return _classifier(name, classes)  # the same model for each way to ask for it


@functools.cache
def _classifier(name: str, classes: int) -> keras.Model:
    return randomized(
        build_classifier(
            VARIANTS[name],
            classes=classes,
            classifier_activation=None,
            input_shape=(None, None, 3),
        )
    )


def pixels(size: int, count: int = 1) -> np.ndarray:
    random = np.random.default_rng(size)
    return random.integers(0, 256, (count, size, size, 3)).astype(np.uint8)


@functools.cache
def core_ml(precision: str, name: str = "mobilevit_xxs", classes=CLASSES, **options):
    """Makes the Core ML model of a classifier; `options` are of its `PackageSpec`."""
    options = {"sizes": (64,)} | options
    model = classifier(name, classes)
    graph = read_model(model, options["sizes"][0], options["sizes"][0])
    graph = deployment_graph(graph, COREML_REWRITES)
    graph, scale = package.split_input_scale(graph, 255)
    spec = package.PackageSpec(pixel_scale=scale, **options)
    return make_classifier(graph, spec, precision, "logits")


def small_model(weight: np.ndarray, ios: int):
    """Makes the Core ML model of one convolution of an 8x8 image."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    target = getattr(ct.target, f"iOS{ios}")

    @mb.program(input_specs=[mb.TensorSpec((1, 3, 8, 8))], opset_version=target)
    def convolution(image):
        return mb.conv(x=image, weight=weight, name="y")

    return ct.convert(
        convolution,
        source="milinternal",
        inputs=[ct.ImageType(name="image", shape=(1, 3, 8, 8))],
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )


def save(model, folder: Path) -> Path:
    path = folder / "model.mlpackage"
    model.save(str(path))
    return path


class Flags(types.SimpleNamespace):
    """Stands in for absl's parsed flags, which a process has only once."""

    def __getitem__(self, name):
        return types.SimpleNamespace(present=int(name in self.given))


def flags(**given) -> Flags:
    defaults = dict.fromkeys(("sizes", "ios", "labels", "author", "license"))
    defaults |= {"model": "runs/best.keras", "weights": "none", "layout": "tokens"}
    defaults |= {"raw_outputs": False, "no_rewrite": False, "size": 64}
    return Flags(**defaults | given, given=given)
