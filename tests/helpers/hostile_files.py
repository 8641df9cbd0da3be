"""A tiny network, and changes of the files that hold it."""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import keras


def build_tiny() -> keras.Model:
    """Builds a classifier of three classes, for images of 8x8 pixels."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def change_h5(content: bytes, change: Callable[[h5py.File], None]) -> bytes:
    """Returns an HDF5 file with a change."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "a") as file:
        change(file)
    return buffer.getvalue()


def rewrite_archive(
    source: Path,
    target: Path,
    changes: Mapping[str, Callable],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Copies an archive with changed members; a change to `None` leaves one out."""
    with (
        zipfile.ZipFile(source) as archive,
        zipfile.ZipFile(target, "w", compression) as changed,
    ):
        for name in archive.namelist():
            content = changes.get(name, bytes)(archive.read(name))
            if content is not None:
                changed.writestr(name, content)
