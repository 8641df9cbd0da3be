"""Loading and saving weights, by name and in both directions strict.

A file of timm, transformers or ml-cvnets is read through a map from this library's
layer names to theirs. Every tensor of the file must be used and every weight of the
model set, in equal shape, or nothing is loaded.
"""

import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import h5py
import keras
import numpy as np
from keras import layers
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from keras_mobilevit.files import atomic_write
from keras_mobilevit.weights.hub import is_published
from keras_mobilevit.weights.names import (
    CVNETS,
    CVNETS_TASKS,
    LIBRARIES,
    TIMM,
    Library,
    is_backbone,
)

OLDEST_TORCH = (2, 6)  # earlier ones run code in spite of `weights_only`
LISTED = 10  # names of a kind of difference that an error lists
HEAD_LAYERS = ("predictions", "ssd_split", "deeplab_classifier")  # a layer of each whole model
CHANNEL_ORDERS = ("rgb", "bgr")
ADAPTED = ("lora_kernel", "kernel_scale")  # in the names of what a plain layer has not

# Names of a variable here and in PyTorch, by kind of layer.
_CONV = {"kernel": "weight"}
_DENSE = {"kernel": "weight", "bias": "bias"}
_LAYER_NORM = {"gamma": "weight", "beta": "bias"}
_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_VARIABLES = {
    layers.Conv2D: _CONV,
    layers.DepthwiseConv2D: _CONV,
    layers.Dense: _DENSE,
    layers.LayerNormalization: _LAYER_NORM,
    layers.BatchNormalization: _BATCH_NORM,
}

# PyTorch's axes in Keras's order: OIHW to HWIO; C1HW to HWC1; (out, in) to (in, out).
_KERNEL_AXES = {
    layers.Conv2D: (2, 3, 1, 0),
    layers.DepthwiseConv2D: (2, 3, 0, 1),
    layers.Dense: (1, 0),
}


class _Place(NamedTuple):
    """Where a variable's values stand in a PyTorch file.

    Attributes:
        name: of the tensor.
        shape: of the tensor, in PyTorch's order.
        axes: PyTorch's axes in Keras's order, `None` if they are the same.
        third: which third of the tensor it is, `None` for all of it.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    third: int | None

    def to_keras(self, tensor: np.ndarray) -> np.ndarray:
        if self.third is not None:
            tensor = np.split(tensor, 3)[self.third]
        return np.transpose(tensor, self.axes) if self.axes else tensor

    def from_keras(self, value: np.ndarray) -> np.ndarray:
        """Inverts `to_keras`, but gives only the third."""
        return np.transpose(value, np.argsort(self.axes)) if self.axes else value


def _kind(layer) -> type | None:
    """Returns the kind of a layer; this library's own are of the kind they extend."""
    return next((kind for kind in type(layer).__mro__ if kind in _VARIABLES), None)


def _place(layer, variable, library: Library) -> _Place:
    kind = _kind(layer)
    # A layer of another kind or name can only be reported as missing.
    module = library.modules.get(layer.name, layer.name)
    module, _, third = module.partition("#")
    name = f"{module}.{_VARIABLES.get(kind, {}).get(variable.name, variable.name)}"
    axes = _KERNEL_AXES.get(kind) if variable.name == "kernel" else None
    shape = tuple(variable.shape)
    if axes:
        shape = tuple(shape[axes.index(i)] for i in range(len(axes)))
    if third:
        shape = (3 * shape[0], *shape[1:])
    return _Place(name, shape, axes, int(third) if third else None)


def _is_any(layer_name: str) -> bool:
    return True


def _is_below_top(layer_name: str) -> bool:
    return layer_name != "predictions"


def _weighted_layers(model: keras.Model, chosen: Callable[[str], bool]) -> list:
    return [layer for layer in model.layers if layer.weights and chosen(layer.name)]


