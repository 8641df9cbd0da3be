"""From an example of a source to an image: read, decode a window, resize.

Every image is upright: the EXIF orientation is applied first.
`keras_mobilevit.image_files` does the same for `predict`, with the same pixels.
"""

import numpy as np
import tensorflow as tf

from keras_mobilevit import image_files, preprocessing
from train.data import augment, exif

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIDES = 16  # position of width and height, 4 bytes each, big-endian
_PNG_EXIF = b"eXIf"
# Pillow's method, so that both give the same pixels. TensorFlow's default is a few
# percent faster and differs in the last bits.
_EXACT = "INTEGER_ACCURATE"
_IMAGE = tf.TensorSpec([None, None, 3], tf.uint8)


def read(example: dict) -> tf.Tensor:
    """Returns an example's encoded image, from memory or from its file."""
    if "path" in example:
        return tf.io.read_file(example["path"])
    return example["encoded"]


def _is_plain_png(encoded):
    """Tells whether an image is a PNG without an EXIF chunk anywhere in it."""
    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG
    return is_png & (tf.size(tf.strings.split(encoded, _PNG_EXIF)) == 1)


def _with_pillow(function, encoded, dtype):
    """Calls a function of an image's bytes outside the graph."""
    if tf.executing_eagerly():  # numpy_function would lose zeros at the end
        return tf.constant(function(tf.convert_to_tensor(encoded).numpy()), dtype)
    return tf.numpy_function(function, [encoded], dtype, stateful=False)


def _refuse_too_large(size):
    """Returns the assertion that an image of (height, width) is small enough."""
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    limit = tf.constant(image_files.MAX_PIXELS, tf.int64)
    return tf.debugging.assert_less_equal(
        pixels, limit, "The image has more pixels than the limit"
    )


def _decode_png(encoded):
    with tf.control_dependencies([_refuse_too_large(_png_size(encoded))]):
        return tf.io.decode_png(encoded, channels=3)


def _png_size(encoded):
    """Reads the height and width from the header of a PNG."""
    sides = tf.io.decode_raw(tf.strings.substr(encoded, _PNG_SIDES, 8), tf.uint8)
    digits = tf.reshape(tf.cast(sides, tf.int32), [2, 4])
    return tf.reduce_sum(digits * [2**24, 2**16, 2**8, 1], axis=1)[::-1]


def _decode_jpeg(encoded):
    """Decodes the pixels of a JPEG as they are stored."""
    with tf.control_dependencies([_refuse_too_large(_jpeg_size(encoded))]):
        return tf.io.decode_jpeg(encoded, channels=3, dct_method=_EXACT)


def _jpeg_size(encoded):
    return tf.io.extract_jpeg_shape(encoded)[:2]


def _crop_jpeg(encoded, window):
    return tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method=_EXACT)


def _turned_jpeg_size(encoded):
    orientation = exif.jpeg_orientation(encoded)
    return exif.upright_size(_jpeg_size(encoded), orientation)


def _decode_turned_jpeg(encoded):
    return exif.turn(_decode_jpeg(encoded), exif.jpeg_orientation(encoded))


def _crop_turned_jpeg(encoded, window):
    orientation = exif.jpeg_orientation(encoded)
    size = exif.upright_size(_jpeg_size(encoded), orientation)
    stored = _crop_jpeg(encoded, exif.stored_window(window, size, orientation))
    return exif.turn(stored, orientation)


def _decode_other(encoded):
    """Decodes with Pillow what TensorFlow lacks or decodes differently.

    Among these are BMP with a palette, which TensorFlow decodes as gray, and animated
    WebP.
    """
    return tf.cond(
        _is_plain_png(encoded),
        lambda: _decode_png(encoded),
        lambda: _with_pillow(image_files.decode, encoded, tf.uint8),
    )


def _crop_other(encoded, window):
    top, left, height, width = tf.unstack(window)
    return _decode_other(encoded)[top : top + height, left : left + width]


