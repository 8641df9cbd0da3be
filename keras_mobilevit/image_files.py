"""Picture files, read upright: the one decoder behind `predict` and the training.

Cameras store pixels as the sensor lies and write beside them, as EXIF orientation, how
to turn them. Here and in `train.images`, every picture is turned before anything else
looks at it.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# Beyond it TensorFlow's decoders and Pillow's refuse a picture: 2**29 bytes.
MAX_PIXELS = 2**29 // 3
_SIDEWAYS = (5, 6, 7, 8)  # values of EXIF orientation that swap width and height


class Header(NamedTuple):
    """What a file says about its picture, without decoding it.

    Attributes:
        stored_size: (width, height) of the pixels in the file.
        orientation: by EXIF, 1 to 8; 1 is upright.
    """

    stored_size: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright picture."""
        width, height = self.stored_size
        return (height, width) if self.orientation in _SIDEWAYS else (width, height)


def _open(content) -> Image.Image:
    """Opens a path or bytes; raises a ValueError if the picture is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(
            io.BytesIO(content) if isinstance(content, bytes) else content
        )
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it has {width}x{height} pixels, more than the {MAX_PIXELS:,} that can be "
            "decoded. Shrink it or cut it into parts"
        )
    return image


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = str(error) or type(error).__name__
    return ValueError(f"{name} cannot be read as a picture: {reason}.")


def read_header(path) -> Header:
    """Reads the size and the orientation of a picture file.

    Args:
        path: of the file.

    Returns:
        The `Header`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture or has too many pixels; the message names it.
    """
    try:
        with _open(path) as image:
            return Header(image.size, _orientation(image))
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files raise whatever Pillow meets in them
        raise _unreadable(str(path), error) from error


def decode(content: bytes, name: str = "The picture") -> np.ndarray:
    """Decodes a picture upright; of an animation, the first frame.

    An alpha channel is dropped, as by TensorFlow; of 16 bits, the upper 8 are kept.

    Args:
        content: the bytes of the file.
        name: of the file, for errors.

    Returns:
        uint8 `[height, width, 3]`, RGB.

    Raises:
        ValueError: if it is no picture, is damaged, or has too many pixels.
    """
    try:
        with _open(content) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged files raise whatever Pillow meets in them
        raise _unreadable(name, error) from error


def read_image(path) -> np.ndarray:
    """Reads a picture file upright; see `decode`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be decoded; the message names it.
    """
    return decode(Path(path).read_bytes(), str(path))
