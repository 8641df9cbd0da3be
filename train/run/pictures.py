"""Pictures of a model's predictions, on the same validation images in each epoch."""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from train.config import TrainConfig
from train.data import pipeline as data
from train.data.source import Source
from train.tasks.task import Task

EXAMPLES = 8


def first_examples(
    task: Task, source: Source, config: TrainConfig, count: int = EXAMPLES
) -> dict[str, np.ndarray]:
    """Prepares the first validation examples that can be read, at most `count`."""
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
        del batch["index"]
        parts.append({k: v.numpy()[is_readable][:missing] for k, v in batch.items()})
        missing -= len(parts[-1]["image"])
        if not missing:
            break
    return data.join(parts)


def make_drawing(
    task: Task, model, source: Source, config: TrainConfig
) -> Callable[[], list[np.ndarray]]:
    """Makes a function that draws the model's current predictions with `Task.pictures`.

    It runs outside of the strategy, so that drawing changes neither weights nor random
    state, and only the chief has to draw.
    """
    draw_examples = task.pictures
    if draw_examples is None:
        return list
    # Read at the first call: the evaluation before it reports images it cannot read.
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
