"""How many values batch normalization takes its statistics from, before it does.

A layer normalizes each channel by the mean and the variance of its values in one part
of a batch: images times the height and width of the map. Of one value the variance is
0, so that the layer's output says nothing of its input, and the moving statistics,
which the finished model uses, are wrong; the training loss shows nothing of it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import keras

from train.config import TrainConfig
from train.sampler import BatchShape

# Two values are normalized to -1 and 1 whatever they are, so that nothing before the
# layer gets a gradient through it. Measured on the digits at 32 pixels, where the last
# stage has one cell, after 600 steps: 13 % top-1 in batches of 2, 30 % in batches of 3.
# With two, DeepLab's pooled branch does no harm beside the others: mean IoU 0.88.
MIN_VALUES = 3
MIN_VALUES_TO_CONTINUE = 2  # of a run that began before two were refused
# What is proposed: batches below this one, and multiples of a side up to a largest one.
LARGEST_BATCH, SIZE_STEP, LARGEST_SIZE = 4096, 32, 1024


class Statistics:
    """The layers of a model that learn statistics, and their maps at any size.

    Args:
        model: built, for images of any size.

    Attributes:
        model: the same.
        layers: its batch normalization that is not frozen.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.layers = [
            layer
            for layer in model.layers
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]
        inputs = [layer.input for layer in self.layers]
        self._maps = keras.Function(model.inputs, inputs) if inputs else None
        self._smallest = {}

    def smallest_map(self, height: int, width: int) -> tuple[str, int]:
        """Names the layer that sees the fewest values of an image, and their number.

        Args:
            height: of the image.
            width: of the image.

        Returns:
            Its name, and its values for each channel of one image; without such a
            layer `("", math.inf)`.
        """
        if (height, width) not in self._smallest:
            self._smallest[height, width] = self._find(height, width)
        return self._smallest[height, width]

    def _find(self, height: int, width: int) -> tuple[str, int]:
        if not self._maps:
            return "", math.inf
        image = keras.KerasTensor((1, height, width, self.model.input_shape[-1]))
        maps = self._maps.compute_output_spec([image])
        counts = [
            math.prod(x.shape) // x.shape[layer.axis]
            for layer, x in zip(self.layers, maps)
        ]
        smallest = counts.index(min(counts))
        return self.layers[smallest].name, counts[smallest]


def check_statistics(
    statistics: Statistics,
    config: TrainConfig,
    shapes_of: Callable[[TrainConfig], list[BatchShape]],
    minimum: int = MIN_VALUES,
) -> None:
    """Refuses a training in which batch normalization sees too few values.

    Frozen layers keep their statistics and are not checked. With several devices, the
    layers take their statistics from all of them together.

    Args:
        statistics: of the model that is trained.
        config: the run's configuration.
        shapes_of: from a configuration to its batch shapes, of all devices together;
            raises a ValueError where there are none.
        minimum: of the values of a channel.

    Raises:
        ValueError: if a layer sees fewer than `minimum` values of a channel at some
            size. The message names the layer, the size and the number of images, and
            the changes with which this training is accepted.
    """
    values, layer, shape = _fewest(statistics, config, shapes_of(config))
    if values >= minimum:
        return
    images = _count(shape.batch // config.accumulation_steps, "image")
    whole = "a part of the batch" if config.accumulation_steps > 1 else "a batch"
    proposals = _proposals(statistics, config, shapes_of)
    raise ValueError(
        f"Batch normalization would learn from too few values: at {shape.height}x"
        f"{shape.width} pixels {whole} has {images}, of which the layer {layer} sees "
        f"{_count(values, 'value')} for each channel. It needs {minimum}; with "
        "fewer the training loss looks well and the trained model is wrong. What "
        f"mends it: {' or '.join(proposals) or 'larger batches'}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _fewest(
    statistics: Statistics, config: TrainConfig, shapes: Iterable[BatchShape]
) -> tuple[int, str, BatchShape]:
    """Returns the fewest values of a channel, with the layer and the batch's shape."""
    found = []
    for shape in set(shapes):
        layer, positions = statistics.smallest_map(shape.height, shape.width)
        values = shape.batch // config.accumulation_steps * positions
        found.append((values, layer, shape))
    return min(found)


def _proposals(
    statistics: Statistics, config: TrainConfig, shapes_of: Callable
) -> list[str]:
    """Returns changes of flags with which a training is accepted, each the smallest."""

    def is_accepted(**changes) -> bool:
        changed = dataclasses.replace(config, **changes)
        try:
            return _fewest(statistics, changed, shapes_of(changed))[0] >= MIN_VALUES
        except ValueError:  # batches that cannot be dealt out
            return False

    good_sizes = tuple(size for size in config.sizes if is_accepted(sizes=(size,)))
    larger = range(SIZE_STEP, LARGEST_SIZE + 1, SIZE_STEP)
    kinds = (
        [{"batch_size": n} for n in range(config.batch_size + 1, LARGEST_BATCH)],
        [
            {"accumulation_steps": n}
            for n in range(config.accumulation_steps - 1, 0, -1)
        ],
        [{"sizes": good_sizes}] if good_sizes else [],
        [
            {"sizes": (side,), "base_size": side, "eval_size": side}
            for side in larger
            if side > max(config.sizes) and not good_sizes
        ],
    )
    found = (
        next((change for change in kind if is_accepted(**change)), None)
        for kind in kinds
    )
    return [_as_flags(change) for change in found if change]


def _as_flags(change: dict) -> str:
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in change.items()
    }
    return " ".join(f"--{name}={text}" for name, text in texts.items())
