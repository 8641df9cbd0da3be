"""Checks of arguments that all models share."""

import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_mobilevit.configs import MIN_SIZE
from keras_mobilevit.weights.hub_repository import is_address, parse_address


def check_weights(weights: Any, names: tuple[str, ...]) -> None:
    """Checks that weights are `None`, one of the published `names`, or a file.

    A file is a path or the address of one on the Hub.
    """
    if is_address(weights):
        parse_address(weights)
        return
    is_path = isinstance(weights, (str, os.PathLike)) and os.path.exists(weights)
    if weights not in (None, *names) and not is_path:
        published = " or ".join(f'"{name}"' for name in names)
        raise ValueError(
            f"`weights` must be `None` (random initialization), {published} (published "
            "weights), the path of an existing weights file, or an address on the "
            'Hugging Face Hub, "hf://owner/name". '
            f"Received: weights={weights!r}."
        )


def is_positive(value: Any) -> bool:
    """Tells whether a value is a positive integer, Python's or NumPy's."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return is_integer and value > 0


def check_positive(**values: Any) -> None:
    """Checks that arguments are positive integers."""
    for name, value in values.items():
        if not is_positive(value):
            raise ValueError(
                f"`{name}` must be a positive integer. Received: {name}={value!r}."
            )


def check_input_shape(input_shape: Iterable[int | None], weights: Any) -> tuple:
    """Returns the checked (height, width, channels) of the images as a tuple.

    Published weights require three channels.
    """
    if keras.config.image_data_format() == "channels_first":
        raise ValueError(
            "MobileViT is channels-last only. Set "
            '`keras.config.set_image_data_format("channels_last")`.'
        )
    is_tuple = isinstance(input_shape, (tuple, list)) and len(input_shape) == 3
    if not is_tuple or not all(x is None or is_positive(x) for x in input_shape):
        raise ValueError(
            "`input_shape` must be (height, width, channels). "
            f"Received: input_shape={input_shape}."
        )
    *size, channels = input_shape
    if any(side is not None and side < MIN_SIZE for side in size):
        raise ValueError(
            f"Input height and width must be at least {MIN_SIZE}. "
            f"Received: input_shape={input_shape}."
        )
    if channels not in (1, 3, 4):
        raise ValueError(
            "Images must have 1, 3 or 4 channels, in the last axis. "
            f"Received: input_shape={input_shape}."
        )
    is_file = is_address(weights) or os.path.exists(weights or "")
    if isinstance(weights, str) and not is_file and channels != 3:
        raise ValueError(
            f'`weights="{weights}"` requires images with 3 channels. '
            f"Received: input_shape={input_shape}."
        )
    return tuple(input_shape)