def _has_top(model: keras.Model) -> bool:
    return any(layer.name in HEAD_LAYERS for layer in model.layers)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _match(wanted: dict, found: dict, path: str) -> None:
    """Raises a ValueError that lists the differences of two `{name: shape}`."""
    missing = sorted(set(wanted) - set(found))
    unused = sorted(set(found) - set(wanted))
    mismatched = [
        f"{name} (model {tuple(wanted[name])}, file {found[name]})"
        for name in sorted(set(wanted) & set(found))
        if tuple(wanted[name]) != tuple(found[name])
    ]
    problems = [
        f"{kind}: {_listed(names)}"
        for kind, names in (
            ("not in the file", missing),
            ("not in the model", unused),
            ("of another shape", mismatched),
        )
        if names
    ]
    if problems:
        guess = "Is it of another variant, or of another number of classes?"
        if any(word in name for name in missing + unused for word in ADAPTED):
            guess = (
                "One of them is quantized or has LoRA's adapters: load the weights "
                "before `quantize` or `enable_lora`."
            )
        elif not mismatched and all("auxiliary" in name for name in missing + unused):
            guess = (
                "One of them has the auxiliary head of training: build the model with "
                "`auxiliary=True`, and take it off with `without_auxiliary`."
            )
        raise ValueError(
            f"{path} does not fit the model, nothing was loaded. {guess}\n  "
            + "\n  ".join(problems)
        )


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own kind for each defect
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_pt(path: str) -> dict[str, np.ndarray]:
    """Reads a PyTorch file; a pickle with code in it is refused and does not run."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"Reading {path} takes PyTorch: `pip install torch`. Safetensors files "
            "are read without it."
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise ValueError(
            f"PyTorch {torch.__version__} can be made to run code in a file like "
            f"{path}. Reading one takes 2.6 or later."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no such file
        raise ValueError(f"{path} holds no weights alone: {error}") from error
    is_flat = isinstance(state, dict) and all(map(torch.is_tensor, state.values()))
    if not is_flat:
        raise ValueError(f"{path} must hold a dict of tensors by name, and no more.")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def _identify(tensors: dict, path: str) -> Library:
    """Tells by its names whose a file is."""
    for library in LIBRARIES:
        if library.stem in tensors:
            return library
    expected = ", ".join(f"{x.stem!r} ({x.name}'s)" for x in LIBRARIES)
    raise ValueError(
        f"{path} holds no MobileViT: expected one of the tensors {expected}."
        f" Its first names are: {', '.join(sorted(tensors)[:3])}."
    )


def _expects_bgr(library: Library, path: str, channel_order: str | None) -> bool:
    """Tells whether weights expect images with the channels reversed."""
    if channel_order is not None:
        return channel_order == "bgr"
    if library in (CVNETS, CVNETS_TASKS) and not is_published(path):
        # The names are the same in every version; only the first read images as BGR.
        warnings.warn(
            f"{path} has the tensor names of ml-cvnets, which do not tell the order of "
            "the colors. BGR was assumed, as in Apple's published MobileViT (ml-cvnets "
            "0.1), and the channels of the first convolution were reversed. If the "
            "weights were trained with ml-cvnets 0.2 or later, which read RGB, build "
            "the model with `weights=None` and call `keras_mobilevit.load_weights("
            'model, path, channel_order="rgb")`. `channel_order="bgr"` loads them as '
            "now, without this warning.",
            stacklevel=2,
        )
    return library.is_bgr


def _reversed_colors(kernel: np.ndarray) -> np.ndarray:
    """Exchanges red and blue of a first convolution `[out, channels, rows, columns]`.

    Gray images have neither, and a fourth channel, which is alpha, stays the last.
    """
    if kernel.shape[1] < 3:
        return kernel
    return np.concatenate([kernel[:, 2::-1], kernel[:, 3:]], axis=1)


def _load_pytorch(model, tensors: dict, path: str, chosen, channel_order) -> None:
    library = _identify(tensors, path)
    others = {
        module.partition("#")[0]
        for layer_name, module in library.modules.items()
        if not chosen(layer_name)
    }
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] not in others
        # Batches counted, which nothing here needs.
        and not name.endswith("batches_tracked")
    }
    places = [
        (variable, _place(layer, variable, library))
        for layer in _weighted_layers(model, chosen)
        for variable in layer.weights
    ]
    _match(
        {place.name: place.shape for _, place in places},
        {name: tensor.shape for name, tensor in tensors.items()},
        path,
    )
    if _expects_bgr(library, path, channel_order):
        tensors[library.stem] = _reversed_colors(tensors[library.stem])
    for variable, place in places:
        variable.assign(place.to_keras(tensors[place.name]))


def load_model_file(path) -> keras.Model:
    """Loads a `.keras` file; code in it (a `Lambda` layer) is refused.

    Raises:
        ValueError: if the file is missing, damaged, or holds code.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a whole .keras file.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds for what does not fit
        raise ValueError(f"{path} cannot be loaded: {error}") from error


