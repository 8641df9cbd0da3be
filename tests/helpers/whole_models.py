"""Checks that hold for detectors and segmenters of every family."""

import functools

import keras
import numpy as np

from keras_mobilevit import backbone, save_safetensors
from keras_mobilevit.weights.load import load_backbone
from keras_mobilevit.weights.names import is_backbone
from tests.helpers.references import MODELS


def count_parameters(model) -> int:
    """Returns the number of trainable parameters."""
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@functools.cache
def classifier(variant: str = "mobilevit_xxs") -> keras.Model:
    """Builds a random classifier, once; nobody may change it."""
    return MODELS[variant](weights=None)


def check_backbone_is_loaded(model, suffix: str, folder) -> None:
    """Checks that `load_backbone` sets the backbone and keeps the head."""
    file = folder / f"classifier.{suffix}"
    if suffix == "keras":
        classifier().save(file)
    else:
        save_safetensors(classifier(), file)
    before = {layer.name: layer.get_weights() for layer in model.layers}
    load_backbone(model, file)
    loaded = {layer.name: layer.get_weights() for layer in classifier().layers}
    for layer in model.layers:
        wanted = (loaded if is_backbone(layer.name) else before)[layer.name]
        for value, expected in zip(layer.get_weights(), wanted, strict=True):
            assert (value == expected).all(), layer.name


def check_default_is_imagenet(
    module, build, folder, monkeypatch, variant: str = "mobilevit_xxs"
) -> list[tuple]:
    """Checks that a model starts from the published backbone, here a random one.

    Args:
        module: the model's module, whose `weights_file` is replaced.
        build: builds the model with the default weights.
        folder: folder for the weights.
        monkeypatch: pytest's fixture.
        variant: the model's backbone.

    Returns:
        The weights that were requested; later requests are appended.
    """
    published = classifier(variant)
    file = folder / "published.safetensors"
    save_safetensors(published, file)
    requested = []

    def fetch(weights, name):
        requested.append((weights, name))
        return file

    for owner in (module, backbone):
        monkeypatch.setattr(owner, "weights_file", fetch)
    model = build()
    assert requested == [("imagenet", variant)]
    stems = [m.get_layer("stem_conv").get_weights()[0] for m in (model, published)]
    np.testing.assert_array_equal(*stems)
    return requested
