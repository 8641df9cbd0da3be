"""What happens to an image before the network sees it at evaluation."""

import keras
from keras import ops

# The recipe evaluates at 256 after resizing the short side to 288 (section 4.1).
CROP_FRACTION = 256 / 288
# Where keras.applications finds ImageNet's class names.
IMAGENET_NAMES = (
    "https://storage.googleapis.com/download.tensorflow.org/data/"
    "imagenet_class_index.json"
)


def preprocess_input(x, data_format=None):
    """Returns the images unchanged: the models scale [0, 255] to [0, 1] themselves.

    It exists for code that is written for any model of `keras.applications`. For a
    model with `include_preprocessing=False`, divide by 255 instead.

    Args:
        x: images with values in [0, 255], RGB.
        data_format: ignored.

    Returns:
        `x`.
    """
    return x


def decode_predictions(preds, top: int = 5) -> list:
    """Names the best of ImageNet's 1,000 classes.

    The names are downloaded at the first use and kept in `~/.keras/models`.

    Args:
        preds: predictions `[batch, 1000]`.
        top: how many to return.

    Returns:
        For each image a list of `top` tuples (WordNet id, name, score).

    Raises:
        ValueError: if `preds` has another shape.
        OSError: if the names are not cached and cannot be downloaded.
    """
    imagenet_utils = keras.applications.imagenet_utils
    try:
        return imagenet_utils.decode_predictions(preds, top=top)
    except ValueError:
        raise
    except Exception as error:  # Keras raises a bare one where the network is not
        raise OSError(
            "The names of ImageNet's classes are not cached and cannot be downloaded. "
            f"Without a network, fetch {IMAGENET_NAMES} on another machine and put it "
            f"into ~/.keras/models ($KERAS_HOME/models if set). The cause: {error}"
        ) from error


def center_crop(image, size: tuple, crop_fraction: float = CROP_FRACTION):
    """Cuts out the central part of the image that has the aspect of `size`.

    Args:
        image: `[height, width, channels]`, any number type.
        size: (height, width) to which the part is going to be resized.
        crop_fraction: the part of the image's tighter side that is kept, in (0, 1].

    Returns:
        The part of the image, of its type.
    """
    height, width = (ops.cast(side, "float32") for side in ops.shape(image)[:2])
    scale = crop_fraction * ops.minimum(height / size[0], width / size[1])
    crop_height, crop_width = (
        ops.maximum(1, ops.cast(ops.round(side * scale), "int32")) for side in size
    )
    top = (ops.cast(height, "int32") - crop_height) // 2
    left = (ops.cast(width, "int32") - crop_width) // 2
    return image[top : top + crop_height, left : left + crop_width]


def resize_and_center_crop(image, size: tuple, crop_fraction: float = CROP_FRACTION):
    """Cuts out the central part of the image that has the shape of `size`, resized.

    Args:
        image: `[height, width, channels]`, any number type.
        size: (height, width) of the result.
        crop_fraction: the part of the image's tighter side that is kept, in (0, 1].

    Returns:
        The image `[*size, channels]` in float32, on the scale of the input.

    Example:
    >>> resize_and_center_crop(photo, (256, 256)).shape
    (256, 256, 3)
    """
    # The crop is cut before the resize, which is the same and reads less.
    # Antialiased, as Pillow resizes for timm. ml-cvnets 0.1, where published weights
    # come from, resized without: photos that shrink a lot look a little different.
    return ops.image.resize(
        ops.cast(center_crop(image, size, crop_fraction), "float32"),
        size,
        interpolation="bilinear",
        antialias=True,
        data_format="channels_last",
    )
