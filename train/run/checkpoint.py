"""Saves and loads checkpoints and models, atomically."""

import json

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_mobilevit.files import atomic_write, check_file

_PROGRESS = "progress"
# That of MobileViTV2_200, with two moments and a moving average, has 300 MB.
_MAX_BYTES = 2**34


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
    try:
        with safe_open(path, framework="numpy") as file:
            progress = json.loads(file.metadata()[_PROGRESS])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # safetensors raises many types
        raise ValueError(_incomplete(path, str(error).rstrip("."))) from error
    if not isinstance(progress, dict):
        raise ValueError(_incomplete(path, "its progress is not an object"))
    wanted = {name: (tuple(x.shape), _dtype(x)) for name, x in variables.items()}
    found = {name: (x.shape, x.dtype.name) for name, x in tensors.items()}
    if wanted != found:
        differing = sorted({name for name, _ in wanted.items() ^ found.items()})
        raise ValueError(
            f"{path} belongs to another model or optimizer. Different names, shapes or "
            f"types: {', '.join(differing[:10])} ({len(differing)} in all)."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])
    return progress


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
