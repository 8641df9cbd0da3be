"""Writes a classifier's weights to a file that timm reads."""

import os
import warnings

import keras
import numpy as np
from keras import layers
from safetensors import SafetensorError
from safetensors.numpy import save_file

from keras_mobilevit.backend import Tensor
from keras_mobilevit.files import atomic_write
from keras_mobilevit.weights.compare import ADAPTER_PREFIXES, shorten
from keras_mobilevit.weights.names import (
    CHECKPOINT_FORMATS,
    CheckpointFormat,
    is_backbone,
)
from keras_mobilevit.weights.pytorch_layout import (
    locate_variables,
    variable_names,
    weighted_layers,
)


def _float_kernel(layer: layers.Layer) -> Tensor:
    """Returns a layer's kernel in floats.

    LoRA's adapters are added to it. An int8 kernel is multiplied by its scale.
    """
    mode = getattr(layer, "quantization_mode", None)
    if mode is None:
        return layer.kernel  # includes the adapters
    if mode != "int8" or layer.lora_enabled:
        lora = " and has LoRA adapters" if layer.lora_enabled else ""
        raise ValueError(
            f"Layer {layer.name!r} is quantized to {mode}{lora}. timm has no such "
            "layer. Save the model before `quantize`."
        )
    return keras.ops.cast(layer.kernel, "float32") / layer.kernel_scale


def _float_variables(layer: layers.Layer) -> dict[str, np.ndarray]:
    """Returns the variables that timm's layer has, in float32, by Keras's names."""
    expected = set(variable_names(layer))
    values = {"kernel": _float_kernel(layer)} if "kernel" in expected else {}
    names = {variable.name for variable in layer.weights}
    found = {name for name in names if not name.startswith(ADAPTER_PREFIXES)}
    if found != expected:
        raise ValueError(
            f"Layer {layer.name!r} has the weights {', '.join(sorted(found))}. timm's "
            f"layer has {', '.join(sorted(expected)) or 'no weights of this kind'}."
        )
    values |= {name: getattr(layer, name) for name in expected - {"kernel"}}
    return {
        name: keras.ops.convert_to_numpy(value).astype(np.float32)
        for name, value in values.items()
    }


def _find_format(model: keras.Model) -> CheckpointFormat:
    """Returns timm's format of the family whose layers are most like the model's."""
    names = {layer.name for layer in weighted_layers(model, is_backbone)}
    formats = [source for source in CHECKPOINT_FORMATS if source.name == "timm"]
    return min(formats, key=lambda source: len(names ^ source.backbone))


def _check_layers(model: keras.Model, source: CheckpointFormat) -> None:
    """Checks that a model has exactly the layers of timm's classifier."""
    names = {layer.name for layer in weighted_layers(model)}
    unknown = sorted(names - set(source.modules))
    missing = sorted(set(source.modules) - names - {"predictions"})
    title = source.family.title
    if unknown:
        raise ValueError(
            f"timm's {title} has no layer like {shorten(unknown)}. Expected a "
            "classifier made by `MobileViT_S` or another variant."
        )
    if missing:
        raise ValueError(
            f"The model lacks layers of timm's {title}: {shorten(missing)}. Save the "
            "whole classifier. Only the top may be missing."
        )


def _timm_tensors(
    model: keras.Model, source: CheckpointFormat
) -> dict[str, np.ndarray]:
    """Returns the tensors of timm's state dict by name."""
    owners = weighted_layers(model)
    values = {layer.name: _float_variables(layer) for layer in owners}
    tensors: dict[str, np.ndarray] = {}
    for layer, variable, location in locate_variables(owners, source):
        if variable.name in values[layer.name]:  # adapters are part of the kernel
            value = location.from_keras(values[layer.name][variable.name])
            empty = np.zeros(location.shape, np.float32)
            tensors.setdefault(location.name, empty)[location.rows] = value
    for layer in owners:
        if isinstance(layer, layers.BatchNormalization):
            module = source.modules[layer.name]
            tensors[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    return tensors


def save_safetensors(model: keras.Model, path: str | os.PathLike) -> None:
    """Writes a classifier's weights under timm's names, in float32.

    `timm.create_model("mobilevit_s", num_classes=...)` loads the file with
    `strict=True` and returns the same logits for images in [0, 1]. LoRA's adapters are
    added to the kernels. Kernels that `quantize("int8")` has rounded are written as
    rounded, with a warning.

    Args:
        model: a classifier made by `MobileViT_S` or another variant, with or without
            the top.
        path: path of the `.safetensors` file. If writing fails, an earlier file stays.

    Raises:
        ValueError: if the model has other layers than timm's, or if it is quantized in
            another way.
        OSError: if the file cannot be written.

    Example:
    >>> keras_mobilevit.save_safetensors(model, "trained.safetensors")
    >>> timm_model.load_state_dict(safetensors.torch.load_file("trained.safetensors"))
    """
    source = _find_format(model)
    _check_layers(model, source)
    tensors = _timm_tensors(model, source)
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # not an OSError, even if the disk is full
            raise OSError(f"Cannot write {path}: {error}") from error
    if any(getattr(layer, "quantization_mode", None) for layer in model.layers):
        warnings.warn(
            f"The model is quantized. {path} holds float32 kernels that are rounded to "
            "8 bits. To keep the original kernels, save the model before `quantize`.",
            stacklevel=2,
        )
