"""The PNG files of the pictures that `predict` draws, and which it may replace."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from keras_mobilevit.files import atomic_write

_MARK = "Software", "keras_mobilevit predict"  # a text inside of each drawing


def picture_files(images: Sequence[str], folder: str | None, suffix: str) -> list[Path]:
    """Returns the file of each image's picture, `NAME_suffix.png`.

    `folder` is where they go, by default beside their images. Raises a ValueError if
    two pictures would have one name, or would replace a file that is no picture of
    this command.
    """
    files = [
        Path(folder or Path(path).parent) / f"{Path(path).stem}_{suffix}.png"
        for path in images
    ]
    originals = {Path(path).resolve() for path in images}
    others = [
        str(file) for file in files if file.resolve() in originals or _is_anothers(file)
    ]
    if others:
        raise ValueError(
            f"The pictures would replace {', '.join(others)}, which is an image of "
            "yours. Name another folder with --output."
        )
    repeated = sorted({str(file) for file in files if files.count(file) > 1})
    if repeated:
        raise ValueError(
            f"The pictures of several images would have the name {', '.join(repeated)}."
            " Run the command once for each of these images, with another --output."
        )
    return files


def save_picture(picture: np.ndarray, file: Path) -> None:
    """Writes a picture, uint8 `[height, width, 3]`, with the mark of this command."""
    information = PngImagePlugin.PngInfo()
    information.add_text(*_MARK)
    with atomic_write(file) as temporary:
        Image.fromarray(picture).save(temporary, pnginfo=information)


def _is_anothers(file: Path) -> bool:
    """Tells whether there is a file that this command has not drawn."""
    if not os.path.lexists(file):
        return False
    name, value = _MARK
    try:
        with Image.open(file, formats=("PNG",)) as image:
            return image.info.get(name) != value
    except Exception:  # damaged files raise many types
        return True