def _load_keras(model: keras.Model, path: str, chosen) -> None:
    donor = load_model_file(path)

    def variables(of):
        return {
            f"{layer.name}/{variable.name}": variable
            for layer in _weighted_layers(of, chosen)
            for variable in layer.weights
        }

    targets, sources = variables(model), variables(donor)
    _match(
        {name: variable.shape for name, variable in targets.items()},
        {name: tuple(variable.shape) for name, variable in sources.items()},
        path,
    )
    for name, variable in targets.items():
        variable.assign(sources[name])


def _h5_shapes(path) -> dict[str, tuple]:
    """Lists `{name: shape}` of the arrays in a `.weights.h5` file."""
    shapes = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            shapes[name] = item.shape

    with h5py.File(path) as file:
        file.visititems(visit)
    return shapes


def _load_h5(model: keras.Model, path: str) -> None:
    # Keras's own loader takes what it finds and sets weights until one does not fit;
    # so the file is first compared with what this model itself would write.
    with tempfile.TemporaryDirectory() as folder:
        own = os.path.join(folder, "own.weights.h5")
        model.save_weights(own)
        wanted = _h5_shapes(own)
    try:
        found = _h5_shapes(path)
    except OSError as error:
        raise ValueError(f"{path} is not a whole .weights.h5 file: {error}") from error
    _match(wanted, found, path)
    model.load_weights(path)


def _load(
    model: keras.Model,
    weights,
    chosen: Callable[[str], bool],
    channel_order: str | None,
) -> None:
    """Sets the chosen layers from a file, whose other layers are not used.

    Args:
        model: what to set.
        weights: the path of a file.
        chosen: tells by its name whether a layer is set.
        channel_order: as `load_weights`.
    """
    path = os.fspath(weights)
    if not os.path.isfile(path):
        raise ValueError(f"`weights` must be an existing file. Received: {path!r}.")
    if channel_order not in (None, *CHANNEL_ORDERS):
        raise ValueError(
            '`channel_order` must be None, "rgb" or "bgr". '
            f"Received: channel_order={channel_order!r}."
        )
    readers = {".safetensors": _read_safetensors, ".pt": _read_pt}
    read = readers.get(os.path.splitext(path)[1])
    if read:
        _load_pytorch(model, read(path), path, chosen, channel_order)
    elif channel_order == "bgr":
        raise ValueError(
            'Weights in Keras\'s files expect RGB here; `channel_order="bgr"` is for '
            f".safetensors and .pt files. Received: {path}."
        )
    elif path.endswith(".keras"):
        _load_keras(model, path, chosen)
    elif path.endswith(".weights.h5") and chosen is _is_any:
        _load_h5(model, path)
    else:
        raise ValueError(
            "Weights are read from `.keras`, `.safetensors`, `.pt` and, for a whole "
            f"model, `.weights.h5` files. Received: {path}."
        )


def load_weights(
    model: keras.Model,
    weights,
    include_top: bool = True,
    channel_order: str | None = None,
) -> None:
    """Sets every weight of a MobileViT from a file.

    Args:
        model: made by `MobileViT_S`, its siblings, `SSDLite` or `DeepLabV3`.
        weights: the path of a `.keras` or `.weights.h5` file written from such a
            model, of a `.safetensors` file with the names of timm, transformers or
            ml-cvnets, or of Apple's `.pt` (takes PyTorch).
        include_top: if false, the classifier keeps its values, and the file's
            classifier, whatever its number of classes, is not used.
        channel_order: of the images that the file's weights were trained on, `"rgb"`
            or `"bgr"`. The model takes RGB either way. By default RGB for timm's
            names and BGR for transformers' and ml-cvnets', as their published
            MobileViT have it. ml-cvnets 0.2 and later train on RGB under the same
            names: a file with these names that Apple has not published is loaded with
            a warning.

    Raises:
        ValueError: if the file is of another kind, is damaged, holds code, or does not
            fit; the message lists the names that are missing, unused or of another
            shape, and the model is left as it was.

    Example:
    >>> model = keras_mobilevit.MobileViT_S(weights=None, classes=10)
    >>> load_weights(model, "mobilevit_s.safetensors", include_top=False)
    """
    is_h5 = os.fspath(weights).endswith(".weights.h5")  # which is a whole model's
    whole = include_top and (is_h5 or _has_top(model))
    _load(model, weights, _is_any if whole else _is_below_top, channel_order)


def load_backbone(
    model: keras.Model, weights, channel_order: str | None = None
) -> None:
    """Sets the stem and the five stages from a file, and leaves the head as it is.

    Args:
        model: any MobileViT: a classifier, a detector or a segmenter.
        weights: the path of a file that holds any MobileViT of the same variant, as
            `load_weights` reads it. What it has beyond a backbone is not used.
        channel_order: as `load_weights`.

    Raises:
        ValueError: as `load_weights`.

    Example:
    >>> detector = keras_mobilevit.SSDLite("mobilevit_s", classes=3, weights=None)
    >>> load_backbone(detector, "runs/photos/best.keras")  # a classifier
    """
    _load(model, weights, is_backbone, channel_order)


