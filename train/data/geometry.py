"""Which picture an annotation was drawn on: as shown, as stored, or of another size.

Cameras store pixels as the sensor lies, and say in EXIF data how to turn them. Training
sees pictures upright (`train.data.images`). The size that an annotation states tells what
its author saw: the upright picture, the pixels as they are stored, or a copy of another
size. What fits none of them belongs to another picture, and is refused.
"""

from typing import NamedTuple

import numpy as np

from keras_mobilevit.image_files import Header
from train.data.repairs import Repairs

MAX_STRETCH = 0.05  # of the aspect, by rounding the sides of a small copy
AS_SHOWN = (
    "pictures turned by EXIF whose annotations do not tell by a size whether they were "
    "drawn on the picture as shown or as stored, taken as drawn on it as shown"
)
AS_STORED = (
    "pictures turned by EXIF whose annotations were drawn on the pixels as stored, "
    "annotations turned with them"
)
SCALED = (
    "pictures of another size than their annotations state, but the same aspect, "
    "annotations scaled to them"
)

# From corners on the stored pixels, as fractions, to those on the upright picture.
# Orientations 2 to 4 keep the size, so that annotations of them count as upright.
_BOXES = {
    1: lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    5: lambda x1, y1, x2, y2: (y1, x1, y2, x2),
    6: lambda x1, y1, x2, y2: (1 - y2, x1, 1 - y1, x2),
    7: lambda x1, y1, x2, y2: (1 - y2, 1 - x2, 1 - y1, 1 - x1),
    8: lambda x1, y1, x2, y2: (y1, 1 - x2, y2, 1 - x1),
}
_MASKS = {
    1: lambda mask: mask,
    5: np.transpose,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask, 2).T,
    8: np.rot90,
}


class Canvas(NamedTuple):
    """The picture that an annotation was drawn on.

    Attributes:
        size: (width, height), in the annotation's pixels.
        orientation: by EXIF, which makes it upright; 1 if it was drawn upright.
        is_certain: whether nothing but the picture as shown is possible.
    """

    size: tuple[int, int]
    orientation: int
    is_certain: bool

    def turn_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Turns corners `[objects, 4]`, as fractions, to the upright picture."""
        return np.stack(_BOXES[self.orientation](*boxes.T), axis=1)

    def turn_mask(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Turns a mask to the upright picture, and resizes it by the nearest pixel.

        Args:
            mask: `[height, width]`.
            size: (width, height) of the upright picture.

        Returns:
            `[size[1], size[0]]`.
        """
        mask = _MASKS[self.orientation](mask)
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(int)
            for old, new in zip(mask.shape, size[::-1])
        )
        return mask if mask.shape == size[::-1] else mask[rows[:, None], columns]


def _has_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Says whether sizes differ by a factor alone, but for rounding to whole pixels."""
    (width, height), (other_width, other_height) = size, other
    difference = abs(width * other_height - height * other_width)
    return difference < min(
        other_width + other_height, MAX_STRETCH * height * other_width
    )


def _says(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def find_canvas(
    header: Header, stated: tuple[int, int] | None, said: str, image, repairs: Repairs
) -> Canvas:
    """Finds the picture that an annotation was drawn on.

    Args:
        header: of the image file.
        stated: (width, height) by the annotation; `None` if it states none.
        said: who states it, for errors: `"a.xml states"`.
        image: path of the image.
        repairs: counts what is turned or scaled.

    Returns:
        The `Canvas`.

    Raises:
        ValueError: if the size is of another picture.
    """
    shown, stored = header.size, header.stored_size
    is_turned = header.orientation != 1
    is_silent, stated = stated is None, stated or shown
    for is_same in (tuple.__eq__, _has_aspect):
        fits_shown, fits_stored = is_same(stated, shown), is_same(stated, stored)
        if not (fits_shown or fits_stored):
            continue
        repairs.add(SCALED, str(image), is_same is _has_aspect)
        if fits_shown:
            is_either = is_turned and (fits_stored or is_silent)
            repairs.add(AS_SHOWN, str(image), is_either)
            return Canvas(stated, 1, is_same is tuple.__eq__ and not is_either)
        repairs.add(AS_STORED, str(image))
        return Canvas(stated, header.orientation, False)
    turned = f", and as stored {_says(stored)}" if is_turned else ""
    raise ValueError(
        f"{said} {_says(stated)} pixels, but its image {image} has "
        f"{_says(shown)}{turned}. Is it the annotation of another picture? Put the "
        "picture there that was annotated, or correct the size."
    )
