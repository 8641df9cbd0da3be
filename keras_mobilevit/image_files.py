"""Reads image files and turns them upright.

Cameras store the pixels as the sensor sees them, and the rotation in the EXIF data.
`train.data.images` decodes images to the same pixels.
"""

import io
import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from keras_mobilevit.files import check_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# TensorFlow's decoders refuse images of more than 2**29 bytes.
MAX_PIXELS = 2**29 // 3
# Pillow decodes a WebP as soon as it is opened, and takes 16 bytes for each pixel.
MAX_WEBP_PIXELS = 2**25
# As many as these pixels take when they are decoded. Photos take a tenth of it.
MAX_BYTES = 2**29
# Pillow knows many more, and would start other programs for some, such as EPS.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_WEBP_HEADER = 30  # bytes that hold the size, whatever the kind of the WebP
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

_TRANSPOSITIONS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """The size (width, height) of the stored pixels, and the EXIF orientation, 1 to 8.

    Orientation 1 is upright. Both are read without decoding the image.
    """

    stored_size: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image."""
        width, height = self.stored_size
        return (height, width) if self.orientation in _SIDEWAYS else (width, height)


def _first_bytes(file: str | os.PathLike | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:_WEBP_HEADER]
    with open(file, "rb") as opened:
        return opened.read(_WEBP_HEADER)


def _webp_pixels(head: bytes) -> int:
    """Reads the number of pixels from the first bytes of a WebP; 0 of another file.

    Source: https://developers.google.com/speed/webp/docs/riff_container, and RFC 6386
    for "VP8 ".
    """
    if head[:4] + head[8:12] != b"RIFFWEBP" or len(head) < _WEBP_HEADER:
        return 0
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[i : i + 3], "little") for i in (24, 27))
        return (width + 1) * (height + 1)
    if kind == b"VP8L":
        sides = int.from_bytes(head[21:25], "little")
        return (sides % 2**14 + 1) * (sides // 2**14 % 2**14 + 1)
    width, height = (int.from_bytes(head[i : i + 2], "little") for i in (26, 28))
    return (width % 2**14) * (height % 2**14)


def open_image(file: str | os.PathLike | bytes) -> Image.Image:
    """Opens a path or bytes with Pillow, which raises many types of errors.

    With more than `MAX_PIXELS`, or `MAX_WEBP_PIXELS`, it is Pillow's
    `DecompressionBombError`.
    """
    if _webp_pixels(_first_bytes(file)) > MAX_WEBP_PIXELS:
        raise Image.DecompressionBombError
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of many pixels, or of damaged metadata
        image = Image.open(opened, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    return image


def _orientation(image: Image.Image) -> int:
    """Reads the orientation from EXIF data only.

    Pillow's `exif_transpose` also reads XMP data and text in PNG files. Browsers and
    `train.data.exif` do not.
    """
    data = Image.Exif()
    try:
        data.load(image.info.get("exif", b""))
        value = data.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data raises many types
        return 1
    return value if value in range(1, 9) else 1


def _is_heif(file: str | os.PathLike | bytes) -> bool:
    """Recognizes the default format of iPhones, whatever the file's suffix."""
    if isinstance(file, bytes):
        return file[4:8] == b"ftyp"
    with open(file, "rb") as opened:
        return opened.read(8)[4:] == b"ftyp"


def _unreadable(
    file: str | os.PathLike | bytes, name: str, error: Exception
) -> ValueError:
    """Explains why Pillow cannot read a path or bytes."""
    if isinstance(error, Image.DecompressionBombError):
        maximum = MAX_WEBP_PIXELS if _webp_pixels(_first_bytes(file)) else MAX_PIXELS
        reason = (
            f"it has more than {maximum:,} pixels, the maximum. Shrink it or split it "
            "into parts"
        )
    elif not isinstance(error, UnidentifiedImageError):
        reason = str(error).rstrip(".") or type(error).__name__
    elif _is_heif(file):
        reason = "it is in HEIF (HEIC) format. Save it as JPEG"
    else:
        reason = f"it is in no known format. Expected one of {', '.join(SUFFIXES)}"
    return ValueError(f"{name} cannot be read as a picture: {reason}.")


def _check_file(path: str | os.PathLike) -> None:
    """Raises a ValueError if a path exists, but cannot be the file of an image."""
    try:
        check_file(path, MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:  # such as a circle of links
        raise _unreadable(path, str(path), error) from error


def _shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    factor = math.ceil(math.sqrt(image.width * image.height / max_pixels))
    if factor <= 1:
        return image
    if image.mode == "RGBA":  # Pillow would weigh colors by their opacity
        channels = [image.getchannel(name).reduce(factor) for name in "RGB"]
        return Image.merge("RGB", channels)
    if image.mode not in ("L", "RGB", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    return image.reduce(factor)


def read_header(file: str | os.PathLike | bytes) -> Header:
    """Reads the size and the orientation of an image file, a path or its content.

    Raises a ValueError if the file is not an image or has too many pixels.
    """
    if not isinstance(file, bytes):
        _check_file(file)
    try:
        with open_image(file) as image:
            return Header(image.size, _orientation(image))
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files raise many types
        name = "The picture" if isinstance(file, bytes) else str(file)
        raise _unreadable(file, name, error) from error


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image file; see `decode`."""
    _check_file(path)
    return decode(Path(path).read_bytes(), str(path), max_pixels)


def decode(
    content: bytes, name: str = "The picture", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes an image, or the first frame of an animation, and turns it upright.

    An image of more than `max_pixels` is shrunk: each pixel becomes the mean of 2x2,
    3x3 or more. Returns uint8 `[height, width, 3]`, RGB. An alpha channel is dropped,
    as by TensorFlow. Values of 16 bits keep their upper 8. Raises a ValueError with the
    file's `name` if it is not an image, is damaged, or has more than `MAX_PIXELS`.
    """
    try:
        with open_image(content) as image:
            orientation = _orientation(image)
            if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = _shrink(image, max_pixels).convert("RGB")
            if orientation in _TRANSPOSITIONS:
                image = image.transpose(_TRANSPOSITIONS[orientation])
            return np.asarray(image)
    except Exception as error:  # damaged files raise many types
        raise _unreadable(content, name, error) from error
