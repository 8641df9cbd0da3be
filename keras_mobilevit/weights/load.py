"""Sets the weights of a model from a file, completely or not at all.

A file of timm, transformers or ml-cvnets is read through a map from this library's
layer names to the file's.
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator

import keras
import numpy as np

from keras_mobilevit.configs import VARIANTS
from keras_mobilevit.weights.compare import check_match
from keras_mobilevit.weights.file_formats import (
    check_finite,
    load_model_file,
    read_h5,
    read_h5_shapes,
    read_pt,
    read_safetensors,
)
from keras_mobilevit.weights.hub import is_published
from keras_mobilevit.weights.hub_repository import fetch_model, is_address
from keras_mobilevit.weights.names import (
    CHECKPOINT_FORMATS,
    CheckpointFormat,
    is_backbone,
)
from keras_mobilevit.weights.pytorch_layout import (
    family_of,
    locate_variables,
    weighted_layers,
)

# One layer of each whole model: it shows that the model has its top.
HEAD_LAYERS = ("predictions", "ssd_split", "deeplab_classifier")
CHANNEL_ORDERS = ("rgb", "bgr")
# Apple's segmenters of MobileViTv2 were trained with an auxiliary head, and hold it. It
# is not the one of `DeepLabV3`.
AUXILIARY_HEAD = "seg_head.aux_head."
_PYTORCH_READERS = {".safetensors": read_safetensors, ".pt": read_pt}


def _is_any(layer_name: str) -> bool:
    return True


def _is_below_top(layer_name: str) -> bool:
    return layer_name != "predictions"


def _identify(tensors: dict[str, np.ndarray], path: str) -> CheckpointFormat:
    """Finds the library and the family of a file by the names of its tensors.

    The stem tells the library. Families of a library may have the same stem: then the
    file belongs to the one whose names differ the least from the file's.
    """
    found = [source for source in CHECKPOINT_FORMATS if source.stem in tensors]
    if not found:
        names = {x.stem: x.name for x in CHECKPOINT_FORMATS}
        expected = ", ".join(f"{stem!r} ({name})" for stem, name in names.items())
        raise ValueError(
            f"{path} holds no MobileViT. Expected one of the tensors {expected}. "
            f"The file begins with: {', '.join(sorted(tensors)[:3])}."
        )
    modules = {name.rpartition(".")[0] for name in tensors}
    return min(found, key=lambda source: len(modules ^ source.module_names))


def _describe(
    tensors: dict[str, np.ndarray],
    source: CheckpointFormat,
    model: keras.Model,
    is_selected: Callable[[str], bool],
) -> str:
    """Says which classifier a file holds, if it holds another one than the model."""
    kernel = tensors.get(f"{source.modules.get('predictions')}.weight")
    if kernel is None or kernel.ndim < 2:
        return ""
    classes, features = kernel.shape[:2]
    heads = [layer for layer in model.layers if layer.name == "predictions"]
    own = tuple(heads[0].kernel.shape) if heads else (None, None)
    if own == (features, classes):
        return ""
    advice = "Build a model of this variant and as many classes."
    if is_selected is is_backbone:
        advice = "Build a model of this variant."
    elif not heads:
        advice = (
            "To start a detector or a segmenter from it, build it with `weights=None` "
            "and call `keras_mobilevit.load_backbone(model, path)`."
        )
    elif own[0] == features:
        advice = "Build a model of as many classes, or leave out the classifier."
    for config in VARIANTS.values():
        width = config.head_channels or config.stage_channels[-1]
        if (config.family, width) == (source.family, features):
            return f"The file holds a {config.name} of {classes} classes. {advice}"
    return ""


def _check_family(model: keras.Model, source: CheckpointFormat, path: str) -> None:
    """Refuses a file of another family than the model's."""
    family = family_of(model)
    if family not in (None, source.family):
        raise ValueError(
            f"{path} holds a {source.family.title}, but the model is a "
            f"{family.title}. Nothing was loaded. Build the variant that the file is "
            "for."
        )


