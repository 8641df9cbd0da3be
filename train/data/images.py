"""From an example of a source to an image: read, decode a window, resize.

Every image is upright: the EXIF orientation is applied first. `decode` gives the same
pixels as `keras_mobilevit.image_files`, which `predict` uses.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mobilevit import image_files, preprocessing
from train.data import augment, exif
from train.data.rand_augment import rand_augment
from train.data.resize import resize

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIDES = 16  # position of width and height, 4 bytes each, big-endian
_PNG_EXIF = b"eXIf"
# Pillow's method, so that both give the same pixels. TensorFlow's default is a few
# percent faster and differs in the last bits.
_DCT_METHOD = "INTEGER_ACCURATE"
_IMAGE = tf.TensorSpec([None, None, 3], tf.uint8)
_JPEG, _TURNED_JPEG, _OTHER = range(3)  # kinds of images
_RATIOS = (1, 2, 4, 8)  # of the decoder for JPEG
# Values of `reducing_gap`, see `crop_and_resize`. With the gap for training the logits
# of a photo differ up to four times as much as between Pillow and TensorFlow, which is
# little among random crops.
TRAINING_GAP, NO_REDUCING = 1.25, math.inf


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
        return tf.io.decode_jpeg(encoded, channels=3, dct_method=_DCT_METHOD)


def _jpeg_size(encoded):
    return tf.io.extract_jpeg_shape(encoded)[:2]


def _crop_jpeg(encoded, window, size, reducing_gap):
    """Crops and resizes the stored pixels of a JPEG.

    The decoder itself can return an image at 1/2, 1/4 or 1/8 of its size, in less time.
    """
    window, ratios = tf.cast(window, tf.float32), tf.constant(_RATIOS, tf.float32)
    gaps = tf.reduce_min(window[2:] / tf.cast(size, tf.float32)) / ratios
    ratio_index = tf.reduce_sum(tf.cast(gaps[1:] >= reducing_gap, tf.int32))
    window /= ratios[ratio_index]  # in pixels of the smaller image
    # Whole pixels that contain the window.
    first, last = tf.floor(window[:2]), tf.math.ceil(window[:2] + window[2:])
    pixels = tf.cast(tf.concat([first, last - first], axis=0), tf.int32)
    branches = [functools.partial(_decode_part, encoded, pixels, r) for r in _RATIOS]
    part = tf.switch_case(ratio_index, branches)
    return resize(part, size, tf.concat([window[:2] - first, window[2:]], axis=0))


def _decode_part(encoded, pixels, ratio):
    return tf.io.decode_and_crop_jpeg(
        encoded, pixels, channels=3, ratio=ratio, dct_method=_DCT_METHOD
    )


def _turned_jpeg_size(encoded):
    orientation = exif.jpeg_orientation(encoded)
    return exif.upright_size(_jpeg_size(encoded), orientation)


def _decode_turned_jpeg(encoded):
    return exif.turn(_decode_jpeg(encoded), exif.jpeg_orientation(encoded))


def _crop_turned_jpeg(encoded, window, size, reducing_gap):
    orientation = exif.jpeg_orientation(encoded)
    sides = exif.upright_size(_jpeg_size(encoded), orientation)
    window = exif.stored_window(window, sides, orientation)
    # Turned last, when it is small. The sides of the result swap like the image's.
    size = exif.upright_size(size, orientation)
    return exif.turn(_crop_jpeg(encoded, window, size, reducing_gap), orientation)


def _decode_other(encoded):
    """Decodes with Pillow what TensorFlow lacks or decodes differently.

    Among these are BMP with a palette, which TensorFlow decodes as gray, and animated
    WebP.
    """
    image = tf.cond(
        _is_plain_png(encoded),
        lambda: _decode_png(encoded),
        lambda: _with_pillow(image_files.decode, encoded, tf.uint8),
    )
    image.set_shape(_IMAGE.shape)
    return image


def _crop_other(encoded, window, size, reducing_gap):
    del reducing_gap  # the decoders have one size
    top, left, height, width = tf.unstack(window)
    image = _decode_other(encoded)[top : top + height, left : left + width]
    return resize(image, size)


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


class Picture(NamedTuple):
    """An encoded image, and what its header tells."""

    encoded: tf.Tensor  # string, in any format
    kind: tf.Tensor  # `_JPEG`, `_TURNED_JPEG` or `_OTHER`
    size: tf.Tensor  # height and width of the upright image, int32 [2]


def _by_kind(kind, spec, functions, *inputs):
    """Calls the function for upright JPEG, turned JPEG, or other formats."""
    jpeg, turned_jpeg, other = functions
    tensors = [tf.convert_to_tensor(value) for value in inputs]
    is_turned = kind == _TURNED_JPEG
    result = tf.cond(
        kind == _JPEG,
        lambda: jpeg(*tensors),
        lambda: _rarely(is_turned, turned_jpeg, other, spec.dtype, *tensors),
    )
    result.set_shape(spec.shape)
    return result


def _kind(encoded):
    jpeg = tf.where(exif.may_turn(encoded), _TURNED_JPEG, _JPEG)
    return tf.where(tf.io.is_jpeg(encoded), jpeg, _OTHER)


def open_picture(encoded) -> Picture:
    """Reads the header of an image of any format, but no pixels."""
    kind = _kind(encoded)
    functions = _jpeg_size, _turned_jpeg_size, _other_size
    size = _by_kind(kind, tf.TensorSpec([2], tf.int32), functions, encoded)
    with tf.control_dependencies([_refuse_too_large(size)]):
        return Picture(encoded, kind, tf.identity(size))


def decode(encoded) -> tf.Tensor:
    """Decodes an image of any format, or the first frame of an animation, upright.

    Returns:
        uint8 `[height, width, 3]`, RGB.
    """
    functions = _decode_jpeg, _decode_turned_jpeg, _decode_other
    return _by_kind(_kind(encoded), _IMAGE, functions, encoded)


def crop_and_resize(
    picture: Picture, window, size, reducing_gap: float = NO_REDUCING
) -> tf.Tensor:
    """Decodes one window of an image, and resizes it; its aspect may change.

    Of a JPEG, only what is needed is decoded: the window, and if it is much larger than
    the result, a half, a quarter or an eighth of its pixels in each direction.

    Args:
        picture: from `open_picture`.
        window: top, left, height and width in the upright image, int32 `[4]`.
        size: (height, width) of the result, in pixels.
        reducing_gap: the decoder halves the window while it stays at least so many
            times larger than `size` in both directions, as in Pillow. The filter that
            shrinks the rest is antialiased.

    Returns:
        uint8 `[*size, 3]`, RGB.
    """
    functions = _crop_jpeg, _crop_turned_jpeg, _crop_other
    inputs = picture.encoded, window, size, reducing_gap
    return _by_kind(picture.kind, _IMAGE, functions, *inputs)


def whole(picture: Picture) -> tf.Tensor:
    """Returns the window that contains all of an image, for `crop_and_resize`."""
    return tf.concat([[0, 0], picture.size], axis=0)


def train_example(example, size, seed, config) -> dict:
    """Makes an example of classification: a random crop, changed at random.

    `size` is (height, width), `seed` two integers, which determine all that is random.
    Of the `TrainConfig`, `crop_scale`, `flip`, `rand_augment` and `random_erasing` are
    used.
    """
    picture = open_picture(read(example))
    height, width = tf.unstack(picture.size)
    seeds = tf.random.experimental.stateless_split(seed, 2)
    window = augment.random_crop_window(height, width, config.crop_scale, seeds[0])
    image = crop_and_resize(picture, window, size, TRAINING_GAP)
    if config.flip:
        image = augment.random_flip(image, seeds[1])
    # Seeds that do not change those of the crop and the flip.
    fold_in = tf.random.experimental.stateless_fold_in
    if config.rand_augment:
        image = rand_augment(image, config.rand_augment, fold_in(seed, 0))
    if config.random_erasing:
        image = augment.random_erasing(image, config.random_erasing, fold_in(seed, 1))
    return {"image": image, "label": example["label"]}


def center_crop(example: dict, size, crop_fraction: float) -> tf.Tensor:
    """Returns the central part of an example's image, uint8 `[*size, 3]`.

    The whole image is decoded, so that the pixels are those of
    `resize_and_center_crop`, and a truncated image is refused, as by `predict`.
    """
    image = decode(read(example))
    sides = tf.shape(image)[:2]
    window = preprocessing.center_window(sides, size, crop_fraction)
    top, left, height, width = tf.unstack(window)
    return resize(image[top : top + height, left : left + width], size)


def eval_example(example, size, crop_fraction: float) -> dict:
    """Makes an example of classification for evaluation: a central crop."""
    image = center_crop(example, size, crop_fraction)
    return {"image": image, "label": example["label"]}
