"""Pictures of a task's predictions, arranged with captions and in a grid."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 384  # longer side of a picture: boxes and names are legible on small images too
GAP = 24  # between examples
INNER_GAP = 4  # between the pictures of one example
CAPTION_HEIGHT = 22
CAPTION_SIZE = 14
GRAY = 40  # the background, on which dark and bright pictures stand out
TEXT_GRAY = 230


def at_viewing_size(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes an image to the aspect of `size`, with the longer side `SIDE`."""
    height, width = (max(1, round(SIDE * int(side) / int(max(size)))) for side in size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def side_by_side(pictures: dict[str, np.ndarray]) -> np.ndarray:
    """Joins pictures of equal height, each with its name above it."""
    captioned = [_with_caption(name, picture) for name, picture in pictures.items()]
    return _grid(captioned, len(captioned), INNER_GAP)


def _with_caption(text: str, picture: np.ndarray) -> np.ndarray:
    font = ImageFont.load_default(size=CAPTION_SIZE)
    height, width = picture.shape[:2]
    width = max(width, math.ceil(font.getlength(text)))
    background = Image.new("RGB", (width, CAPTION_HEIGHT + height), (GRAY,) * 3)
    ImageDraw.Draw(background).text((0, 2), text, fill=(TEXT_GRAY,) * 3, font=font)
    background.paste(Image.fromarray(picture), (0, CAPTION_HEIGHT))
    return np.asarray(background)


def contact_sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Arranges uint8 pictures of any sizes in a grid that is about square."""
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0)
    columns = max(1, round(math.sqrt(len(pictures) * height / width)))
    sheet = _grid(pictures, min(columns, len(pictures)), GAP)
    return np.pad(sheet, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=GRAY)


def _grid(pictures: Sequence[np.ndarray], columns: int, gap: int) -> np.ndarray:
    """Arranges pictures in cells of the size of the largest picture."""
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0) + gap
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), GRAY, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet[:-gap, :-gap]
