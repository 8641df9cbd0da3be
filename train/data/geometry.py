"""Finds the picture that an annotation was drawn on: as shown, as stored, or scaled.

Cameras store pixels as the sensor reads them, and EXIF data says how to turn them.
Training sees upright images (`train.data.images`). The size that an annotation states
tells what its author saw: the upright image, the pixels as stored, or a scaled copy. An
annotation whose size fits none of these belongs to another image, and is refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_mobilevit.image_files import Header
from train.data.annotation_report import AnnotationReport

MAX_STRETCH = 0.05  # of the aspect, from rounding the sides of a small copy
AS_SHOWN = (
    "images turned by EXIF whose annotations have no size that tells whether they were "
    "drawn on the image as shown or as stored, taken as drawn on it as shown"
)
AS_STORED = (
    "images turned by EXIF whose annotations were drawn on the pixels as stored, "
    "annotations turned with them"
)
SCALED = (
    "images of another size than their annotations state, but the same aspect, "
    "annotations scaled to them"
)

# From corners on the stored pixels, as fractions, to corners on the upright image.
# Orientations 2 to 4 keep the size, so their annotations count as upright.
_BOXES: dict[int, Callable] = {
    1: lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    5: lambda x1, y1, x2, y2: (y1, x1, y2, x2),
    6: lambda x1, y1, x2, y2: (1 - y2, x1, 1 - y1, x2),
    7: lambda x1, y1, x2, y2: (1 - y2, 1 - x2, 1 - y1, 1 - x1),
    8: lambda x1, y1, x2, y2: (y1, 1 - x2, y2, 1 - x1),
}
_MASKS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda mask: mask,
    5: np.transpose,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask, 2).T,
    8: np.rot90,
}


class Canvas(NamedTuple):
    """The picture that an annotation was drawn on."""

    size: tuple[int, int]  # (width, height), in the annotation's pixels
    orientation: int  # of EXIF, which turns it upright; 1 if it is upright
    is_certain: bool  # only the image as shown is possible

    def turn_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Turns corners `[objects, 4]`, as fractions, to the upright image."""
        return np.stack(_BOXES[self.orientation](*boxes.T), axis=1)

    def turn_mask(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Turns a mask upright, and resizes it to (width, height) by nearest pixel."""
        mask = _MASKS[self.orientation](mask)
        if mask.shape == size[::-1]:
            return mask
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(int)
            for old, new in zip(mask.shape, size[::-1])
        )
        return mask[rows[:, None], columns]


def _has_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tells whether two sizes have the same aspect, up to rounding to whole pixels."""
    (width, height), (other_width, other_height) = size, other
    difference = abs(width * other_height - height * other_width)
    return difference < min(
        other_width + other_height, MAX_STRETCH * height * other_width
    )


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def find_canvas(
    header: Header,
    stated: tuple[int, int] | None,
    subject: str,
    image: Path,
    report: AnnotationReport,
) -> Canvas:
    """Finds the picture that an annotation was drawn on.

    `stated` is the (width, height) in the annotation, or `None`. `subject` begins the
    error message, such as "a.xml states". The size of another image is refused.
    """
    shown, stored = header.size, header.stored_size
    is_turned, has_size = header.orientation != 1, stated is not None
    size = stated or shown
    for has_same, is_exact in ((tuple.__eq__, True), (_has_aspect, False)):
        fits_shown, fits_stored = has_same(size, shown), has_same(size, stored)
        if not (fits_shown or fits_stored):
            continue
        report.add(SCALED, str(image), int(not is_exact))
        if fits_shown:
            is_ambiguous = is_turned and (fits_stored or not has_size)
            report.add(AS_SHOWN, str(image), int(is_ambiguous))
            return Canvas(size, 1, is_exact and not is_ambiguous)
        report.add(AS_STORED, str(image))
        return Canvas(size, header.orientation, False)
    turned = f", and as stored {_format_size(stored)}" if is_turned else ""
    raise ValueError(
        f"{subject} {_format_size(size)} pixels, but its image {image} has "
        f"{_format_size(shown)}{turned}. Is it the annotation of another image? "
        "Restore the annotated image, or correct the size."
    )
