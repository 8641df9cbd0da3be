"""Boxes and regions drawn on a picture."""

import colorsys
from collections.abc import Sequence

import numpy as np

GOLDEN_RATIO = 0.618034  # of the hues' circle: neighbours differ most
# Saturation and value in turns, since every eighth hue is much like the first.
SHADES = ((0.85, 0.95), (0.5, 1.0), (0.9, 0.6))
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue
DARK = 110  # a colour's luminance, up to which white is legible on it
OPACITY = 0.6  # of a region's colour
BACKGROUND = "background"  # the class that is not coloured


def class_color(label: int) -> tuple[int, int, int]:
    """Returns a class's colour, RGB in [0, 255]; neighbours are told apart."""
    shade = SHADES[label % len(SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1.0, *shade)
    return round(255 * red), round(255 * green), round(255 * blue)


def _pillow(image) -> tuple:
    """Returns Pillow's `Image` and `ImageDraw`, and a font that suits the image."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("Drawing takes Pillow: `pip install pillow`.") from error
    font = ImageFont.load_default(size=max(10, min(np.shape(image)[:2]) / 30))
    return Image, ImageDraw, font


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
    Image, ImageDraw, font = _pillow(image)
    picture = Image.fromarray(np.array(image, np.uint8))
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    line = max(2, round(min(width, height) / 200))
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


def draw_classes(image, classes, labels: Sequence[str]) -> np.ndarray:
    """Colours the pixels of an image by their classes.

    Args:
        image: uint8 `[height, width, 3]`.
        classes: the class of each pixel, `[height, width]`.
        labels: names of the classes; the one called "background" is left as it is.

    Returns:
        A copy of the image with the colours, uint8 `[height, width, 3]`.

    Example:
    >>> draw_classes(photo, class_map(logits, 480, 640), VOC_NAMES).shape
    (480, 640, 3)
    """
    colors = np.array([class_color(label) for label in range(len(labels))], np.float32)
    opacity = np.float32([OPACITY * (name != BACKGROUND) for name in labels])[:, None]
    added, kept = opacity * colors, 1 - opacity  # by class, [classes, 3 or 1]
    drawn = np.array(image, np.uint8)
    # Row by row: all of a photo in floats would take a gigabyte.
    for row, labels_of_row in zip(drawn, np.asarray(classes)):
        row[:] = np.round(kept[labels_of_row] * row + added[labels_of_row])
    return drawn


def add_legend(image, names: dict[int, str]) -> np.ndarray:
    """Writes the names of classes with their colours below a picture.

    Args:
        image: uint8 `[height, width, 3]`.
        names: what to write, by class.

    Returns:
        uint8 `[height + rows, width, 3]`; without names, the image as it is.

    Raises:
        ImportError: without Pillow.
    """
    image = np.array(image, np.uint8)
    if not names:
        return image
    Image, ImageDraw, font = _pillow(image)
    height, width = image.shape[:2]
    line = round(1.5 * font.size)
    places, x, y = [], 0, 0  # of the entries, in rows as wide as the picture
    for label, text in names.items():
        advance = round(2 * line + font.getlength(text))
        if x and x + advance > width:
            x, y = 0, y + line
        places.append((label, text, x, y))
        x += advance
    picture = Image.new("RGB", (width, height + y + 2 * line), "white")
    picture.paste(Image.fromarray(image))
    draw = ImageDraw.Draw(picture)
    for label, text, x, y in places:
        left, top = x + line // 2, height + y + line // 2
        square = (left, top + line // 6, left + font.size, top + line // 6 + font.size)
        draw.rectangle(square, fill=class_color(label))
        place = left + line, top + line // 6 + font.size / 2
        draw.text(place, text, fill="black", font=font, anchor="lm")
    return np.asarray(picture)
