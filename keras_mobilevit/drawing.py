"""Draws boxes and regions on uint8 images `[height, width, 3]`, and returns copies."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

GOLDEN_RATIO = 0.618034  # a step on the circle of hues: neighboring labels differ most
# Pairs of saturation and value, in turns, because every eighth hue is similar.
SHADES = ((0.85, 0.95), (0.5, 1.0), (0.9, 0.6))
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue
DARK = 110  # white text is legible on colors up to this luminance
OPACITY = 0.6  # of a region's color
BACKGROUND = "background"  # name of the class that is not colored


def class_color(label: int) -> tuple[int, int, int]:
    """Returns a class's color, RGB in [0, 255]. Neighboring labels differ clearly."""
    shade = SHADES[label % len(SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1.0, *shade)
    return round(255 * red), round(255 * green), round(255 * blue)


def _pillow(image: ArrayLike) -> tuple:
    """Returns Pillow's `Image` and `ImageDraw`, and a font for the image's size."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("Drawing needs Pillow: `pip install pillow`.") from error
    font = ImageFont.load_default(size=max(10, min(np.shape(image)[:2]) / 30))
    return Image, ImageDraw, font


def draw_boxes(
    image: ArrayLike,
    boxes: ArrayLike,
    classes: ArrayLike,
    scores: ArrayLike,
    labels: Sequence[str],
) -> np.ndarray:
    """Draws detections with their names and scores, the best box on top."""
    order = np.argsort(scores)
    boxes, classes = np.asarray(boxes)[order], np.asarray(classes)[order]
    names = [
        f"{labels[int(label)]} {100 * score:.0f} %"
        for label, score in zip(classes, np.asarray(scores)[order])
    ]
    return draw_named_boxes(image, boxes, classes, names)


def draw_named_boxes(
    image: ArrayLike, boxes: ArrayLike, classes: ArrayLike, names: Sequence[str]
) -> np.ndarray:
    """Draws boxes, each in the color of its class and with its own text.

    Boxes are corners `[boxes, 4]`, as fractions of the image. The last one is on top.
    """
    Image, ImageDraw, font = _pillow(image)
    picture = Image.fromarray(np.array(image, np.uint8))
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    line = max(2, round(min(width, height) / 200))
    for box, label, text in zip(np.asarray(boxes), np.asarray(classes), names):
        x1, y1, x2, y2 = np.array(box) * [width, height, width, height]
        color = class_color(int(label))
        draw.rectangle((x1, y1, x2, y2), outline=color, width=line)
        _, _, text_width, text_height = draw.textbbox((0, 0), text, font=font)
        # The text is above the box, or inside it at the upper edge of the image.
        left, top = x1, max(0, y1 - text_height - 2 * line)
        right, bottom = left + text_width + 2 * line, top + text_height + 2 * line
        draw.rectangle((left, top, right, bottom), fill=color)
        text_color = "black" if np.dot(color, LUMINANCE) > DARK else "white"
        draw.text((left + line, top), text, fill=text_color, font=font)
    return np.asarray(picture)


def draw_classes(
    image: ArrayLike, classes: ArrayLike, labels: Sequence[str]
) -> np.ndarray:
    """Colors the pixels by their classes `[height, width]`, except the background."""
    colors = np.array([class_color(label) for label in range(len(labels))], np.float32)
    opacity = np.array(
        [[OPACITY * (name != BACKGROUND)] for name in labels], np.float32
    )
    added, kept = opacity * colors, 1 - opacity  # [classes, 3] and [classes, 1]
    drawn = np.array(image, np.uint8)
    # Row by row: a whole large photo in floats would take a gigabyte.
    for row, labels_of_row in zip(drawn, np.asarray(classes)):
        row[:] = np.round(kept[labels_of_row] * row + added[labels_of_row])
    return drawn


def add_legend(image: ArrayLike, names: dict[int, str]) -> np.ndarray:
    """Adds a legend of colors and class names, if there are any, below an image."""
    image = np.array(image, np.uint8)
    if not names:
        return image
    Image, ImageDraw, font = _pillow(image)
    height, width = image.shape[:2]
    line = round(1.5 * font.size)
    entries, x, y = [], 0, 0  # rows of entries, as wide as the image
    for label, text in names.items():
        advance = round(2 * line + font.getlength(text))
        if x and x + advance > width:
            x, y = 0, y + line
        entries.append((label, text, x, y))
        x += advance
    picture = Image.new("RGB", (width, height + y + 2 * line), "white")
    picture.paste(Image.fromarray(image))
    draw = ImageDraw.Draw(picture)
    for label, text, x, y in entries:
        left, top = x + line // 2, height + y + line // 2
        square = (left, top + line // 6, left + font.size, top + line // 6 + font.size)
        draw.rectangle(square, fill=class_color(label))
        position = left + line, top + line // 6 + font.size / 2
        draw.text(position, text, fill="black", font=font, anchor="lm")
    return np.asarray(picture)
