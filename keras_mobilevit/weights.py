"""Loading weights, by name and in both directions strict.

A file of `timm` or `transformers` is read through a map from this library's layer
names to theirs. Every tensor of the file must be used and every weight of the model
set, in equal shape, or nothing is loaded.
"""

import os
import tempfile
import zipfile

import h5py
import keras
import numpy as np
from keras import layers
from safetensors.numpy import load_file

from keras_mobilevit.backend import BatchNormalization
from keras_mobilevit.configs import TRANSFORMER_DEPTHS

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
    BatchNormalization: _BATCH_NORM,
}

# PyTorch's axes in Keras's order: OIHW to HWIO; C1HW to HWC1; (out, in) to (in, out).
_KERNEL_AXES = {
    layers.Conv2D: (2, 3, 1, 0),
    layers.DepthwiseConv2D: (2, 3, 0, 1),
    layers.Dense: (1, 0),
}

_MV2_PARTS = (
    # here         timm         transformers
    ("expand", "conv1_1x1", "expand_1x1"),
    ("depthwise", "conv2_kxk", "conv_3x3"),
    ("project", "conv3_1x1", "reduce_1x1"),
)
_BLOCK_PARTS = (
    ("local", "conv_kxk", "conv_kxk"),
    ("global_project", "conv_proj", "conv_projection"),
    ("fusion", "conv_fusion", "fusion"),
)
_TRANSFORMER_PARTS = (
    ("attention_norm", "norm1", "layernorm_before"),
    ("attention_query", "attn.query", "attention.attention.query"),
    ("attention_key", "attn.key", "attention.attention.key"),
    ("attention_value", "attn.value", "attention.attention.value"),
    ("attention_output", "attn.proj", "attention.output.dense"),
    ("ffn_norm", "norm2", "layernorm_after"),
    ("ffn_expand", "mlp.fc1", "intermediate.dense"),
    ("ffn_project", "mlp.fc2", "output.dense"),
)


def _conv_bn_rows(here: str, timm: str, transformers: str):
    yield f"{here}_conv", f"{timm}.conv", f"{transformers}.convolution"
    yield f"{here}_bn", f"{timm}.bn", f"{transformers}.normalization"


def _mobilenet_rows(stage: int, block: int):
    timm = f"stages.{stage - 1}.{block}"
    transformers = f"mobilevit.encoder.layer.{stage - 1}." + (
        f"layer.{block}" if stage < 3 else "downsampling_layer"
    )
    for here, timm_part, transformers_part in _MV2_PARTS:
        yield from _conv_bn_rows(
            f"stage{stage}_mv{block}_{here}",
            f"{timm}.{timm_part}",
            f"{transformers}.{transformers_part}",
        )


def _mobilevit_rows(stage: int, depth: int):
    here = f"stage{stage}_vit"
    timm = f"stages.{stage - 1}.1"
    transformers = f"mobilevit.encoder.layer.{stage - 1}"
    for part, timm_part, transformers_part in _BLOCK_PARTS:
        yield from _conv_bn_rows(
            f"{here}_{part}",
            f"{timm}.{timm_part}",
            f"{transformers}.{transformers_part}",
        )
    yield (
        f"{here}_local_project_conv",
        f"{timm}.conv_1x1",
        f"{transformers}.conv_1x1.convolution",
    )
    yield f"{here}_norm", f"{timm}.norm", f"{transformers}.layernorm"
    for i in range(depth):
        for part, timm_part, transformers_part in _TRANSFORMER_PARTS:
            yield (
                f"{here}_transformer{i}_{part}",
                f"{timm}.transformer.{i}.{timm_part}",
                f"{transformers}.transformer.layer.{i}.{transformers_part}",
            )


def _rows():
    """Yields (layer here, module in timm, module in transformers)."""
    yield from _conv_bn_rows("stem", "stem", "mobilevit.conv_stem")
    for stage, blocks in enumerate((1, 3, 1, 1, 1), start=1):
        for block in range(blocks):
            yield from _mobilenet_rows(stage, block)
    for stage, depth in enumerate(TRANSFORMER_DEPTHS, start=3):
        yield from _mobilevit_rows(stage, depth)
    yield from _conv_bn_rows("head", "final_conv", "mobilevit.conv_1x1_exp")
    yield "predictions", "head.fc", "classifier"


_TIMM_NAMES = {here: timm for here, timm, _ in _rows()}
_TRANSFORMERS_NAMES = {here: transformers for here, _, transformers in _rows()}


def _split_qkv(tensors: dict) -> dict:
    """Splits timm's fused projections, whose rows are query, key and value."""
    split = {}
    for name, tensor in tensors.items():
        # A shape that cannot be split is left for the comparison to report.
        if ".attn.qkv." not in name or len(tensor) % 3:
            split[name] = tensor
            continue
        parts = np.split(tensor, 3)
        for part, value in zip(("query", "key", "value"), parts):
            split[name.replace(".qkv.", f".{part}.")] = value
    return split


