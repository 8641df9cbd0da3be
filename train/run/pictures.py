"""Pictures of a model's predictions on the same validation images every epoch."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from train.config import TrainConfig
from train.data import pipeline as data
from train.data.source import Source
from train.tasks.task import Task

EXAMPLES = 8
SIDE = 384  # longer side of a picture: boxes and names are legible on small images too
GAP = 24  # between examples
INNER_GAP = 4  # between the pictures of one example
CAPTION_HEIGHT = 22
CAPTION_SIZE = 14
GRAY = 40  # the background, on which dark and bright pictures stand out
TEXT_GRAY = 230


def first_examples(
    task: Task, source: Source, config: TrainConfig, count: int = EXAMPLES
) -> dict[str, np.ndarray]:
    """Prepares the first validation examples that can be read.

    Args:
        task: prepares them.
        source: where they come from.
        config: gives size and crop.
        count: number of examples; fewer if the validation split is smaller.

    Returns:
        `image` and the task's targets, `[examples, ...]`.
    """
    batches = data.eval_batches(
        source,
        "validation",
        config.eval_size,
        count,
        config.eval_crop,
        load=task.eval_example,
    )
    parts, missing = [], count
    for batch in batches:
        is_readable = batch.pop("weight").numpy() > 0
        del batch["id"]
        parts.append({k: v.numpy()[is_readable][:missing] for k, v in batch.items()})
        missing -= len(parts[-1]["image"])
        if not missing:
            break
    return data.join(parts)


def make_drawing(
    task: Task, model, source: Source, config: TrainConfig
) -> Callable[[], list[np.ndarray]]:
    """Makes the function that draws a model's current predictions.

    It runs outside of the strategy, so that drawing changes neither weights nor random
    state, and only the chief has to draw.

    Args:
        task: its `pictures` draw.
        model: of the task.
        source: its first validation images are shown.
        config: gives their size.

    Returns:
        A function without arguments that returns uint8 pictures `[height, width, 3]`;
        an empty list if the task has no pictures.
    """
    draw_examples = task.pictures
    if draw_examples is None:
        return list
    # Read when they are first drawn: the evaluation before it reports bad images.
    examples = functools.cache(lambda: first_examples(task, source, config))
    predict = tf.function(
        lambda images: model(tf.cast(images, tf.float32), training=False),
        autograph=False,
    )

    def draw() -> list[np.ndarray]:
        outputs = predict(examples()["image"])
        outputs = tf.nest.map_structure(lambda x: x.numpy(), outputs)
        return draw_examples(source.class_names, examples(), outputs)

    return draw


def at_viewing_size(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes a network's input for viewing, to the aspect of the original image.

    Args:
        image: uint8 `[height, width, 3]`.
        size: (height, width) of the original.

    Returns:
        uint8 `[height, width, 3]`, whose longer side is `SIDE`.
    """
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
    """Arranges pictures of any sizes in a grid that is about square.

    Args:
        pictures: uint8 `[height, width, 3]`, at least one.

    Returns:
        uint8 `[height, width, 3]`, row by row.
    """
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0)
    columns = max(1, round(math.sqrt(len(pictures) * height / width)))
    sheet = _grid(pictures, min(columns, len(pictures)), GAP)
    return np.pad(sheet, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=GRAY)


def _grid(pictures: Sequence[np.ndarray], columns: int, gap: int) -> np.ndarray:
    """Arranges pictures in cells of the largest one's size."""
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0) + gap
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), GRAY, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet[:-gap, :-gap]
