"""Resizing, and decoding of photos that are much larger than needed."""

import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from train.data import images
from train.data.resize import resize

sides = st.integers(1, 90)


def noise(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(0, 256, (*shape, 3), np.uint8)


@settings(deadline=None)
@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_pixels_are_those_of_tensorflow(before, after):
    image = noise(*before)
    wanted = tf.round(tf.image.resize(image, after, antialias=True))
    np.testing.assert_array_equal(resize(image, after), wanted)


def test_a_window_may_begin_and_end_within_pixels():
    image, (top, left, height, width) = noise(60, 80), (3.25, 10.5, 40.5, 61.25)
    found = resize(image, (20, 25), tf.constant([top, left, height, width]))
    box = (left, top, left + width, top + height)
    wanted = Image.fromarray(image).resize((25, 20), Image.Resampling.BILINEAR, box=box)
    difference = np.abs(found.numpy().astype(int) - np.asarray(wanted))
    assert difference.max() <= 1


def large_photo(orientation: int = 1) -> tuple[np.ndarray, bytes]:
    """Returns the upright pixels of a smooth picture, and its JPEG file."""
    height, width = 600, 800
    coarse = noise(height // 50, width // 50)
    upright = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    turn = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
    }[orientation]
    data = upright.getexif()
    data[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    stored = upright if turn is None else upright.transpose(turn)
    stored.save(file, "JPEG", quality=98, subsampling=0, exif=data)
    return np.asarray(upright), file.getvalue()


def crop(content: bytes, window, size, gap: float) -> np.ndarray:
    return images.crop_and_resize(images.open_picture(content), window, size, gap)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6])
@pytest.mark.parametrize("gap", [images.TRAINING_GAP, images.NO_REDUCING])
def test_a_smaller_decoded_photo_gives_the_same_picture(orientation, gap):
    upright, content = large_photo(orientation)
    top, left, height, width = window = (33, 71, 517, 653)  # no multiples of 8
    size = (48, 64)
    wanted = tf.image.resize(
        upright[top : top + height, left : left + width], size, antialias=True
    )
    for function in (crop, tf.function(crop, autograph=False)):
        found = tf.cast(function(content, tf.constant(window), size, gap), tf.float32)
        assert np.abs(found - wanted).mean() < 1


@pytest.mark.parametrize(
    ("side", "gap", "ratio"),
    [
        (512, images.TRAINING_GAP, 1),
        (206, images.TRAINING_GAP, 1),
        (204, images.TRAINING_GAP, 2),
        (102, images.TRAINING_GAP, 4),
        (20, images.TRAINING_GAP, 8),
        (20, 3.0, 8),
        (22, 3.0, 4),
        (20, images.NO_REDUCING, 1),
    ],
)
def test_the_decoder_leaves_the_gap_to_the_filter(side, gap, ratio, monkeypatch):
    _, content = large_photo()
    decode_part, ratios = images._decode_part, []
    monkeypatch.setattr(
        images,
        "_decode_part",
        lambda *inputs: ratios.append(inputs[-1]) or decode_part(*inputs),
    )
    found = crop(content, tf.constant([0, 0, 512, 512]), (side, side), gap)
    assert found.shape == (side, side, 3)
    assert ratios == [ratio]