def _read_safetensors(path: str) -> tuple[dict, dict]:
    """Reads a file and tells by its names whose it is.

    Returns:
        The tensors, images RGB, and the map of layer names to this file's.
    """
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own kind for each defect
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    if "stem.conv.weight" in tensors:
        return _split_qkv(tensors), _TIMM_NAMES
    stem = "mobilevit.conv_stem.convolution.weight"
    if stem in tensors:
        # These weights expect BGR; the flip makes them expect RGB.
        tensors[stem] = tensors[stem][:, ::-1]
        return tensors, _TRANSFORMERS_NAMES
    raise ValueError(
        f"{path} holds no MobileViT classifier: expected the tensor "
        f"'stem.conv.weight' (timm's names) or '{stem}' (transformers' names). "
        f"Its first names are: {', '.join(sorted(tensors)[:3])}."
    )


def _weighted_layers(model: keras.Model, include_top: bool) -> list:
    return [
        layer
        for layer in model.layers
        if layer.weights and (include_top or layer.name != "predictions")
    ]


def _has_top(model: keras.Model) -> bool:
    return any(layer.name == "predictions" for layer in model.layers)


def _match(wanted: dict, found: dict, path: str) -> None:
    """Raises a ValueError that lists every difference of two `{name: shape}`."""
    problems = []
    missing = sorted(set(wanted) - set(found))
    unused = sorted(set(found) - set(wanted))
    if missing:
        problems.append(f"not in the file: {', '.join(missing)}")
    if unused:
        problems.append(f"not in the model: {', '.join(unused)}")
    problems += [
        f"{name}: the model has shape {tuple(wanted[name])}, the file {found[name]}"
        for name in sorted(set(wanted) & set(found))
        if tuple(wanted[name]) != tuple(found[name])
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit the model, nothing was loaded.\n  "
            + "\n  ".join(problems)
        )


def _load_safetensors(model: keras.Model, path: str, include_top: bool) -> None:
    tensors, names = _read_safetensors(path)
    if not include_top or not _has_top(model):
        top = names["predictions"]
        tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{top}.")}
    targets, wanted = {}, {}
    for layer in _weighted_layers(model, include_top):
        kind = type(layer)
        for variable in layer.weights:
            # A layer of another kind or name can only be reported as missing.
            torch_name = _VARIABLES.get(kind, {}).get(variable.name, variable.name)
            name = f"{names.get(layer.name, layer.name)}.{torch_name}"
            axes = _KERNEL_AXES.get(kind) if variable.name == "kernel" else None
            shape = tuple(variable.shape)
            if axes:
                shape = tuple(shape[axes.index(i)] for i in range(len(axes)))
            targets[name] = (variable, axes)
            wanted[name] = shape
    _match(wanted, {name: tensor.shape for name, tensor in tensors.items()}, path)
    for name, (variable, axes) in targets.items():
        tensor = tensors[name]
        variable.assign(np.transpose(tensor, axes) if axes else tensor)


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


def _load_keras(model: keras.Model, path: str, include_top: bool) -> None:
    donor = load_model_file(path)
    include_top = include_top and _has_top(model)

    def variables(of):
        return {
            f"{layer.name}/{variable.name}": variable
            for layer in _weighted_layers(of, include_top)
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


def load_weights(model: keras.Model, weights: str, include_top: bool = True) -> None:
    """Sets every weight of a MobileViT classifier from a file.

    Args:
        model: a model made by `MobileViT_S` or its siblings.
        weights: the path of a `.keras` or `.weights.h5` file written from such a
            model, or of a `.safetensors` file with the names of `timm` or
            `transformers`.
        include_top: if false, the classifier keeps its values, and the file's
            classifier, whatever its number of classes, is not used.

    Raises:
        ValueError: if the file is of another kind, is damaged, or does not fit; the
            message lists the names that are missing, unused or of another shape, and
            the model is left as it was.
        NotImplementedError: for `"imagenet"`, which is not available yet.

    Example:

    >>> model = keras_mobilevit.MobileViT_S(weights=None, classes=10)
    >>> load_weights(model, "mobilevit_s.safetensors", include_top=False)
    """
    if weights == "imagenet":
        raise NotImplementedError(
            '`weights="imagenet"` cannot be downloaded yet. Pass the path of a '
            "`.safetensors` file of timm's or transformers' MobileViT, or None."
        )
    path = os.fspath(weights)
    if not os.path.isfile(path):
        raise ValueError(f"`weights` must be an existing file. Received: {path!r}.")
    if path.endswith(".safetensors"):
        _load_safetensors(model, path, include_top)
    elif path.endswith(".keras"):
        _load_keras(model, path, include_top)
    elif path.endswith(".weights.h5") and include_top:
        _load_h5(model, path)
    else:
        raise ValueError(
            "Weights are read from `.keras`, `.safetensors` and, with the top, "
            f"`.weights.h5` files. Received: {path} with include_top={include_top}."
        )
