"""Reads files of weights: .safetensors, .pt, .keras and .weights.h5.

All functions raise a ValueError that names the file if it is damaged, has numbers that
are not finite, or would take far more memory than it has bytes.
"""

import io
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

import h5py
import keras
import numpy as np
from safetensors.numpy import load_file

from keras_mobilevit.files import parse_json
from keras_mobilevit.weights.compare import shorten
from keras_mobilevit.weights.limits import (
    check_archive,
    check_expansion,
    check_h5,
    check_size,
    few_variables,
)

if TYPE_CHECKING:
    import torch

MIN_TORCH = (2, 6)  # earlier versions can run code although `weights_only` is set
H5_IN_KERAS = "model.weights.h5"  # the member of a .keras file with the weights
# What the pickles of weights name. PyTorch also accepts types such as `bytearray`: a
# call of it with a large number fills the memory with zeros.
_PT_GLOBALS = re.compile(
    r"collections\.OrderedDict"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.\w+Storage|torch\.Size|torch\.device"
    r"|torch\.(bool|u?int\d+|b?float\d+\w*|complex\d+)"
    # Tensors that are refused by name later.
    r"|torch\._utils\._rebuild_(sparse_tensor|meta_tensor_no_storage)"
    r"|torch\.serialization\._get_layout"
)
_OLD_PT_PICKLES = 5  # in files of PyTorch before 1.6, with the values after them
# Calls of layers while Keras builds a model. The largest network of this project, a
# segmenter of MobileViTv2, takes 244, and a Sequential of 100 layers 10,000: Keras
# builds it again for each layer. This many take about ten seconds.
MAX_CALLS = 25_000
# Errors of libraries which say that a file has code, and how to run it all the same.
_CODE = re.compile(r"weights_only|Weights only|safe_mode|unsafe.deserialization")


def _reason(error: Exception) -> str:
    """Returns the first line of a library's error, or its name; no full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _incomplete(path: str, kind: str, error: Exception) -> str:
    return (
        f"{path} is not a complete {kind} file: {_reason(error)}. Copy, download or "
        "save it again."
    )


def _in_float32(value: Any) -> np.ndarray:
    """Returns an array as a model will hold it: 1e300 becomes infinite."""
    array = np.asarray(keras.ops.convert_to_numpy(value))
    with np.errstate(over="ignore"):
        return array.astype(np.float32) if array.dtype == np.float64 else array


def check_finite(values: Mapping[str, Any], path: str) -> None:
    """Refuses weights that are not finite, given as arrays by name."""
    bad = [
        name
        for name, value in values.items()
        if not np.all(np.isfinite(_in_float32(value)))
    ]
    if bad:
        raise ValueError(
            f"{path} has weights that are not finite, NaN or infinite: {shorten(bad)}. "
            "Expected the weights of a training that has not diverged."
        )


def _is_archive(path: str) -> bool:
    """Tells whether a file is a ZIP archive; one of many parts cannot be read."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def read_safetensors(path: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a .safetensors file by name."""
    check_size(path)
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors has a type of its own for each defect
        raise ValueError(_incomplete(path, "safetensors", error)) from error
    complex_ones = [name for name, x in tensors.items() if np.iscomplexobj(x)]
    if complex_ones:
        raise ValueError(f"{path} has complex numbers: {shorten(complex_ones)}.")
    check_finite(tensors, path)
    return tensors


