"""EXIF orientation in TensorFlow: turns the stored pixels of a JPEG upright.

TensorFlow's decoders ignore the orientation, and cameras rely on it. Its values, 1 to
8, and its position in a file: Exif 2.32, sections 4.5.4, 4.6.4 and 4.7.2,
https://www.cipa.jp/e/std.
"""

import tensorflow as tf

UPRIGHT = 1
_SWAPS_SIDES = (5, 6, 7, 8)
# After the sides are swapped: which orientations flip the rows, and the columns.
_FLIPS = ((3, 4, 7, 8), (2, 3, 6, 7))
_TAG, _LONG = 0x0112, 4
# The entry of an orientation other than 1, in either byte order, after the marker of
# EXIF.
_TURNED = (
    r"(?s)\C*?Exif\x00\x00\C*"
    r"(\x12\x01[\x03\x04]\x00\x01\x00\x00\x00[\x02-\x08]"
    r"|\x01\x12\x00[\x03\x04]\x00\x00\x00\x01(\x00\x00)?\x00[\x02-\x08])\C*"
)
_BEFORE_TIFF = r"(?s)^\C*?Exif\x00\x00"
# In nearly all photos that have EXIF data, these are the first segment, or the second
# after the 18 bytes of JFIF. Elsewhere color profiles may precede them.
_IS_FIRST = r"(?s)\C{6}(\C{18})?Exif\x00\x00\C*"
_SEGMENT, _SEARCHED = 2**16, 2**20  # the most bytes of a segment, and of a search


def _head(encoded) -> tf.Tensor:
    """Returns the part of a JPEG that is searched for EXIF data."""
    start = tf.strings.substr(encoded, 0, 32)
    # Searching a megabyte would take a tenth of the decoding of 12 megapixels.
    is_first = tf.strings.regex_full_match(start, _IS_FIRST)
    searched = tf.where(is_first, _SEGMENT + 32, _SEARCHED)
    return tf.strings.substr(encoded, 0, searched)


def may_turn(encoded) -> tf.Tensor:
    """Tells cheaply whether a JPEG may have another orientation than upright.

    For nearly all photos the answer is no, and the directory need not be parsed.
    """
    return tf.strings.regex_full_match(_head(encoded), _TURNED)


def jpeg_orientation(encoded) -> tf.Tensor:
    """Returns the EXIF orientation, 1 to 8, of a JPEG for which `may_turn` is true.

    It is 1 (upright) if the directory is damaged or has no orientation. TensorFlow
    spends time on every operation of a branch even if it is not taken. To need few
    operations, this reads the fields of TIFF as 16-bit numbers.
    """
    tiff = tf.strings.regex_replace(
        _head(encoded), _BEFORE_TIFF, "", replace_global=False
    )
    is_little = tf.strings.substr(tiff, 0, 1) == b"I"
    tiff = tf.strings.substr(tiff, 0, 2**16)
    tiff = tf.strings.join([tiff, b"\0" * 8])  # missing bytes read as zeros
    tiff = tf.strings.substr(tiff, 0, tf.strings.length(tiff) // 2 * 2)
    little = tf.io.decode_raw(tiff, tf.uint16, little_endian=True)
    big = tf.io.decode_raw(tiff, tf.uint16, little_endian=False)
    pairs = tf.cast(tf.where(is_little, little, big), tf.int32)
    # Offsets within a segment fit in 16 bits.
    directory = tf.where(is_little, pairs[2], pairs[3]) // 2
    directory = tf.minimum(directory, tf.size(pairs) - 1)
    fields = pairs[directory + 1 : directory + 1 + 6 * pairs[directory]]
    entries = tf.reshape(fields[: tf.size(fields) // 6 * 6], [-1, 6])
    is_high_first = (entries[:, 1] == _LONG) & ~is_little
    values = tf.where(is_high_first, entries[:, 5], entries[:, 4])
    values = tf.boolean_mask(values, entries[:, 0] == _TAG)
    value = tf.concat([values, [UPRIGHT]], axis=0)[0]
    return tf.where((value >= 1) & (value <= 8), value, UPRIGHT)


def _is_in(value, values: tuple):
    """Tells for each row of `values` whether it contains `value`."""
    return tf.reduce_any(value == tf.constant(values), axis=-1)


def turn(image, orientation) -> tf.Tensor:
    """Turns stored pixels `[height, width, channels]` upright."""
    sides = tf.where(_is_in(orientation, _SWAPS_SIDES), [1, 0, 2], [0, 1, 2])
    flipped = tf.boolean_mask([0, 1], _is_in(orientation, _FLIPS))
    return tf.reverse(tf.transpose(image, sides), flipped)


def upright_size(size, orientation) -> tf.Tensor:
    """Returns the (height, width) that `turn` gives stored pixels of such a size."""
    return tf.where(_is_in(orientation, _SWAPS_SIDES), size[::-1], size)


def stored_window(window, size, orientation) -> tf.Tensor:
    """Finds a window of the upright image among the stored pixels.

    Windows are int32 `[4]`: top, left, height, width. `size` is the (height, width) of
    the upright image.
    """
    corner, sides = window[:2], window[2:]
    is_flipped = _is_in(orientation, _FLIPS)
    corner = tf.where(is_flipped, size - corner - sides, corner)
    swapped = tf.concat([corner[::-1], sides[::-1]], axis=0)
    stored = tf.concat([corner, sides], axis=0)
    return tf.where(_is_in(orientation, _SWAPS_SIDES), swapped, stored)
