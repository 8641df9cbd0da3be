"""Random crops, flips, colors and erasing, as functions of a seed."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.augment import (
    inside,
    random_colors,
    random_crop_window,
    random_erasing,
    random_flip,
)

sides = st.integers(1, 2000)
seeds = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
scales = st.floats(1 / 64, 1.0, width=32)
draw = tf.function(
    random_crop_window,
    input_signature=[
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.float32),
        tf.TensorSpec([2], tf.int32),
    ],
)


def assert_inside(window, height, width):
    top, left, window_height, window_width = window.numpy()
    assert window_height >= 1 and window_width >= 1
    assert top >= 0 and top + window_height <= height
    assert left >= 0 and left + window_width <= width


@settings(deadline=None, max_examples=500)
@given(sides, sides, scales, seeds)
def test_window_lies_in_the_image(height, width, scale, seed):
    assert_inside(draw(height, width, scale, seed), height, width)


@pytest.mark.parametrize("scale", [0.08, 1.0])
@pytest.mark.parametrize(
    "height, width", [(1, 1), (1, 2), (1, 2000), (2000, 1), (2, 3), (2000, 2000)]
)
def test_window_lies_in_images_of_extreme_size(height, width, scale):
    for i in range(50):
        assert_inside(draw(height, width, scale, [7, i]), height, width)


@settings(deadline=None, max_examples=200)
@given(st.integers(300, 2000), st.floats(0.76, 1.32), st.floats(0.05, 0.7), seeds)
def test_area_and_ratio_are_in_range(height, ratio, scale, seed):
    width = round(height * ratio)
    window_height, window_width = draw(height, width, scale, seed).numpy()[2:]
    # A side is off by half a pixel at most, of 50 or more.
    area = window_height * window_width / (height * width)
    assert scale * 0.97 <= area <= 1.0
    assert 3 / 4 * 0.97 <= window_width / window_height <= 4 / 3 * 1.03


@pytest.mark.parametrize("height, width", [(30, 3000), (3000, 30)])
def test_a_very_long_image_yields_its_center(height, width):
    top, left, *window = draw(height, width, 1.0, [0, 0]).numpy()
    assert sorted(window) == [30, 40]
    assert max(top, left) == (3000 - 40) // 2 and min(top, left) == 0


@settings(deadline=None, max_examples=50)
@given(sides, sides, scales, seeds)
def test_window_is_a_function_of_the_seed(height, width, scale, seed):
    window = random_crop_window(height, width, scale, seed).numpy()
    again = random_crop_window(height, width, scale, seed).numpy()
    np.testing.assert_array_equal(window, again)


def test_seeds_draw_different_windows():
    windows = {tuple(draw(500, 400, 0.08, [0, i]).numpy()) for i in range(100)}
    assert len(windows) > 95


def test_eager_is_as_in_a_pipeline():
    def augment(i):
        image = tf.reshape(tf.range(60), [4, 5, 3])
        window = random_crop_window(333, 777, 0.08, [5, i])
        return window, random_flip(image, [5, i])

    dataset = tf.data.Dataset.range(40, output_type=tf.int32)
    dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    for i, piped in enumerate(dataset):
        for got, expected in zip(piped, augment(tf.constant(i))):
            np.testing.assert_array_equal(got, expected)


def test_half_of_the_images_are_mirrored():
    image = np.arange(24).reshape(2, 4, 3)
    flip = tf.function(lambda i: random_flip(image, tf.stack([3, i])))
    images = [flip(tf.constant(i)).numpy() for i in range(1000)]
    mirrored = [np.array_equal(i, image[:, ::-1]) for i in images]
    kept = [np.array_equal(i, image) for i in images]
    assert all(m != k for m, k in zip(mirrored, kept))
    assert 430 < sum(mirrored) < 570  # 4.4 standard deviations


def test_colors_change_and_repeat():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    one = [random_colors(image, (1, i)).numpy() for i in range(12)]
    two = [random_colors(image, (1, i)).numpy() for i in range(12)]
    assert all((a == b).all() for a, b in zip(one, two))
    assert 6 <= len({a.tobytes() for a in one}) <= 12
    assert one[0].dtype == np.uint8


def test_the_values_inside_a_rectangle():
    found = inside((4, 5, 3), (1.0, -2.0), (3.0, 2.0)).numpy()
    expected = np.zeros((4, 5, 3), bool)
    expected[1:3, :2] = True
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def erased():
    """Which pixels of a thousand images are erased with probability 1/4."""
    image = np.full((60, 80, 3), 7, np.uint8)

    def erase(i) -> tf.Tensor:
        return random_erasing(image, 0.25, tf.stack([5, i]))

    dataset = tf.data.Dataset.range(1000, output_type=tf.int32)
    images = np.stack(list(dataset.map(erase).as_numpy_iterator()))
    np.testing.assert_array_equal(images[3], erase(tf.constant(3)))
    assert set(np.unique(images)) == {0, 7} and images.dtype == np.uint8
    assert np.all(images == images[..., :1])
    return images[..., 0] == 0


def test_a_quarter_of_the_images_is_erased(erased):
    count = erased.any(axis=(1, 2)).sum()
    assert 190 < count < 310  # 4.4 standard deviations


def test_erased_parts_are_rectangles_of_the_published_sizes(erased):
    areas, ratios = [], []
    for mask in erased[erased.any(axis=(1, 2))]:
        rows, columns = (
            np.flatnonzero(mask.any(axis=1)),
            np.flatnonzero(mask.any(axis=0)),
        )
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width
        areas.append(mask.mean())
        ratios.append(height / width)
    # A side is off by half a pixel, of five or more.
    assert 0.02 * 0.85 < min(areas) < 0.05 and 0.28 < max(areas) < 0.33 * 1.1
    assert 0.3 * 0.85 < min(ratios) < 0.5 and 2.0 < max(ratios) < 3.3 * 1.15
    assert 0.14 < np.mean(areas) < 0.19  # 0.175, less what does not fit
    assert erased.any(axis=0).mean() > 0.98  # nearly everywhere


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_erasing_never_and_always(probability):
    image = np.full((32, 32, 3), 7, np.uint8)
    erase = tf.function(lambda i: random_erasing(image, probability, tf.stack([5, i])))
    erased = [(erase(tf.constant(i)).numpy() == 0).any() for i in range(50)]
    assert np.mean(erased) == probability


def test_an_image_that_is_too_small_stays_as_it_is():
    image = np.full((1, 1, 3), 7, np.uint8)
    for i in range(20):
        np.testing.assert_array_equal(random_erasing(image, 1.0, [0, i]), image)
