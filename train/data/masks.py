"""Masks: files of any kind, and how masks are kept in memory.

TensorFlow decodes a palette to its colors, so masks are read here before the training
starts. In memory a mask is a gray PNG whose values are the classes: a few kilobytes.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_mobilevit.image_files import open_image, read_header

IGNORE_INDEX = 255  # of pixels that are neither learned nor counted
_INDEXED = ("P", "L", "1")  # Pillow's modes of images with one small integer a pixel
_LOSSY = ("JPEG", "MPO")
_PNG = b"\x89PNG"
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def encode_mask(classes: np.ndarray) -> bytes:
    """Encodes a mask, uint8 `[height, width]`, as a gray PNG."""
    return tf.io.encode_png(classes[..., None]).numpy()


def decode_mask(encoded) -> tf.Tensor:
    """Decodes the PNG of `encode_mask` to uint8 `[height, width]`."""
    return tf.io.decode_png(encoded, channels=1)[..., 0]


def read_mask(file: Path) -> np.ndarray | None:
    """Reads the classes of a mask with a palette or in gray, uint8 `[height, width]`.

    The result is `None` if the file cannot be read.

    Raises:
        ValueError: if the file has colors, or its format does not keep exact values.
    """
    try:
        read_header(file)  # refuses what is no file, and what is far too large
        with open_image(file) as image:
            mode, kind = image.mode, image.format
            values = np.asarray(image if mode in _INDEXED else 0)
    except _UNREADABLE:
        return None
    if kind == "GIF":
        raise ValueError(
            f"{file} is a mask in GIF. Writing a GIF renumbers the colors, so its "
            "values are not the classes. Save the original masks as PNG."
        )
    if kind in _LOSSY:
        raise ValueError(
            f"{file} is a mask in {kind}. Its compression changes the values of "
            "pixels, so they are not the classes. Save the original masks as PNG."
        )
    if mode not in _INDEXED:
        kind = "colors" if mode in ("RGB", "RGBA") else "another kind"
        raise ValueError(
            f"{file} is a mask of {kind} ({mode}). Expected the class of each pixel: "
            "a PNG with a palette, or an 8-bit gray PNG."
        )
    return values.astype(np.uint8) // _gray_step(file)


def _gray_step(file: Path) -> int:
    """Returns the factor by which Pillow scales gray PNGs of 2 or 4 bits, or 1."""
    with open(file, "rb") as opened:
        header = opened.read(26)
    if not header.startswith(_PNG):
        return 1
    bits, color = header[24:26]  # bit depth and color type in the first chunk, IHDR
    return 255 // (2**bits - 1) if color == 0 and bits in (2, 4) else 1