def _expects_bgr(
    source: CheckpointFormat, path: str, channel_order: str | None
) -> bool:
    """Tells whether a file's weights were trained on BGR images."""
    if channel_order is not None:
        return channel_order == "bgr"
    if source.ambiguity and not is_published(path):
        assumed, other = ("bgr", "rgb") if source.is_bgr else ("rgb", "bgr")
        warnings.warn(
            f"{path} has the tensor names of {source.name}, which do not say whether "
            f"the weights expect RGB or BGR. {source.ambiguity} {assumed.upper()} was "
            f"assumed. If the weights expect {other.upper()}, build the model with "
            "`weights=None` and call `keras_mobilevit.load_weights(model, path, "
            f'channel_order="{other}")`. With `channel_order="{assumed}"` this warning '
            "is not shown.",
            stacklevel=2,
        )
    return source.is_bgr


def _swap_red_and_blue(kernel: np.ndarray) -> np.ndarray:
    """Reverses the colors of a first convolution `[out, channels, rows, columns]`.

    The fourth channel is alpha and stays the last.
    """
    return np.concatenate([kernel[:, 2::-1], kernel[:, 3:]], axis=1)


def _load_pytorch(
    model: keras.Model,
    path: str,
    is_selected: Callable[[str], bool],
    channel_order: str | None,
) -> None:
    """Sets the selected layers from a .safetensors or .pt file."""
    tensors = _PYTORCH_READERS[os.path.splitext(path)[1]](path)
    source = _identify(tensors, path)
    _check_family(model, source, path)
    holds = _describe(tensors, source, model, is_selected)
    ignored_modules = {
        module.partition("#")[0]
        for layer_name, module in source.modules.items()
        if not is_selected(layer_name)
    }
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] not in ignored_modules
        and not name.endswith("batches_tracked")  # a counter that Keras does not have
        and not name.startswith(AUXILIARY_HEAD)
    }
    locations = locate_variables(weighted_layers(model, is_selected), source)
    check_match(
        {location.name: location.shape for *_, location in locations},
        {name: tensor.shape for name, tensor in tensors.items()},
        path,
        holds,
    )
    if _expects_bgr(source, path, channel_order):
        tensors[source.stem] = _swap_red_and_blue(tensors[source.stem])
    for _, variable, location in locations:
        variable.assign(location.to_keras(tensors[location.name]))


def _load_keras(
    model: keras.Model, path: str, is_selected: Callable[[str], bool]
) -> None:
    """Sets the selected layers from a .keras file."""

    def variables(owner: keras.Model) -> dict[str, keras.Variable]:
        return {
            f"{layer.name}/{variable.name}": variable
            for layer in weighted_layers(owner, is_selected)
            for variable in layer.weights
        }

    targets, sources = variables(model), variables(load_model_file(path))
    check_match(
        {name: tuple(variable.shape) for name, variable in targets.items()},
        {name: tuple(variable.shape) for name, variable in sources.items()},
        path,
    )
    for name, variable in targets.items():
        variable.assign(sources[name])


def _load_h5(model: keras.Model, path: str) -> None:
    """Sets all layers from a .weights.h5 file."""
    # Keras would set weights until it meets one that does not fit. So the file is first
    # compared with the file that this model would write.
    with tempfile.TemporaryDirectory() as folder:
        own = os.path.join(folder, "own.weights.h5")
        model.save_weights(own)
        expected = read_h5_shapes(own)
    found = {name: array.shape for name, array in read_h5(path).items()}
    check_match(expected, found, path)
    try:
        model.load_weights(path)
    except Exception as error:  # h5py and Keras raise many types
        raise ValueError(
            f"{path} cannot be loaded, and nothing was changed: {error}"
        ) from error
    # `read_h5` cannot check bfloat16, which HDF5 keeps as bytes.
    check_finite({weight.path: weight for weight in model.weights}, path)


@contextlib.contextmanager
def _unchanged_by_errors(model: keras.Model) -> Iterator[None]:
    """Gives a model its values back if the context ends with an error."""
    before = [np.array(keras.ops.convert_to_numpy(x)) for x in model.variables]
    try:
        yield
    except BaseException:  # Ctrl-C too
        for variable, value in zip(model.variables, before):
            variable.assign(value)
        raise


def _local_file(weights: str | os.PathLike) -> str | os.PathLike:
    """Returns a path; of an address on the Hub, that of its cached copy."""
    return fetch_model(str(weights)) if is_address(weights) else weights


