"""Boxes drawn on a picture."""

import colorsys
from collections.abc import Sequence

import numpy as np

GOLDEN_RATIO = 0.618034  # of the hues' circle: neighbours differ most
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue
DARK = 110  # a colour's luminance, up to which white is legible on it


def class_color(label: int) -> tuple[int, int, int]:
    """Returns a class's colour, RGB in [0, 255]; neighbours are told apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(image, boxes, classes, scores, labels: Sequence[str]) -> np.ndarray:
    """Draws detections with their names and scores.

    Args:
        image: uint8 `[height, width, 3]`.
        boxes: corners `[detections, 4]`, as fractions of the image.
        classes: `[detections]`.
        scores: `[detections]` in [0, 1]; the best is drawn last, on top.
        labels: names of the classes.

    Returns:
        A copy of the image with the boxes, uint8 `[height, width, 3]`.

    Raises:
        ImportError: without Pillow.

    Example:

    >>> draw_boxes(photo, [[0.1, 0.2, 0.5, 0.9]], [0], [0.8], ["cat"]).shape
    (480, 640, 3)
    """
    order = np.argsort(scores)
    boxes, classes = np.asarray(boxes)[order], np.asarray(classes)[order]
    names = [
        f"{labels[int(label)]} {100 * score:.0f} %"
        for label, score in zip(classes, np.asarray(scores)[order])
    ]
    return draw_named_boxes(image, boxes, classes, names)


def draw_named_boxes(image, boxes, classes, names: Sequence[str]) -> np.ndarray:
    """Draws boxes, each in its class's colour and with a name of its own.

    Args:
        image: uint8 `[height, width, 3]`.
        boxes: corners `[boxes, 4]`, as fractions of the image; the last is on top.
        classes: `[boxes]`.
        names: what to write on each of them.

    Returns:
        A copy of the image with the boxes, uint8 `[height, width, 3]`.

    Raises:
        ImportError: without Pillow.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("Drawing takes Pillow: `pip install pillow`.") from error
    picture = Image.fromarray(np.array(image, np.uint8))
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    line = max(2, round(min(width, height) / 200))
    font = ImageFont.load_default(size=max(10, min(width, height) / 30))
    for box, label, text in zip(boxes, classes, names):
        x1, y1, x2, y2 = np.array(box) * [width, height, width, height]
        color = class_color(int(label))
        draw.rectangle((x1, y1, x2, y2), outline=color, width=line)
        frame = draw.textbbox((0, 0), text, font=font)
        # Above the box, or within it at the upper edge of the image.
        left, top = x1, max(0, y1 - frame[3] - 2 * line)
        ground = (left, top, left + frame[2] + 2 * line, top + frame[3] + 2 * line)
        draw.rectangle(ground, fill=color)
        ink = "black" if np.dot(color, LUMINANCE) > DARK else "white"
        draw.text((left + line, top), text, fill=ink, font=font)
    return np.asarray(picture)
