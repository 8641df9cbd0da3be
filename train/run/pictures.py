"""Pictures of what a model predicts, of the same few validation images every epoch."""

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
SIDE = 384  # of a picture, in pixels: boxes and names are legible on small images too
GAP = 24  # between examples
INNER_GAP = 4  # between pictures of one
CAPTION_HEIGHT = 22
CAPTION_SIZE = 14
GROUND = 40  # a dark gray, beside which dark and bright pictures are seen
INK = 230


def first_examples(
    task: Task, source: Source, config: TrainConfig, count: int = EXAMPLES
) -> dict[str, np.ndarray]:
    """Prepares the first validation examples that can be read.

    Args:
        task: how.
        source: where they come from.
        config: gives size and crop.
        count: how many; a smaller validation split has fewer.

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
    """Makes the function that shows what a model predicts now.

    It runs outside the strategy and for itself: whether the chief draws or not changes
    neither weights nor random state, and other workers need not know.

    Args:
        task: its `pictures` draw.
        model: of the task.
        source: its first validation images are shown.
        config: gives their size.

    Returns:
        A function without arguments to a list of uint8 pictures `[height, width, 3]`;
        of a task without pictures none.
    """
    if task.pictures is None:
        return list
    # Read when they are first drawn, after the evaluation, which tells what is amiss.
    examples = functools.cache(lambda: first_examples(task, source, config))
    predict = tf.function(
        lambda images: model(tf.cast(images, tf.float32), training=False),
        autograph=False,
    )

    def draw() -> list[np.ndarray]:
        outputs = predict(examples()["image"])
        outputs = tf.nest.map_structure(lambda x: x.numpy(), outputs)
        return task.pictures(source.class_names, examples(), outputs)

    return draw


def at_viewing_size(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes an image to be looked at, whatever size the network takes it at.

    Args:
        image: uint8 `[height, width, 3]`.
        size: (height, width) of the original, whose aspect the picture gets.

    Returns:
        uint8 `[height, width, 3]`, whose longer side is `SIDE`.
    """
    height, width = (max(1, round(SIDE * int(side) / int(max(size)))) for side in size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def side_by_side(pictures: dict[str, np.ndarray]) -> np.ndarray:
    """Joins pictures of one height, each with its name above it."""
    captioned = [_with_caption(name, picture) for name, picture in pictures.items()]
    return _grid(captioned, len(captioned), INNER_GAP)


def _with_caption(text: str, picture: np.ndarray) -> np.ndarray:
    font = ImageFont.load_default(size=CAPTION_SIZE)
    height, width = picture.shape[:2]
    width = max(width, math.ceil(font.getlength(text)))
    ground = Image.new("RGB", (width, CAPTION_HEIGHT + height), (GROUND,) * 3)
    ImageDraw.Draw(ground).text((0, 2), text, fill=(INK,) * 3, font=font)
    ground.paste(Image.fromarray(picture), (0, CAPTION_HEIGHT))
    return np.asarray(ground)


def contact_sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Arranges pictures of any sizes on one that is about square.

    Args:
        pictures: uint8 `[height, width, 3]`, at least one.

    Returns:
        uint8 `[height, width, 3]`, row by row in their order.
    """
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0)
    columns = max(1, round(math.sqrt(len(pictures) * height / width)))
    sheet = _grid(pictures, min(columns, len(pictures)), GAP)
    return np.pad(sheet, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=GROUND)


def _grid(pictures: Sequence[np.ndarray], columns: int, gap: int) -> np.ndarray:
    """Lays pictures out in cells of the largest one's size."""
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0) + gap
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), GROUND, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet[:-gap, :-gap]
