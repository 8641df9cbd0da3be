"""RandAugment: pixels of Pillow, and a pure function of a seed."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from train.data import rand_augment as augment
from train.data.rand_augment import OPERATIONS, rand_augment

NAMES = [operation.__name__ for operation in OPERATIONS]


@pytest.fixture(scope="module")
def image():
    """Smooth, colorful and with edges, 90 pixels high and 120 wide."""
    row, column = np.mgrid[0:90, 0:120] / 20.0
    waves = np.sin(row), np.cos(column), np.sin(row + column)
    pixels = np.uint8(120 + 100 * np.stack(waves, axis=-1))
    pixels[30:50, 40:80] = (250, 30, 90)
    return pixels


def pillow(name: str, image: np.ndarray, sign: float) -> np.ndarray:
    """Returns what torchvision's RandAugment makes with Pillow."""
    picture, factor = Image.fromarray(image), 1 + sign * 0.27
    width, height = picture.size
    x, y = (sign * int(0.3 * 150 / 331 * side) for side in picture.size)

    def affine(*matrix) -> Image.Image:
        method, resampling = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        return picture.transform((width, height), method, matrix, resampling)

    makers = {
        "identity": lambda: picture,
        "shear_x": lambda: affine(1, sign * 0.09, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, sign * 0.09, 1, 0),
        "translate_x": lambda: affine(1, 0, x, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, y),
        "rotate": lambda: picture.rotate(-sign * 9, Image.Resampling.BILINEAR),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
        "color": lambda: ImageEnhance.Color(picture).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        "posterize": lambda: ImageOps.posterize(picture, 7),
        "solarize": lambda: ImageOps.solarize(picture, 178.5),
        "auto_contrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
    }
    assert list(makers) == NAMES
    return np.asarray(makers[name]())


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_pixels_are_those_of_pillow(operation, sign, image):
    found = operation(tf.constant(image), tf.constant(sign)).numpy()
    expected = pillow(operation.__name__, image, sign)
    assert found.dtype == np.uint8 and found.shape == image.shape
    difference = np.abs(found.astype(int) - expected)
    # Pillow begins a sheared or rotated image sharply at its edge.
    is_turned = operation.__name__ in ("shear_x", "shear_y", "rotate")
    allowed = 0.02 if is_turned else 0.0
    assert np.mean(difference > 1) <= allowed
    assert np.mean(difference) < 1.0
    if operation is not augment.identity:
        assert np.any(found != image)


@pytest.mark.parametrize("name", ["auto_contrast", "equalize"])
@pytest.mark.parametrize("gray", [0, 77, 255])
def test_an_image_of_one_color_stays_as_it_is(name, gray):
    flat = np.full((6, 7, 3), gray, np.uint8)
    found = getattr(augment, name)(tf.constant(flat), tf.constant(1.0))
    np.testing.assert_array_equal(found, flat)


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
@pytest.mark.parametrize("shape", [(2, 2, 3), (3, 5, 3)])
def test_tiny_images(operation, shape):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert operation(tf.constant(image), tf.constant(1.0)).shape == shape


@pytest.fixture(scope="module")
def augmented(image):
    """Many images of a pipeline, from seeds (3, 0), (3, 1) and so on."""
    dataset = tf.data.Dataset.range(300, output_type=tf.int32)
    augment_one = functools.partial(rand_augment, image, 2)
    dataset = dataset.map(
        lambda i: augment_one(tf.stack([3, i])), num_parallel_calls=tf.data.AUTOTUNE
    )
    return list(dataset.as_numpy_iterator())


def test_it_is_a_function_of_the_seed(augmented, image):
    for i in range(12):
        np.testing.assert_array_equal(rand_augment(image, 2, [3, i]), augmented[i])
    # 14 operations, of which 9 have two directions, twice.
    assert 100 < len({one.tobytes() for one in augmented}) <= (5 + 2 * 9) ** 2


def test_each_operation_is_drawn_equally_often(image):
    image = image[::2, ::2]
    names = {
        operation(tf.constant(image), tf.constant(sign)).numpy().tobytes(): (name, sign)
        for name, operation in zip(NAMES, OPERATIONS)
        for sign in (-1.0, 1.0)
    }
    assert len(names) == 5 + 2 * 9  # 5 operations have no direction
    seeds = tf.data.Dataset.range(1400, output_type=tf.int32)
    found = seeds.map(lambda i: rand_augment(image, 1, tf.stack([9, i])))
    drawn = [names[one.tobytes()] for one in found.as_numpy_iterator()]
    for name in NAMES:
        directions = [sign for other, sign in drawn if other == name]
        assert 60 < len(directions) < 145, name  # 100, 4.2 standard deviations
        if name in ("shear_x", "rotate", "color"):
            assert 0.25 < np.mean(np.array(directions) > 0) < 0.75
