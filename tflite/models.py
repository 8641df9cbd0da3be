"""The Keras models that are converted."""

from pathlib import Path

import keras
import numpy as np

from keras_mobilevit import classifier, deeplab, ssdlite
from keras_mobilevit.configs import VARIANTS, get_config
from keras_mobilevit.files import read_text
from keras_mobilevit.preprocessing import decode_predictions
from keras_mobilevit.weights import load_model_file
from tflite.baselines import BASELINES, build_baseline

# Before the name of a backbone: what is built on it, and the side of its images.
HEADS = {
    "ssdlite_": (ssdlite.SSDLite, ssdlite.DEFAULT_SIZE),
    "deeplabv3_": (deeplab.DeepLabV3, deeplab.DEFAULT_SIZE),
}


def split_name(model: str) -> tuple[str, str]:
    """Splits `"ssdlite_mobilevit_s"` into a key of `HEADS`, or "", and a backbone."""
    head = next((head for head in HEADS if model.startswith(head)), "")
    return head, model.removeprefix(head)


def default_size(model: str) -> int:
    """Returns the side of the images of a model by its name."""
    head, _ = split_name(model)
    return HEADS[head][1] if head else classifier.DEFAULT_SIZE


def load_model(model: str, weights: str = "none") -> keras.Model:
    """Loads a `.keras` file, or builds a variant or a baseline that returns logits.

    Args:
        model: `mobilevit_xxs`, `mobilevit_xs`, `mobilevit_s`, one of these with a head
            (`ssdlite_mobilevit_s`, `deeplabv3_mobilevit_s`), a key of `BASELINES` (for
            images of 224x224 pixels), or the path of a `.keras` file.
        weights: for a variant: `none` (random), `imagenet`, `coco` of a detector, `voc`
            of a segmenter, or a path; for a baseline `none`.

    Returns:
        The model.

    Raises:
        ValueError: if there is no such model or no such weights, or the file is
            something else.
    """
    if str(model).endswith(".keras"):
        if weights != "none":
            raise ValueError(f"{model} has its own weights; leave --weights away.")
        return _load_keras_file(model)
    if model in BASELINES:
        if weights != "none":
            raise ValueError(
                f"{model} has random weights only. Received: --weights={weights}."
            )
        return build_baseline(model)
    weights = None if weights == "none" else weights
    (head, backbone), shape = split_name(model), (None, None, 3)
    try:
        config = get_config(backbone)
    except ValueError as error:
        others = ", ".join(head + name for head in HEADS for name in VARIANTS)
        raise ValueError(
            f"{error} Or one with a head, {others}. Or a baseline, "
            f"{', '.join(BASELINES)}. Or the path of a `.keras` file."
        ) from error
    if head:
        build, _ = HEADS[head]
        built = build(backbone, weights=weights, input_shape=shape)
    else:
        built = classifier.build_classifier(
            config, weights=weights, input_shape=shape, classifier_activation=None
        )
    _refuse_nan(built, weights)
    return built


def _load_keras_file(path: str) -> keras.Model:
    loaded = load_model_file(path)
    shapes = [tuple(tensor.shape) for tensor in loaded.inputs]
    if [(len(shape), shape[-1]) for shape in shapes] != [(4, 3)]:
        raise ValueError(
            f"{path} takes inputs of the shapes {shapes}. "
            "Expected RGB images: (None, height, width, 3)."
        )
    is_known = ssdlite.is_detector(loaded) or deeplab.is_segmenter(loaded)
    if not is_known and [len(tensor.shape) for tensor in loaded.outputs] != [2]:
        raise ValueError(
            f"{path} gives outputs of the shapes "
            f"{[tuple(tensor.shape) for tensor in loaded.outputs]}. "
            "Expected those of a classifier, (None, classes), or a model that SSDLite "
            "or DeepLabV3 has built."
        )
    _refuse_nan(loaded, path)
    return loaded


def _refuse_nan(model: keras.Model, path: str) -> None:
    bad = [w.path for w in model.weights if not np.all(np.isfinite(w.numpy()))]
    if bad:
        raise ValueError(f"{path} has weights that are not finite: {bad[0]}.")


def labels_beside(path: str, classes: int) -> list[str]:
    """Reads the class names that a training run leaves beside its model."""
    file = Path(path).with_name("labels.txt")
    labels = read_text(file).splitlines() if file.exists() else []
    if labels and len(labels) != classes:
        raise ValueError(
            f"{file} names {len(labels)} classes, but {path} has {classes}. "
            "Move away the one that does not belong there."
        )
    return labels


def imagenet_ids() -> list[str]:
    """Returns the WordNet ids of ImageNet's classes, by which data sets name them.

    Raises:
        OSError: if they are not cached and cannot be downloaded.
    """
    # Scores that fall from class to class put them into their own order.
    (found,) = decode_predictions(-np.arange(1000.0)[None], top=1000)
    return [identity for identity, _, _ in found]
