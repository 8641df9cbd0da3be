"""Where a model comes from, and how applications prepare its images."""

from collections.abc import Sequence
from pathlib import Path

import keras_mobilevit
from keras_mobilevit.weights.hub import CLASSIFIER_WEIGHTS
from train.cli.console import readable

_APPLE = "Sachin Mehta and Mohammad Rastegari, Apple"
AUTHORS = {  # of published weights
    **dict.fromkeys(CLASSIFIER_WEIGHTS, f"{_APPLE}; ported by Ross Wightman (timm)"),
    "coco": _APPLE,
    "voc": _APPLE,
}
APPLE_LICENSE = "Apple's, see https://github.com/apple/ml-cvnets/blob/main/LICENSE"
NOT_STATED = "not stated"


def describe_origin(
    title: str,
    model: str,
    weights: str,
    author: str | None = None,
    license: str | None = None,
) -> dict[str, str]:
    """Returns the card's entries `description`, `author`, `license` and `version`.

    Args:
        title: what the file is, in two or three words.
        model: name or path of the model.
        weights: published weights, a path, or `none`.
        author: default: the authors of published weights.
        license: default: that of published weights.
    """
    published_license = APPLE_LICENSE if weights in AUTHORS else NOT_STATED
    return {
        "description": readable(f"{title}, from {Path(model).name}"),
        "author": AUTHORS.get(weights, NOT_STATED) if author is None else author,
        "license": published_license if license is None else license,
        "version": f"keras_mobilevit {keras_mobilevit.__version__}",
    }


def describe_preparation(sizes: Sequence[int], crop: float | None) -> str:
    """Describes how an application resizes an image.

    Args:
        sizes: sides of the images that the file takes, in pixels.
        crop: fraction of the short side that the center crop keeps; `None` if the file
            takes the whole image.
    """
    if crop is None:
        sides = " or ".join(f"{size}x{size}" for size in sizes)
        return (
            f"the whole image resized to {sides} pixels, bilinearly, ignoring its "
            "aspect"
        )
    shorter = " or ".join(str(round(size / crop)) for size in sizes)
    return f"the short side resized to {shorter} pixels, bilinearly; center crop"