def read_pt(path: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch file by name, in float32.

    A pickle that contains code is refused, and the code does not run.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"Reading {path} requires PyTorch: `pip install torch`. Safetensors files "
            "are read without it."
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < MIN_TORCH:
        raise ValueError(
            f"PyTorch {torch.__version__} may run code that a file like {path} "
            "contains. Install PyTorch 2.6 or later."
        )
    size = check_size(path)
    # A mapped file takes no memory of its own. Files of PyTorch before 1.6, which are
    # no ZIP archives, cannot be mapped.
    is_mapped = _is_archive(path)
    try:
        _check_pickles(path, is_mapped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are refused below
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=is_mapped
            )
    except Exception as error:  # torch raises many types for files of other kinds
        raise ValueError(_not_only_weights(path, error)) from error
    is_flat = isinstance(state, dict) and all(
        isinstance(name, str) and torch.is_tensor(x) for name, x in state.items()
    )
    if not is_flat:
        raise ValueError(
            f"{path} must hold a dict of tensors by name and nothing else."
        )
    for name, tensor in state.items():
        _check_plain(tensor, name, path)
    expanded = sum(4 * tensor.numel() for tensor in state.values())
    check_expansion(path, "its tensors", expanded, size)
    tensors = {
        name: np.array(tensor.detach().float().numpy())
        for name, tensor in state.items()
    }
    check_finite(tensors, path)
    return tensors


def _check_pickles(path: str, is_archive: bool) -> None:
    """Refuses pickles that name other things than weights need. Runs nothing."""
    if not is_archive:
        with open(path, "rb") as file:
            for _ in range(_OLD_PT_PICKLES):
                _check_pickle(file)
        return
    from torch import _C

    with zipfile.ZipFile(path) as archive:
        check_archive(path, archive)
    # As `torch.load` finds it: of two members with one name, Python takes another.
    _check_pickle(io.BytesIO(_C.PyTorchFileReader(path).get_record("data.pkl")))


def _check_pickle(file: IO[bytes]) -> None:
    for operation, argument, _ in pickletools.genops(file):
        name = str(argument).replace(" ", ".")
        if operation.name == "GLOBAL" and not _PT_GLOBALS.fullmatch(name):
            raise ValueError(f"GLOBAL {name} is not needed for weights")


def _not_only_weights(path: str, error: Exception) -> str:
    """Explains why PyTorch does not load a file, without its advice to trust it."""
    if str(error).startswith(path):
        return str(error)
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        reason = f"it names {found[1]}, which may be code. Nothing was run"
    elif _CODE.search(str(error)):
        reason = "it has more than tensors in it. Nothing was run"
    else:
        reason = _reason(error)
    return (
        f"{path} is not a file of weights only: {reason}. Expected a dict of tensors "
        "by name, as `torch.save(model.state_dict(), path)` writes it."
    )


def _check_plain(tensor: "torch.Tensor", name: str, path: str) -> None:
    """Refuses a tensor without values of its own, or with others than real numbers."""
    if tensor.is_meta:
        kind = "is on the device meta, without values"
    elif str(tensor.layout) != "torch.strided" or tensor.is_nested:
        kind = f"has the layout {tensor.layout}"
    elif tensor.is_quantized or tensor.is_complex():
        kind = f"is of the type {tensor.dtype}"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = f"repeats its values to the shape {tuple(tensor.shape)}"
    else:
        return
    raise ValueError(
        f"{path}: the tensor {name!r} {kind}. Expected a dense tensor of numbers. Save "
        "the weights again, after `.cpu()` and `.contiguous()`."
    )


def load_model_file(path: str | os.PathLike) -> keras.Model:
    """Loads the model of a .keras file, without its optimizer.

    Code in the file (a `Lambda` layer) is refused.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    if not _is_archive(path):
        raise ValueError(
            f"{path} is not a complete .keras file. Copy, download or save it again."
        )
    size = check_size(path)
    try:
        _check_keras_archive(path)
        with few_variables(path, size):
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        if not isinstance(model, keras.Model):
            raise ValueError(f"it holds a {type(model).__name__}, not a model")
    except Exception as error:  # Keras raises many types for what does not fit
        raise ValueError(_not_loaded(path, error)) from error
    check_finite({weight.path: weight for weight in model.weights}, path)
    return model


def _check_keras_archive(path: str) -> None:
    """Refuses an archive that would take too much memory or time to load."""
    with zipfile.ZipFile(path) as archive:
        check_archive(path, archive)
        config = parse_json(archive.read("config.json").decode(), "its config.json")
        if H5_IN_KERAS not in archive.namelist():
            raise ValueError(f"there is no {H5_IN_KERAS} in it")
        content = archive.read(H5_IN_KERAS)
    with h5py.File(io.BytesIO(content)) as file:
        check_h5(path, file, os.path.getsize(path))
    calls = _calls(config)
    if calls > MAX_CALLS:
        raise ValueError(
            f"building its layers takes {calls:,} calls of layers. Expected at most "
            f"{MAX_CALLS:,}. Keras builds a Sequential again for each of its layers: "
            "build a functional model instead, and save it again"
        )


def _calls(config: Any) -> int:
    """Returns about how many calls of layers Keras needs to build a configuration."""
    if isinstance(config, list):
        return sum(map(_calls, config))
    if not isinstance(config, dict):
        return 0
    calls = sum(map(_calls, config.values()))
    if isinstance(layers := config.get("layers"), list):
        calls += len(layers)
    if config.get("class_name") == "Sequential":
        calls *= len(config["config"]["layers"])
    if isinstance(nodes := config.get("inbound_nodes"), list):
        calls *= max(1, len(nodes))  # a model that is a layer may be called often
    return calls


def _not_loaded(path: str, error: Exception) -> str:
    """Explains why a .keras file is not loaded, without advice to trust it."""
    text = str(error).strip() or type(error).__name__
    if text.startswith(path):
        return text
    if _CODE.search(text):
        found = re.search(r"`?(Lambda|\w+)`? layer", text)
        kind = f"a {found[1]} layer" if found else "an object"
        text = (
            f"{kind} in it has Python code, which is unsafe and was not run. Build the "
            "model from Keras's other layers and keras.ops, and save it again."
        )
    return f"{path} cannot be loaded: {text}"


def read_h5_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of the arrays in a .weights.h5 file by name."""
    with h5py.File(path) as file:
        arrays = check_h5(path, file, os.path.getsize(path))
        return {name: array.shape for name, array in arrays.items()}


def read_h5(path: str) -> dict[str, np.ndarray]:
    """Reads the arrays of a .weights.h5 file by name."""
    size = check_size(path)
    try:
        with h5py.File(path) as file:
            found = check_h5(path, file, size)
            arrays = {name: array[()] for name, array in found.items()}
    except ValueError as error:
        if str(error).startswith(path):
            raise
        raise ValueError(_incomplete(path, ".weights.h5", error)) from error
    except Exception as error:  # h5py raises many types for damaged files
        raise ValueError(_incomplete(path, ".weights.h5", error)) from error
    check_finite({n: x for n, x in arrays.items() if x.dtype.kind != "V"}, path)
    return arrays