def _other_size(encoded):
    def size(content: bytes) -> np.ndarray:
        return np.asarray(image_files.read_header(content).size[::-1], np.int32)

    return tf.cond(
        _is_plain_png(encoded),
        lambda: _png_size(encoded),
        lambda: _with_pillow(size, encoded, tf.int32),
    )


def _rarely(condition, then, otherwise, dtype, *inputs):
    """Works like `tf.cond`, but its branches cost nothing if it is not reached.

    `tf.cond` inlines the operations of both branches into the graph around it, and
    TensorFlow visits them all, which takes 8 % of the time of a small photo.
    """
    if tf.executing_eagerly():
        return then(*inputs) if condition else otherwise(*inputs)
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    branches = [
        tf.function(branch, autograph=False).get_concrete_function(*specs)
        for branch in (then, otherwise)
    ]
    (result,) = tf.raw_ops.If(
        cond=condition,
        input=inputs,
        Tout=[dtype],
        then_branch=branches[0],
        else_branch=branches[1],
    )
    return result


def _by_format(spec, functions, encoded, *inputs):
    """Calls the function for upright JPEG, turned JPEG, or other formats."""
    jpeg, turned_jpeg, other = functions
    is_jpeg = tf.io.is_jpeg(encoded)
    result = tf.cond(
        is_jpeg & ~exif.may_turn(encoded),
        lambda: jpeg(encoded, *inputs),
        lambda: _rarely(is_jpeg, turned_jpeg, other, spec.dtype, encoded, *inputs),
    )
    result.set_shape(spec.shape)
    return result


def decode(encoded) -> tf.Tensor:
    """Decodes an image of any format, or the first frame of an animation, upright.

    Returns:
        uint8 `[height, width, 3]`, RGB.
    """
    functions = _decode_jpeg, _decode_turned_jpeg, _decode_other
    return _by_format(_IMAGE, functions, encoded)


def decode_window(encoded, window) -> tf.Tensor:
    """Decodes one window of an image; of a JPEG, only the part that is needed.

    `window` is int32 `[4]`: top, left, height, width in the upright image. The result
    is uint8 `[height, width, 3]`.
    """
    functions = _crop_jpeg, _crop_turned_jpeg, _crop_other
    return _by_format(_IMAGE, functions, encoded, window)


def image_size(encoded) -> tf.Tensor:
    """Reads the height and width of the upright image, int32 `[2]`, but no pixels."""
    functions = _jpeg_size, _turned_jpeg_size, _other_size
    return _by_format(tf.TensorSpec([2], tf.int32), functions, encoded)


def resize(image, size) -> tf.Tensor:
    """Resizes an image of any type to uint8 `[*size, 3]`; its aspect may change."""
    image = tf.image.resize(image, size, antialias=True)
    return tf.saturate_cast(tf.round(image), tf.uint8)


def train_example(example, size, seed, config) -> dict:
    """Makes an example of classification: a random crop, possibly mirrored.

    `size` is (height, width), `seed` two integers, which determine crop and flip. Of
    the `TrainConfig`, `crop_scale` and `flip` are used.
    """
    encoded = read(example)
    height, width = tf.unstack(image_size(encoded))
    seeds = tf.random.experimental.stateless_split(seed, 2)
    window = augment.random_crop_window(height, width, config.crop_scale, seeds[0])
    image = resize(decode_window(encoded, window), size)
    if config.flip:
        image = augment.random_flip(image, seeds[1])
    return {"image": image, "label": example["label"]}


def center_crop(example: dict, size, crop_fraction: float) -> tf.Tensor:
    """Returns the central part of an example's image, uint8 `[*size, 3]`.

    It has the same pixels as `resize_and_center_crop` in a quarter of the memory, since
    TensorFlow resizes integers without a copy in float32.
    """
    image = preprocessing.center_crop(decode(read(example)), size, crop_fraction)
    return resize(image, size)


def eval_example(example, size, crop_fraction: float) -> dict:
    """Makes an example of classification for evaluation: a central crop."""
    image = center_crop(example, size, crop_fraction)
    return {"image": image, "label": example["label"]}
