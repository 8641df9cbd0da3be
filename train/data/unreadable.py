"""Why images could not be read.

A `tf.data` pipeline leaves out what fails and does not say why, so the file is read
once more, here.
"""

import os
import re
from collections.abc import Sequence

import tensorflow as tf

from train.data import images
from train.data.sources import Source

TOLD = 3  # images that a message names
# What TensorFlow adds to a message: the function and the operation that failed.
_SURROUNDINGS = re.compile(r"\{\{.*?\}\}\s*|\s*\[Op:.*", re.DOTALL)


def reason(name: str) -> str:
    """Says why an image could not be read.

    Args:
        name: of an example: the path of its file, or what a data set calls it.

    Returns:
        A few words, for a person.
    """
    if not os.path.isabs(name) and not os.path.exists(name):
        return "its data set holds no image that can be decoded"
    try:
        content = tf.io.read_file(name)
        if not len(content.numpy()):
            return "the file is empty"
        images.decode(content)
    except (tf.errors.OpError, OSError, ValueError) as error:
        text = error.message if isinstance(error, tf.errors.OpError) else str(error)
        return " ".join(_SURROUNDINGS.sub("", text).split())
    return (
        "it can be read here and now: it may have been incomplete or out of reach at "
        "the time, or a data server cannot decode its kind"
    )


def with_reason(name: str) -> str:
    """Returns the name of an image and why it could not be read."""
    return f"{name} ({reason(name)})"


def refuse_nothing_read(source: Source, split: str, names: Sequence[str]) -> None:
    """Raises a ValueError that names images of a split, none of which can be read.

    Args:
        source: of the images.
        split: of the source.
        names: of them.
    """
    first = "; ".join(map(with_reason, list(dict.fromkeys(names))[:TOLD]))
    raise ValueError(
        f"None of the {source.num_examples[split]} {split} images of {source.name} can "
        "be read." + (f" The first are {first}." if first else "")
    )