def _plain_kernel(layer):
    """Returns a layer's kernel in floats, whatever Keras has made of it.

    LoRA's adapters are added to it, and 8 bits are multiplied out.
    """
    mode = getattr(layer, "quantization_mode", None)
    if mode is None:
        return layer.kernel  # with the adapters
    if mode != "int8" or layer.lora_enabled:
        lora = " and has LoRA's adapters" if layer.lora_enabled else ""
        raise ValueError(
            f"Layer {layer.name!r} is quantized to {mode}{lora}, which timm's layers "
            "are not. Write the file from the model as it was before `quantize`."
        )
    return keras.ops.cast(layer.kernel, "float32") / layer.kernel_scale


def _plain_variables(layer) -> dict[str, np.ndarray]:
    """Returns the float32 values of what timm has of a layer, by Keras's names.

    Raises:
        ValueError: if the layer has another kind of weights.
    """
    expected = set(_VARIABLES.get(_kind(layer), {}))
    values = {"kernel": _plain_kernel(layer)} if "kernel" in expected else {}
    names = {variable.name for variable in layer.weights}
    plain = {name for name in names if not name.startswith(ADAPTED)}
    if plain != expected:
        raise ValueError(
            f"Layer {layer.name!r} has the weights {', '.join(sorted(plain))}. timm's "
            f"has {', '.join(sorted(expected)) or 'none like these'}."
        )
    values |= {name: getattr(layer, name) for name in expected - {"kernel"}}
    return {
        name: keras.ops.convert_to_numpy(value).astype(np.float32)
        for name, value in values.items()
    }


def _check_is_classifier(model: keras.Model) -> None:
    """Refuses a model that has not the layers of timm's, no more and no fewer."""
    names = {layer.name for layer in _weighted_layers(model, _is_any)}
    unknown = sorted(names - set(TIMM.modules))
    missing = sorted(set(TIMM.modules) - names - {"predictions"})
    if unknown:
        raise ValueError(
            f"timm's MobileViT has no layer like {_listed(unknown)}. Only classifiers "
            "made by `MobileViT_S` and its siblings can be written for it."
        )
    if missing:
        raise ValueError(
            f"The model lacks layers of timm's MobileViT: {_listed(missing)}. Write "
            "the file from a whole classifier, with the top or without."
        )


def save_safetensors(model: keras.Model, path) -> None:
    """Writes a classifier's weights under timm's names.

    `timm.create_model("mobilevit_s", num_classes=...)` loads the file with
    `strict=True` and gives the same logits; timm takes images in [0, 1]. All numbers
    are written in float32. LoRA's adapters are added to the kernels; kernels that
    `quantize("int8")` rounded are written as rounded, with a warning.

    Args:
        model: a model made by `MobileViT_S` or its siblings, with the top or without.
        path: of the `.safetensors` file; written whole or not at all.

    Raises:
        ValueError: if the model has layers that timm's does not have, lacks some, or is
            quantized in another way.
        OSError: if the file cannot be written.

    Example:
    >>> keras_mobilevit.save_safetensors(model, "trained.safetensors")
    >>> timm_model.load_state_dict(safetensors.torch.load_file("trained.safetensors"))
    """
    _check_is_classifier(model)
    tensors, thirds = {}, {}
    for layer in _weighted_layers(model, _is_any):
        values = _plain_variables(layer)
        for variable in layer.weights:
            if variable.name not in values:
                continue
            place = _place(layer, variable, TIMM)
            value = place.from_keras(values[variable.name])
            if place.third is None:
                tensors[place.name] = value
            else:
                thirds.setdefault(place.name, {})[place.third] = value
        if isinstance(layer, layers.BatchNormalization):
            module = TIMM.modules[layer.name]
            tensors[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    for name, parts in thirds.items():
        tensors[name] = np.concatenate([parts[i] for i in range(3)])
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # which is no OSError, when a disk is full
            raise OSError(f"Cannot write {path}: {error}") from error
    if any(getattr(layer, "quantization_mode", None) for layer in model.layers):
        warnings.warn(
            f"The model is quantized: {path} holds its kernels in float32 as 8 bits "
            "rounded them. For the original ones, write it before `quantize`.",
            stacklevel=2,
        )
