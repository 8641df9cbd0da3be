"""Refuses files of weights that would take far more memory than they have bytes.

Zeros that are compressed, arrays that HDF5 only declares, and a layer of a million
units cost a file a few kilobytes and its reader all memory. The functions here look at
what a file says about itself, before anything of it is read. They raise a ValueError.
"""

import contextlib
import math
import os
import threading
import zipfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import h5py
import keras

# 2 GiB: no .tflite file can be larger, and MobileViTs have less than a tenth.
MAX_BYTES = 2**31
# Weights in 8 bits become four times as large in float32; other numbers hardly shrink
# when a file is compressed.
MAX_EXPANSION = 4
SLACK_BYTES = 2**24  # for small files: a network of zeros may be compressed
# `few_variables` changes Keras for the whole process. Two changes at once would be
# taken back in the wrong order.
_ONE_AT_A_TIME = threading.RLock()


def _format(count: int) -> str:
    return f"{count:,} bytes" if count < 1e6 else f"{count / 1e6:,.0f} MB"


def allowance(size: int) -> int:
    """Returns how many bytes what is in `size` bytes of a file may take in memory."""
    return MAX_EXPANSION * size + SLACK_BYTES


def check_size(path: str) -> int:
    """Returns the size of a file of weights, and refuses one that is too large."""
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise ValueError(
            f"{path} has {_format(size)}. Expected a file of weights of at most "
            f"{_format(MAX_BYTES)}. Is it the right file?"
        )
    return size


def check_expansion(path: str, what: str, expanded: int, size: int) -> None:
    """Refuses a file of `size` bytes of which a part would take too much memory."""
    if expanded > min(allowance(size), MAX_BYTES):
        raise ValueError(
            f"{path}: {what} would take {_format(expanded)}, but the file has only "
            f"{_format(size)}. It was not read, because it can fill the memory. "
            "Load it where it was made, and save it again."
        )


def check_archive(path: str, archive: zipfile.ZipFile) -> None:
    """Refuses a ZIP archive whose members would expand too much."""
    expanded = sum(member.file_size for member in archive.infolist())
    check_expansion(path, "its unpacked content", expanded, os.path.getsize(path))


def check_h5(path: str, file: h5py.File, size: int) -> dict[str, h5py.Dataset]:
    """Returns the arrays of an HDF5 file of `size` bytes by name.

    Refuses arrays whose values are outside the file, are no numbers, or would take too
    much memory.
    """
    arrays: dict[str, h5py.Dataset] = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item

    file.visititems(add)
    for name, array in arrays.items():
        if array.external or array.is_virtual:
            raise ValueError(
                f"{path}: the values of {name!r} are in another file, which was not "
                "read. Expected a file that holds all of its weights."
            )
        is_half = array.attrs.get("dtype") == "bfloat16" and array.dtype.itemsize == 2
        if array.dtype.kind not in "biuf" and not is_half:
            raise ValueError(
                f"{path}: {name!r} has values of the type {array.dtype}. Expected "
                "numbers."
            )
        # A chunk is unpacked as a whole, even if it is larger than its array.
        chunk = math.prod(array.chunks or ()) * array.dtype.itemsize
        check_expansion(path, f"a part of {name!r}", chunk, size)
    expanded = sum(array.size * array.dtype.itemsize for array in arrays.values())
    check_expansion(path, "its arrays", expanded, size)
    return arrays


@contextlib.contextmanager
def few_variables(path: str, size: int) -> Iterator[None]:
    """Refuses a model whose variables would take too much memory for `size` bytes.

    The configuration in a .keras file may ask for any number of units. Keras sets the
    variables to random values before it looks at the weights in the file. Models that
    other threads build meanwhile are not counted.
    """
    created = 0
    owner = threading.get_ident()

    def count(
        self: keras.Variable,
        initializer: Any,
        shape: Any = None,
        *args: Any,
        **more: Any,
    ) -> None:
        nonlocal created
        if threading.get_ident() == owner:
            created += 4 * math.prod(shape if isinstance(shape, list | tuple) else ())
            check_expansion(path, "its layers", created, size)
        initialize(self, initializer, shape, *args, **more)

    with _ONE_AT_A_TIME:
        initialize = keras.Variable.__init__
        with mock.patch.object(keras.Variable, "__init__", count):
            yield