def _load(
    model: keras.Model,
    weights: str | os.PathLike,
    is_selected: Callable[[str], bool],
    channel_order: str | None,
) -> None:
    """Sets the selected layers from a file and ignores the file's other layers."""
    path = os.fspath(weights)
    if not os.path.isfile(path):
        raise ValueError(
            "`weights` must be an existing file, or an address on the Hugging Face "
            f'Hub, "hf://owner/name". Received: {path!r}.'
        )
    if channel_order not in (None, *CHANNEL_ORDERS):
        raise ValueError(
            '`channel_order` must be None, "rgb" or "bgr". '
            f"Received: channel_order={channel_order!r}."
        )
    is_pytorch = os.path.splitext(path)[1] in _PYTORCH_READERS
    if channel_order == "bgr" and not is_pytorch:
        raise ValueError(
            'Keras files always expect RGB. `channel_order="bgr"` is only for '
            f".safetensors and .pt files. Received: {path}."
        )
    with _unchanged_by_errors(model):
        if is_pytorch:
            _load_pytorch(model, path, is_selected, channel_order)
        elif path.endswith(".keras"):
            _load_keras(model, path, is_selected)
        elif path.endswith(".weights.h5") and is_selected is _is_any:
            _load_h5(model, path)
        else:
            raise ValueError(
                "Expected a `.keras`, `.safetensors` or `.pt` file, or, for a whole "
                f"model, a `.weights.h5` file. Received: {path}."
            )


def load_weights(
    model: keras.Model,
    weights: str | os.PathLike,
    include_top: bool = True,
    channel_order: str | None = None,
) -> None:
    """Sets all weights of a MobileViT from a file.

    Args:
        model: a model made by `MobileViT_S` or another variant, `SSDLite` or
            `DeepLabV3`.
        weights: path of a `.keras` or `.weights.h5` file of such a model, of a
            `.safetensors` file with the names of timm, transformers or ml-cvnets, or of
            Apple's `.pt` file (requires PyTorch). Or the address of such a file on the
            Hugging Face Hub, `hf://owner/name`, with `/file` or `@revision` if needed.
        include_top: if false, the model's classifier keeps its values, and the file's
            classifier is ignored. Its number of classes need not match.
        channel_order: the order of the colors, `"rgb"` or `"bgr"`, in the images that
            the file's weights were trained on. The model takes RGB either way. The
            default is RGB for timm's names and for every MobileViTv2. It is BGR for a
            MobileViT with the names of transformers or ml-cvnets, as in the published
            files. Where files with the same names may expect another order (MobileViT
            of ml-cvnets, MobileViTv2 of transformers), a file that Apple has not
            published is loaded with a warning.

    Raises:
        ValueError: if the file has another format, is damaged, contains code, or does
            not fit. The message lists the names that are missing, unused or of another
            shape. The model is not changed.
        OSError: if a file of the Hub is not cached and cannot be downloaded.

    Example:
    >>> model = keras_mobilevit.MobileViT_S(weights=None, classes=10)
    >>> load_weights(model, "mobilevit_s.safetensors", include_top=False)
    """
    weights = _local_file(weights)
    is_h5 = os.fspath(weights).endswith(".weights.h5")  # always a whole model
    has_top = any(layer.name in HEAD_LAYERS for layer in model.layers)
    is_whole = include_top and (is_h5 or has_top)
    _load(model, weights, _is_any if is_whole else _is_below_top, channel_order)


def load_backbone(
    model: keras.Model, weights: str | os.PathLike, channel_order: str | None = None
) -> None:
    """Sets the stem and the five stages from a file. The head keeps its values.

    Args:
        model: any MobileViT: a classifier, a detector or a segmenter.
        weights: path or address of a file that `load_weights` can read. It may hold
            any MobileViT of the same variant; only the backbone is used.
        channel_order: see `load_weights`.

    Raises:
        ValueError: see `load_weights`.

    Example:
    >>> detector = keras_mobilevit.SSDLite("mobilevit_s", classes=3, weights=None)
    >>> load_backbone(detector, "runs/photos/best.keras")  # a classifier
    """
    _load(model, _local_file(weights), is_backbone, channel_order)
