"""Pictures of a segmenter's work: the true classes, and beside them those it finds."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_mobilevit.drawing import BACKGROUND, OPACITY, class_color, draw_classes
from train.data.masks import IGNORE_INDEX, decode_mask
from train.run.pictures import CAPTION_SIZE, GROUND, INK, at_viewing_size, side_by_side
from train.tasks.segmentation.postprocess import main_logits

SWATCH = 14  # side of a colour in the legend
LINE = 22  # of the legend
SPACE = 12  # between its entries


def draw_examples(class_names: Sequence[str], batch: dict, outputs) -> list[np.ndarray]:
    """Draws truth and prediction side by side: see `train.tasks.task.Task.pictures`."""
    return [
        _draw_example(
            {name: value[index] for name, value in batch.items()},
            class_map,
            class_names,
        )
        for index, class_map in enumerate(main_logits(outputs).argmax(axis=-1))
    ]


def _draw_example(
    example: dict, class_map: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    image = at_viewing_size(example["image"], example["image_size"])
    truth, found = (
        _nearest(classes, image.shape[:2])
        for classes in (decode_mask(example["full_mask"]).numpy(), class_map)
    )
    shown = {
        "truth": overlay(image, truth, class_names),
        "found": overlay(image, found, class_names),
    }
    picture = side_by_side(shown)
    labels = [label for label in np.union1d(truth, found) if label != IGNORE_INDEX]
    colors = {class_names[label]: class_color(int(label)) for label in labels}
    colors.pop(BACKGROUND, None)
    if (truth == IGNORE_INDEX).any():
        colors["not counted"] = (GROUND,) * 3
    return np.concatenate([picture, _legend(colors, picture.shape[1])])


def _nearest(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(classes.astype(np.uint8))
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))


def overlay(
    image: np.ndarray, classes: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """Colours an image by classes; what does not count is dark.

    Args:
        image: uint8 `[height, width, 3]`.
        classes: `[height, width]`.
        class_names: in the order of the classes.

    Returns:
        uint8 `[height, width, 3]`.
    """
    is_ignored = classes == IGNORE_INDEX
    colored = draw_classes(image, np.where(is_ignored, 0, classes), class_names)
    dark = np.round((1 - OPACITY) * image + OPACITY * GROUND).astype(np.uint8)
    return np.where(is_ignored[..., None], dark, colored)


def _legend(colors: dict[str, tuple], width: int) -> np.ndarray:
    """Draws names with their colours, in as many lines as the width takes."""
    font = ImageFont.load_default(size=CAPTION_SIZE)
    places, left, top = [], 0, 0
    for name in colors:
        needed = SWATCH + SPACE + round(font.getlength(name))
        if left and left + needed > width:
            left, top = 0, top + LINE
        places.append((left, top))
        left += needed + SPACE
    ground = Image.new("RGB", (width, top + LINE), (GROUND,) * 3)
    draw = ImageDraw.Draw(ground)
    for (x, y), (name, color) in zip(places, colors.items()):
        frame = (x, y + 5, x + SWATCH, y + 5 + SWATCH)
        draw.rectangle(frame, fill=color, outline=(INK,) * 3)
        draw.text((x + SWATCH + 5, y + 3), name, fill=(INK,) * 3, font=font)
    return np.asarray(ground)
