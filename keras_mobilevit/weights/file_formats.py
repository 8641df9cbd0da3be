"""Reads files of weights: .safetensors, .pt, .keras and .weights.h5.

All functions raise a ValueError that names the file if it is damaged.
"""

import os
import zipfile

import h5py
import keras
import numpy as np
from safetensors.numpy import load_file

MIN_TORCH = (2, 6)  # earlier versions can run code although `weights_only` is set


def read_safetensors(path: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a .safetensors file by name."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors has a type of its own for each defect
        raise ValueError(
            f"{path} is not a complete safetensors file: {error}"
        ) from error


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
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files of other kinds
        raise ValueError(f"{path} is not a file of weights only: {error}") from error
    is_flat = isinstance(state, dict) and all(map(torch.is_tensor, state.values()))
    if not is_flat:
        raise ValueError(
            f"{path} must hold a dict of tensors by name and nothing else."
        )
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def load_model_file(path: str | os.PathLike) -> keras.Model:
    """Loads the model of a .keras file, without its optimizer.

    Code in the file (a `Lambda` layer) is refused.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a complete .keras file.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many types for what does not fit
        raise ValueError(f"{path} cannot be loaded: {error}") from error


def read_h5_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of the arrays in a .weights.h5 file by name."""
    shapes = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = item.shape

    try:
        with h5py.File(path) as file:
            file.visititems(add)
    except OSError as error:
        raise ValueError(
            f"{path} is not a complete .weights.h5 file: {error}"
        ) from error
    return shapes
