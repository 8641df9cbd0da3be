"""Explains why images could not be read.

A `tf.data` pipeline drops an image that fails and does not say why, so the file is read
once more here.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from keras_mobilevit import image_files
from keras_mobilevit.files import check_file
from train.data import images
from train.data.plan import MAX_OBJECTS
from train.data.source import Source

NAMED = 3  # images that a message names
# TensorFlow adds the function and the operation that failed to a message.
_SURROUNDINGS = re.compile(r"\{\{.*?\}\}\s*|\s*\[Op:.*", re.DOTALL)


def reason(name: str) -> str:
    """Explains why an image, given by its path or id, could not be read."""
    if not os.path.isabs(name) and not os.path.exists(name):
        return (
            "its data set has no image there that can be decoded, or one with more "
            f"than {MAX_OBJECTS:,} objects"
        )
    try:
        check_file(name, image_files.MAX_BYTES)
        content = Path(name).read_bytes()
        if not content:
            return "the file is empty"
        images.decode(tf.constant(content))
    except (tf.errors.OpError, OSError, ValueError) as error:
        text = error.message if isinstance(error, tf.errors.OpError) else str(error)
        return " ".join(_SURROUNDINGS.sub("", text).split())
    return (
        "it can be read here and now: it may have been incomplete or unreachable before"
    )


def with_reason(name: str) -> str:
    """Returns the name of an image and why it could not be read."""
    return f"{name} ({reason(name)})"


def refuse_nothing_read(source: Source, split: str, names: Sequence[str]) -> None:
    """Raises a ValueError that says that no image of a split can be read."""
    first = "; ".join(map(with_reason, list(dict.fromkeys(names))[:NAMED]))
    raise ValueError(
        f"None of the {source.num_examples[split]} {split} images of {source.name} can "
        "be read." + (f" The first are {first}." if first else "")
    )
