"""The Keras models that are converted."""

import re
from pathlib import Path

import keras
import numpy as np

from keras_mobilevit import deeplab, ssdlite
from keras_mobilevit.calls import is_listed
from keras_mobilevit.classifier import build_classifier
from keras_mobilevit.configs import (
    CLASSIFIER_SIZE,
    DETECTOR_SIZE,
    SEGMENTER_SIZE,
    VARIANTS,
    get_variant,
)
from keras_mobilevit.files import read_text
from keras_mobilevit.preprocessing import decode_predictions
from keras_mobilevit.value_range import input_max
from keras_mobilevit.weights.file_formats import load_model_file
from tflite.suites.baselines import BASELINES, build_baseline

CHANNELS = (1, 3)
GRAY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's "L"

# Before the name of a backbone: what is built on it, and the side of its images.
HEADS = {
    "ssdlite_": (ssdlite.SSDLite, DETECTOR_SIZE),
    "deeplabv3_": (deeplab.DeepLabV3, SEGMENTER_SIZE),
}


def split_name(model: str) -> tuple[str, str]:
    """Splits `"ssdlite_mobilevit_s"` into a key of `HEADS`, or "", and a backbone."""
    head = next((head for head in HEADS if model.startswith(head)), "")
    return head, model.removeprefix(head)


def default_size(name: str, model: keras.Model | None = None) -> int:
    """Returns the side of the images of a model, by its name or by what it is."""
    head, _ = split_name(name)
    if head:
        return HEADS[head][1]
    if model is not None and ssdlite.is_detector(model):
        return DETECTOR_SIZE
    if model is not None and deeplab.is_segmenter(model):
        return SEGMENTER_SIZE
    return CLASSIFIER_SIZE


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
            raise ValueError(f"{model} has its own weights; remove --weights.")
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
        config = get_variant(backbone)
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
        built = build_classifier(
            config, weights=weights, input_shape=shape, classifier_activation=None
        )
    _refuse_nan(built, weights)
    return built


# Why Keras does not load a file, in its words, and what to do about it.
HINTS = {
    r"Could not locate (class|function) '[^']+'": (
        " ({found}). That is code of its own, which is not in the file. Build the "
        "model of Keras's layers and keras.ops alone, load its weights into that and "
        "save it."
    ),
    r"(`Lambda` layer|lambda_layer\.Lambda)": (
        ": it has a Lambda layer, whose code is not run. Write what it does with "
        "keras.layers or keras.ops, which are saved as they are (Rescaling, "
        "x / 127.5 - 1, keras.ops.mean(x, axis=1)), and save the model again."
    ),
}


def _load(path: str) -> keras.Model:
    try:
        return load_model_file(path)
    except ValueError as error:
        for sign, hint in HINTS.items():
            found = re.search(sign, str(error))
            if found:
                hint = hint.format(found=found.group())
                raise ValueError(f"{path} cannot be loaded{hint}") from error
        raise


def _load_keras_file(path: str) -> keras.Model:
    loaded = _load(path)
    if not is_listed(loaded):
        raise ValueError(
            f"{path} is a model of the class {type(loaded).__name__}, whose call() is "
            "code that cannot be read. Build it as keras.Model(inputs, outputs) or "
            "keras.Sequential, with an Input of images, and save it again."
        )
    _refuse_other_weights(loaded, path)
    _refuse_nan(loaded, path)
    shapes = [tuple(tensor.shape) for tensor in loaded.inputs]
    if [len(shape) == 4 and shape[-1] in CHANNELS for shape in shapes] != [True]:
        raise ValueError(
            f"{path} takes inputs of the shapes {shapes}. Expected one of RGB images, "
            "(None, height, width, 3), or of gray ones, (None, height, width, 1)."
        )
    return in_float32(loaded)


def _refuse_other_weights(model: keras.Model, path: str) -> None:
    """Refuses what `quantize` and `enable_lora` add to a model."""
    for variable in model.variables:
        layer, _, name = variable.path.rpartition("/")
        if "lora_" in name:
            raise ValueError(
                f"{path} has LoRA weights in layer {layer!r}. Save its weights with "
                "save_weights(), which adds them to the kernels, load these into the "
                "model without enable_lora(), and save that."
            )
        is_integer = variable.dtype in ("int4", "int8", "uint8")
        if is_integer or name.startswith("quantized") or "amax_history" in name:
            raise ValueError(
                f"{path} was quantized by Keras, in layer {layer!r}. Convert the model "
                "as it was before quantize(); --formats=int8-mixed makes 8 bits of it."
            )


def in_float32(model: keras.Model) -> keras.Model:
    """Returns a model that computes in float32 with the same weights.

    Args:
        model: perhaps of a policy such as `mixed_float16`; its variables are kept.

    Returns:
        Another model, or the same one if it computes in float32 already.
    """
    config = keras.saving.serialize_keras_object(model)
    changed = _without_half(config)
    if changed == config:
        return model
    single = keras.saving.deserialize_keras_object(changed)
    for variable, value in zip(single.variables, model.variables):
        variable.assign(keras.ops.convert_to_numpy(value).astype(variable.dtype))
    return single


def _without_half(config):
    """Returns a configuration in which every type of 16 bits is float32."""
    if isinstance(config, dict):
        is_policy = config.get("class_name") == "DTypePolicy"
        changed = {key: _without_half(value) for key, value in config.items()}
        if is_policy and "float16" in config["config"]["name"]:
            changed["config"] = {**config["config"], "name": "float32"}
        if config.get("dtype") in ("float16", "bfloat16"):
            changed["dtype"] = "float32"
        return changed
    if isinstance(config, (list, tuple)):
        return type(config)(map(_without_half, config))
    return config


def network_images(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Returns images as a model takes them.

    Args:
        model: of RGB images, or of gray ones.
        images: `[images, height, width, 3]`, values in [0, 255].

    Returns:
        float32 `[images, height, width, channels]`, in the range that it takes.
    """
    images = images.astype(np.float32)
    if model.inputs[0].shape[-1] == 1:
        images = np.round(images @ GRAY)[..., None]
    return images * np.float32(input_max(model) / 255)


def fixed_size(model: keras.Model) -> int | None:
    """Returns the side of the images that a model takes, `None` if it takes any.

    Raises:
        ValueError: if it takes images that are not square alone.
    """
    height, width, _ = model.inputs[0].shape[1:]
    if None not in (height, width) and height != width:
        raise ValueError(
            f"{model.name} takes images of {height}x{width} pixels alone; only square "
            "ones can be converted. Build it for images of any size, "
            "keras.Input((None, None, 3)), or of square ones."
        )
    return height or width


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
