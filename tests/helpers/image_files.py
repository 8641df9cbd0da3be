"""Image files for tests, made in memory and written in folders."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from train.data.source import SPLITS

# The inverses of what Pillow's `exif_transpose` does.
UPRIGHT_TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def pil_file(mode, color, kind, size=(90, 60), **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind, **options)
    return file.getvalue()


def photo_file(pixels: np.ndarray, orientation: int = 1, **options) -> bytes:
    """Writes a photo as a camera does that was held by an EXIF orientation.

    Args:
        pixels: uint8 `[height, width, 3]` of the upright picture.
        orientation: by EXIF.
        **options: of Pillow's `save`.
    """
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if orientation in UPRIGHT_TO_STORED:
        image = image.transpose(UPRIGHT_TO_STORED[orientation])
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif, **options)
    return file.getvalue()


def make_folder(path: Path, classes: dict) -> Path:
    """Writes `{class: {name: bytes}}` as both splits of a folder."""
    for split in SPLITS:
        for name, files in classes.items():
            folder = path / split / name
            folder.mkdir(parents=True)
            for file, content in files.items():
                (folder / file).write_bytes(content)
    return path
