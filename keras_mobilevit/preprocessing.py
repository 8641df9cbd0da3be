"""Prepares images for evaluation, and names ImageNet's classes."""

import functools
import os
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_mobilevit.backend import Tensor
from keras_mobilevit.weights.download import download, md5_of

# The paper resizes the short side to 288 and crops 256 (section 4.1).
CROP_FRACTION = 256 / 288
# keras.applications downloads ImageNet's class names from here.
IMAGENET_NAMES = (
    "https://storage.googleapis.com/download.tensorflow.org/data/"
    "imagenet_class_index.json"
)
# Keras downloads the file again, without a limit of time, if it has another one.
_NAMES_MD5 = "c2c37ea517e94d9795004a39431a14cb"
_NAMES_MAX_BYTES = 2**20  # it has 35 KB


def preprocess_input(x: Tensor, data_format: str | None = None) -> Tensor:
    """Returns the images unchanged, because the models scale them to [0, 1].

    Code that works with any model of `keras.applications` calls this function. For a
    model with `include_preprocessing=False`, divide the images by 255 instead.

    Args:
        x: images with values in [0, 255], RGB.
        data_format: ignored.

    Returns:
        `x`.

    Example:
    >>> model.predict(preprocess_input(images))
    """
    return x


def decode_predictions(preds: np.ndarray, top: int = 5) -> list:
    """Returns the names and scores of the best of ImageNet's 1,000 classes.

    The first call downloads the names to `~/.keras/models`.

    Args:
        preds: predictions `[batch, 1000]`.
        top: number of classes to return.

    Returns:
        For each image a list of `top` tuples (WordNet id, name, score).

    Raises:
        ValueError: if `preds` has another shape.
        OSError: if the names are not cached and cannot be downloaded.

    Example:
    >>> decode_predictions(model.predict(images), top=1)
    [[('n02123045', 'tabby', 0.7)]]
    """
    imagenet_utils = keras.applications.imagenet_utils
    try:
        if tuple(preds.shape[1:]) == (1000,):  # else Keras refuses it
            _cache_imagenet_names()
        return imagenet_utils.decode_predictions(preds, top=top)
    except ValueError:
        raise
    except Exception as error:  # Keras raises a bare Exception without a network
        raise OSError(
            "The names of ImageNet's classes are not cached and cannot be downloaded. "
            f"Without a network, fetch {IMAGENET_NAMES} on another machine and put it "
            f"into ~/.keras/models ($KERAS_HOME/models if set). Cause: {error}"
        ) from error


@functools.cache
def _cache_imagenet_names() -> None:
    """Downloads the names to where Keras looks for them, unless they are there."""
    path = _keras_home() / "models" / Path(IMAGENET_NAMES).name
    if not path.is_file() or md5_of(path.read_bytes()) != _NAMES_MD5:
        download(IMAGENET_NAMES, path, _NAMES_MAX_BYTES, _NAMES_MD5)


def _keras_home() -> Path:
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    if os.access(home, os.W_OK):
        return home
    return Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()) / ".keras"


def center_window(
    sides: Tensor, size: tuple[int, int], crop_fraction: float = CROP_FRACTION
) -> Tensor:
    """Returns the central window of an image, with the aspect of `size`.

    It covers `crop_fraction` of the side of the image that limits it.

    Args:
        sides: height and width of the image, integers `[2]`.
        size: height and width after resizing.
        crop_fraction: in (0, 1].

    Returns:
        Top, left, height and width, int32 `[4]`.
    """
    sides = ops.convert_to_tensor(sides, "int32")
    size = ops.convert_to_tensor(size, "float32")
    scale = crop_fraction * ops.min(ops.cast(sides, "float32") / size)
    window = ops.maximum(1, ops.cast(ops.round(size * scale), "int32"))
    return ops.concatenate([(sides - window) // 2, window])


def resize_and_center_crop(
    image: Tensor, size: tuple[int, int], crop_fraction: float = CROP_FRACTION
) -> Tensor:
    """Resizes the window of `center_window` to float32 `[*size, channels]`."""
    # Cropping before resizing gives the same result and reads fewer pixels. Resizing is
    # antialiased, as by Pillow for timm. ml-cvnets 0.1, which trained the published
    # weights, did not antialias.
    sides = ops.shape(image)[:2]
    top, left, height, width = ops.unstack(center_window(sides, size, crop_fraction))
    crop = image[top : top + height, left : left + width]
    return ops.image.resize(
        ops.cast(crop, "float32"),
        size,
        interpolation="bilinear",
        antialias=True,
        data_format="channels_last",
    )
