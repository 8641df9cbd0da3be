"""From an example of a source to an image: read, decode a window of it, resize.

The orientation in EXIF data is ignored, as by Keras's own
`image_dataset_from_directory`.
"""

import tensorflow as tf

from keras_mobilevit.preprocessing import resize_and_center_crop
from train import augment


def read(example):
    """Returns an example's encoded image, from memory or from its file."""
    return (
        example["encoded"]
        if "path" not in example
        else tf.io.read_file(example["path"])
    )


def decode(encoded):
    """Decodes any image format to RGB in uint8; of an animation, the first frame."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def decode_window(encoded, window):
    """Decodes one window of an image, and no more of a JPEG than that takes.

    Args:
        encoded: bytes of any image format.
        window: int32 `[4]`: top, left, height, width.

    Returns:
        uint8 `[height, width, 3]`.
    """

    def crop_decoded():
        top, left, height, width = tf.unstack(window)
        return decode(encoded)[top : top + height, left : left + width]

    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_and_crop_jpeg(encoded, window, channels=3),
        crop_decoded,
    )
    image.set_shape([None, None, 3])
    return image


def image_size(encoded):
    """Returns the height and width; only of a JPEG without decoding it."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(decode(encoded))[:2],
    )


def to_uint8(image):
    """Rounds values in [0, 255]."""
    return tf.saturate_cast(tf.round(image), tf.uint8)


def resize(image, size):
    """Resizes an image of any type to uint8 `[*size, 3]`, whatever its aspect."""
    return to_uint8(tf.image.resize(image, size, antialias=True))


def train_example(example, size, seed, config) -> dict:
    """Makes an example of classification for training.

    Args:
        example: of a source: `encoded` or `path`, and `label`.
        size: (height, width) of the result.
        seed: two integers; the same ones crop and mirror it alike.
        config: a `TrainConfig`; its `crop_scale` and `flip` are used.

    Returns:
        `image`, uint8 `[*size, 3]`: a random crop, perhaps mirrored; and `label`.
    """
    encoded = read(example)
    height, width = tf.unstack(image_size(encoded))
    seeds = tf.random.experimental.stateless_split(seed, 2)
    window = augment.random_crop_window(height, width, config.crop_scale, seeds[0])
    image = resize(decode_window(encoded, window), size)
    if config.flip:
        image = augment.random_flip(image, seeds[1])
    return {"image": image, "label": example["label"]}


def center_crop(example, size, crop_fraction: float):
    """Returns the central part of an example's image, uint8 `[*size, 3]`."""
    image = decode(read(example))
    return to_uint8(resize_and_center_crop(image, size, crop_fraction))


def eval_example(example, size, crop_fraction: float) -> dict:
    """Makes an example of classification for evaluation: a central crop."""
    image = center_crop(example, size, crop_fraction)
    return {"image": image, "label": example["label"]}
