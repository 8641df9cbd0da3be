"""Saves and loads checkpoints and models, atomically."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_mobilevit.files import atomic_write, check_file, parse_json

_PROGRESS = "progress"
# That of MobileViTV2_200, with two moments and a moving average, has 300 MB.
_MAX_BYTES = 2**34
# Safetensors' names of types: F32 is float32.
_TYPES = {"BOOL": "bool"} | {
    f"{letter}{bits}": f"{name}{bits}"
    for letter, name in zip(("F", "BF", "I", "U"), ("float", "bfloat", "int", "uint"))
    for bits in (8, 16, 32, 64)
}


def _named(groups: dict) -> dict:
    """Names the variables of models and optimizers: `{group/path: variable}`."""
    named = {}
    for group, owner in groups.items():
        for index, variable in enumerate(owner.variables):
            # Keras numbers the dropout seeds of a process: another one has other paths.
            # Their positions among the owner's variables are the same.
            is_seed = variable.path.endswith("seed_generator_state")
            name = f"{group}/seed_{index}" if is_seed else f"{group}/{variable.path}"
            if name in named:
                raise ValueError(f"Two variables are called {name}.")
            named[name] = variable
    return named


def save_checkpoint(path, groups: dict, progress: dict) -> None:
    """Writes the variables of `{name: model or optimizer}`, and progress as JSON.

    If the process is killed while it writes, the previous checkpoint stays.
    """
    tensors = {
        name: np.array(keras.ops.convert_to_numpy(variable), order="C")
        for name, variable in _named(groups).items()
    }
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={_PROGRESS: json.dumps(progress)})
        except SafetensorError as error:  # when the disk is full, for example
            raise OSError(f"Cannot write {path}: {error}") from error


def load_checkpoint(path, groups: dict) -> dict:
    """Sets the variables of `groups` from a file, and returns the saved progress.

    Optimizers must be built. If the file does not fit, no variable is set.
    """
    variables = _named(groups)
    check_file(path, _MAX_BYTES)
    with _opened(path) as file:
        progress = _progress(file.metadata())
        found = {name: _shape_and_type(file.get_slice(name)) for name in file.keys()}
    wanted = {name: (tuple(x.shape), _dtype(x)) for name, x in variables.items()}
    if wanted != found:
        differing = sorted({name for name, _ in wanted.items() ^ found.items()})
        raise ValueError(
            f"{path} belongs to another model or optimizer. Different names, shapes or "
            f"types: {', '.join(differing[:10])} ({len(differing)} in all). Put the "
            "checkpoint of this run back, or train with another --workdir."
        )
    # Only now: a file of another model may be large.
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in variables}
    bad = [name for name, x in tensors.items() if not np.all(np.isfinite(x))]
    if bad:
        raise ValueError(
            f"{path} has values that are not finite: {', '.join(bad[:10])}. Restore a "
            "copy of it, or remove it to train from the first epoch."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])
    return progress


@contextlib.contextmanager
def _opened(path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except Exception as error:  # safetensors raises many types
        raise ValueError(_incomplete(path, str(error).rstrip("."))) from error


def _progress(metadata: dict[str, str] | None) -> dict:
    if not metadata or _PROGRESS not in metadata:
        raise ValueError(
            "it has no progress of a training. Perhaps it only holds the weights of a "
            "model"
        )
    progress = parse_json(metadata[_PROGRESS], "its progress")
    if not isinstance(progress, dict):
        raise ValueError("its progress is not an object")
    return progress


def _shape_and_type(tensor: Any) -> tuple[tuple[int, ...], str]:
    dtype = tensor.get_dtype()
    return tuple(tensor.get_shape()), _TYPES.get(dtype, dtype)


def _incomplete(path, reason: str) -> str:
    return (
        f"{path} is not a complete checkpoint: {reason}. Restore a copy of it, or "
        "remove it to train from the first epoch."
    )


def _dtype(variable: keras.Variable) -> str:
    return keras.backend.standardize_dtype(variable.dtype)


def save_model(model: keras.Model, path) -> None:
    """Writes a `.keras` file, atomically."""
    with atomic_write(path) as temporary:
        model.save(temporary)
