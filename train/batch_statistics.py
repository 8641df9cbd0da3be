"""Statistics for batch normalization where a batch has too few values for them.

A layer normalizes each channel by the mean and the variance of its values in one part
of a batch: as many as images times height times width of the map. A single value has
the variance 0: the output does not depend on the input, and the moving variance, which
the finished model uses, converges to 0 without any sign in the training loss. Two
values always become 1 and -1. DeepLab's pooled branch, SSDLite's last maps, and a
classifier's last stage at 32 pixels have one position per image.
"""

import math
from collections.abc import Iterable

import keras
from absl import logging

from keras_mobilevit.backend import BatchNormalization
from train.config import TrainConfig
from train.data.sampler import BatchShape

# Measured on the digits at 32 pixels, see docs/training.md: batches of 3 and 4 images
# learn little, batches of 8 learn as much as with running statistics.
MIN_VALUES = 5


def positions_by_layer(
    model: keras.Model, height: int, width: int
) -> dict[BatchNormalization, int]:
    """Counts one image's values per channel, for layers that learn statistics."""
    layers = [
        layer
        for layer in model.layers
        if isinstance(layer, BatchNormalization) and layer.trainable
    ]
    if not layers:
        return {}
    maps = keras.Function(model.inputs, [layer.input for layer in layers])
    image = keras.KerasTensor((1, height, width, model.input_shape[-1]))
    return {
        layer: math.prod(x.shape) // x.shape[layer.axis]
        for layer, x in zip(layers, maps.compute_output_spec([image]))
    }


def learn_over_steps(
    model: keras.Model, config: TrainConfig, shapes: Iterable[BatchShape]
) -> list[str]:
    """Lets layers that see too few values use the statistics of successive steps.

    Frozen layers keep their statistics. Devices share these statistics. Returns the
    names of the changed layers.
    """
    found: dict[str, tuple] = {}
    for shape in set(shapes):
        images = shape.batch // config.accumulation_steps
        positions = positions_by_layer(model, shape.height, shape.width)
        for layer, count in positions.items():
            if images * count < MIN_VALUES:
                layer.learns_over_steps = True
                fewest = found.get(layer.name, (MIN_VALUES,))
                found[layer.name] = min(fewest, (images * count, images, shape))
    if found:
        _warn(found, config)
    return list(found)


def _warn(found: dict, config: TrainConfig) -> None:
    name, (values, images, shape) = min(found.items(), key=lambda item: item[1][0])
    parts = config.accumulation_steps > 1
    logging.warning(
        "Batch normalization in small batches: at %dx%d pixels %s has %s, and %s (such "
        "as %s) would get %s per channel, too few for a mean and a variance. They "
        "use running statistics of successive steps instead. For statistics of the "
        "batch, raise --batch_size or --sizes%s.",
        shape.width,
        shape.height,
        "a part of the batch" if parts else "a batch",
        _count(images, "image"),
        _count(len(found), "layer"),
        name,
        _count(values, "value"),
        ", or lower --accumulation_steps" if parts else "",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
