"""Picture files, read upright: the one decoder behind `predict` and the training.

Cameras store pixels as the sensor lies and write beside them, as EXIF orientation, how
to turn them. Here and in `train.data.images`, every picture is turned before anything else
looks at it.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# Beyond it TensorFlow's decoders and Pillow's refuse a picture: 2**29 bytes.
MAX_PIXELS = 2**29 // 3
_SIDEWAYS = (5, 6, 7, 8)  # values of EXIF orientation that swap width and height

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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


def _open(file) -> Image.Image:
    """Opens a path or bytes; raises a ValueError if the picture is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    return image


def _orientation(image: Image.Image) -> int:
    """Reads the orientation from EXIF alone.

    Pillow's own `exif_transpose` also follows XMP and text in PNG, as neither browsers
    nor `train.data.exif` do.
    """
    data = Image.Exif()
    try:
        data.load(image.info.get("exif", b""))
        value = data.get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged block raises whatever Pillow meets in it
        return 1
    return value if value in range(1, 9) else 1


def _reason(file, error: Exception) -> str:
    """Says in words why Pillow cannot read a path or bytes."""
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it has more than {MAX_PIXELS:,} pixels, the most that can be decoded. "
            "Shrink it, or cut it into parts"
        )
    if isinstance(error, UnidentifiedImageError):
        if _is_heif(file):
            return "it is in HEIF (HEIC) format. Save it as JPEG"
        return f"it is in no known format. Expected one of {', '.join(SUFFIXES)}"
    return str(error).rstrip(".") or type(error).__name__


def _is_heif(file) -> bool:
    """Recognizes what iPhones write by default, and often under other endings."""
    if isinstance(file, bytes):
        return file[4:8] == b"ftyp"
    with open(file, "rb") as opened:
        return opened.read(8)[4:] == b"ftyp"


def _unreadable(file, name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} cannot be read as a picture: {_reason(file, error)}.")


def read_header(file) -> Header:
    """Reads the size and the orientation of a picture file.

    Args:
        file: its path, or its bytes.

    Returns:
        The `Header`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture or has too many pixels; the message names it.
    """
    try:
        with _open(file) as image:
            return Header(image.size, _orientation(image))
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files raise whatever Pillow meets in them
        name = "The picture" if isinstance(file, bytes) else str(file)
        raise _unreadable(file, name, error) from error


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
            orientation = _orientation(image)
            if image.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGB")
            if orientation in _TURNS:
                image = image.transpose(_TURNS[orientation])
            return np.asarray(image)
    except Exception as error:  # damaged files raise whatever Pillow meets in them
        raise _unreadable(content, name, error) from error


def read_image(path) -> np.ndarray:
    """Reads a picture file upright; see `decode`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be decoded; the message names it.
    """
    return decode(Path(path).read_bytes(), str(path))
