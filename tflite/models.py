"""The Keras models that are converted."""

import re
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_mobilevit.calls import is_functional
from keras_mobilevit.configs import get_variant
from keras_mobilevit.files import read_lines
from keras_mobilevit.image_models import to_channels
from keras_mobilevit.preprocessing import decode_predictions
from keras_mobilevit.value_range import input_max
from keras_mobilevit.weights.file_formats import load_model_file
from tflite.baselines import BASELINES
from tflite.tasks import registry

CHANNELS = (1, 3)


def default_size(name: str, model: keras.Model | None = None) -> int:
    """Returns the side of a model's images, if it takes any size.

    `name` is a model's name, or the path of its file; then `model` is needed.
    """
    row, _ = registry.split_name(name)
    if model is not None and not row.model_prefix:
        row = registry.row_of(model)
    return row.load().default_size


def load_model(model: str, weights: str = "none") -> keras.Model:
    """Loads a `.keras` file, or builds a named model that returns logits.

    A name is that of a backbone such as `mobilevit_s`, the same with a head's prefix
    such as `ssdlite_`, or a key of `BASELINES`. Weights are `none` (random), the
    published ones of its task, or a path. Baselines and files take `none` only.
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
        return BASELINES[model]()
    row, backbone = registry.split_name(model)
    try:
        get_variant(backbone)
    except ValueError as error:
        prefixes = [row.model_prefix for row in registry.TASKS if row.model_prefix]
        raise ValueError(
            f"{error} Or one of these after {' or '.join(prefixes)}. Or a baseline: "
            f"{', '.join(BASELINES)}. Or the path of a `.keras` file."
        ) from error
    build = row.load().build_model
    if build is None:
        raise ValueError(f"There are no named models for {row.name}.")
    return build(
        backbone,
        weights=None if weights == "none" else weights,
        input_shape=(None, None, 3),
    )


# Keras's messages on files that it does not load (patterns), and what to do.
HINTS = {
    r"Could not locate (class|function) '[^']+'": (
        " ({found}). This is custom code, which the file does not contain. Build the "
        "model from Keras's layers and keras.ops only, load the weights into it and "
        "save it."
    ),
    r"(a Lambda layer|lambda_layer\.Lambda)": (
        ": it has a Lambda layer, whose code is not run. Replace the layer by "
        "keras.layers or keras.ops, which Keras can save (Rescaling, x / 127.5 - 1, "
        "keras.ops.mean(x, axis=1)), and save the model again."
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
    if not is_functional(loaded):
        raise ValueError(
            f"{path} is a model of the class {type(loaded).__name__}, whose call() is "
            "custom code. Build it as keras.Model(inputs, outputs) or "
            "keras.Sequential, with an Input of images, and save it again."
        )
    _refuse_other_weights(loaded, path)
    shapes = [tuple(tensor.shape) for tensor in loaded.inputs]
    if [len(shape) == 4 and shape[-1] in CHANNELS for shape in shapes] != [True]:
        raise ValueError(
            f"{path} takes inputs of the shapes {shapes}. Expected one of RGB images, "
            "(None, height, width, 3), or one of gray images, (None, height, width, "
            "1)."
        )
    return in_float32(loaded)


def _refuse_other_weights(model: keras.Model, path: str) -> None:
    """Refuses the weights that `quantize` and `enable_lora` add to a model."""
    for variable in model.variables:
        layer, _, name = variable.path.rpartition("/")
        if "lora_" in name:
            raise ValueError(
                f"{path} has LoRA weights in layer {layer!r}. Merge them: save the "
                "weights with save_weights(), load them into the model without "
                "enable_lora(), and save that model."
            )
        is_integer = variable.dtype in ("int4", "int8", "uint8")
        if is_integer or name.startswith("quantized") or "amax_history" in name:
            raise ValueError(
                f"{path} was quantized by Keras, in layer {layer!r}. Convert the model "
                "before quantize(); --formats=int8-mixed quantizes it to 8 bits."
            )


def in_float32(model: keras.Model) -> keras.Model:
    """Returns a model with the same weights that computes in float32.

    The model may have a dtype policy such as `mixed_float16`. It is not changed, and
    returned if it computes in float32 already.
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
    """Returns a configuration with float32 in place of each 16-bit type."""
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
    """Converts RGB images in [0, 255] to the channels and range that a model takes.

    The result is float32 `[images, height, width, channels]`.
    """
    images = to_channels(images.astype(np.float32), model.inputs[0].shape[-1])
    return images * np.float32(input_max(model) / 255)


def fixed_size(model: keras.Model) -> int | None:
    """Returns the side of the images that a model takes, `None` if it takes any.

    Raises a ValueError if it takes images of one size that is not square.
    """
    height, width, _ = model.inputs[0].shape[1:]
    if None not in (height, width) and height != width:
        raise ValueError(
            f"{model.name} takes images of {height}x{width} pixels only; only models "
            "of square images can be converted. Build it for images of any size, "
            "keras.Input((None, None, 3)), or of a square size."
        )
    return height or width


def check_size(model: keras.Model, size: int) -> None:
    """Raises a ValueError if a model does not take square images of a size."""
    own = fixed_size(model)
    if own not in (None, size):
        raise ValueError(
            f"{model.name} takes images of {own}x{own} pixels only. Received: {size}. "
            "Remove --size."
        )


def has_classes_of(labels: Sequence[str], class_names: Sequence[str]) -> bool:
    """Tells whether a model's classes are those of a data set.

    Only the names tell: an equal number of classes with other names, or without names,
    may be other classes.
    """
    return bool(labels) and list(labels) == list(class_names)


def labels_beside(path: str, classes: int) -> list[str]:
    """Reads the class names that a training run wrote beside its model."""
    file = Path(path).with_name("labels.txt")
    labels = read_lines(file) if file.exists() else []
    if labels:
        hint = " Remove labels.txt, put it beside its own model, or give --labels=FILE."
        check_labels(labels, classes, str(file), hint)
    return labels


def check_labels(
    labels: Sequence[str], classes: int, file: str, hint: str = ""
) -> None:
    """Raises a ValueError if the names of a file do not fit a number of classes.

    A single unit may have two: it gives the probability of the second class.
    """
    if len(labels) != classes and (len(labels), classes) != (2, 1):
        raise ValueError(
            f"{file} names {len(labels)} classes, but the model has {classes}.{hint}"
        )
    if "" in labels:
        raise ValueError(f"{file}: line {list(labels).index('') + 1} is empty.{hint}")
    repeated = sorted({name for name in labels if list(labels).count(name) > 1})
    if repeated:
        raise ValueError(
            f"{file}: more than one class is called {repeated[0]!r}.{hint}"
        )


IMAGENET_CLASSES = 1000  # detectors on an ImageNet backbone have another number


def _imagenet_classes() -> list[tuple[str, str]]:
    """Returns the WordNet id and the name of each class of ImageNet.

    Raises an OSError if they are not cached and cannot be downloaded.
    """
    # Decreasing scores return the classes in their own order.
    (found,) = decode_predictions(-np.arange(IMAGENET_CLASSES * 1.0)[None], top=1000)
    return [(identity, name) for identity, name, _ in found]


def imagenet_ids() -> list[str]:
    """Returns the WordNet ids of ImageNet's classes; data sets use them as names."""
    return [identity for identity, _ in _imagenet_classes()]


def imagenet_labels() -> list[str]:
    """Returns the names of ImageNet's classes; equal names get their WordNet id."""
    classes = _imagenet_classes()
    names = [name for _, name in classes]
    return [
        f"{name} ({identity})" if names.count(name) > 1 else name
        for identity, name in classes
    ]
