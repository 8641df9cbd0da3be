"""The layers of the MobileViT blocks, against NumPy and their own inverse."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mobilevit.deeplab import ResizeLike
from keras_mobilevit.layers import ContextPooling, Fold, ResizeToMultiple, Unfold
from keras_mobilevit.mobilevitv2_block import image_norm
from tests.helpers.references import run

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype("float32")


def interpolate(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Resizes an axis as PyTorch does with `align_corners=True`."""
    last = x.shape[axis] - 1
    positions = np.arange(size) * last / max(size - 1, 1)
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, last)
    fraction = np.expand_dims(positions - lower, tuple(range(1, x.ndim - axis)))
    x = x.astype("float64")
    return x.take(lower, axis) * (1 - fraction) + x.take(upper, axis) * fraction


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 4), (5, 7), (15, 13), (19, 20)])
def test_odd_maps_are_enlarged_between_their_corners(size: tuple):
    x = normal(2, *size, 3)
    height, width = (side + side % 2 for side in size)
    wanted = interpolate(interpolate(x, 1, height), 2, width)
    layer = ResizeToMultiple(2)
    found = run(layer, x)
    assert layer.compute_output_shape(x.shape) == found.shape == wanted.shape
    # TensorFlow computes the positions in float32.
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    corners = np.ix_(range(2), (0, -1), (0, -1), range(3))
    np.testing.assert_allclose(found[corners], x[corners], atol=1e-6)


def test_a_single_row_is_repeated():
    x = normal(1, 1, 6, 2)
    np.testing.assert_array_equal(run(ResizeToMultiple(2), x), x.repeat(2, axis=1))


def test_even_maps_stay_the_same_tensor():
    x = keras.ops.convert_to_tensor(normal(2, 6, 4, 3))
    assert ResizeToMultiple(2)(x) is x


@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 3)])
def test_sizes_known_only_at_run_time_give_the_same(size: tuple):
    tf = pytest.importorskip("tensorflow")
    x, layer = normal(2, *size, 3), ResizeToMultiple(2)
    graph = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 3))])
    np.testing.assert_allclose(run(graph, x), run(layer, x), atol=1e-6)
    assert layer.compute_output_shape((None, None, None, 3)) == (None, None, None, 3)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.booleans())
@settings(max_examples=25, deadline=None)
def test_fold_inverts_unfold(rows: int, columns: int, patch: int, per_image: bool):
    x = normal(2, rows * patch, columns * patch, 3)
    unfold = Unfold(patch, per_image=per_image)
    tokens = unfold(x)
    assert tuple(tokens.shape) == unfold.compute_output_shape(x.shape)
    np.testing.assert_array_equal(run(lambda x: Fold(patch)(tokens, x), x), x)


def test_tokens_of_an_image_stay_together():
    x = normal(2, 4, 6, 3)
    separate, together = run(Unfold(2), x), run(Unfold(2, per_image=True), x)
    assert separate.shape == (8, 6, 3)
    np.testing.assert_array_equal(together, separate.reshape(2, 4, 6, 3))
    # Row 1 and column 0 of the patch; patches in row-major order.
    np.testing.assert_array_equal(together[1, 2], x[1, 1::2, ::2].reshape(6, 3))


@pytest.mark.parametrize("patches", [1, 2, 35])
def test_context_is_an_average_weighted_by_softmax(patches: int):
    scores, tokens = 5 * normal(2, 4, patches, 1), normal(2, 4, patches, 6)
    weights = np.exp(scores.astype("float64"))
    weights /= weights.sum(axis=2, keepdims=True)
    wanted = (weights * tokens).sum(axis=2, keepdims=True)
    layer = ContextPooling()
    found = keras.ops.convert_to_numpy(layer(scores, tokens))  # without a warning
    assert layer.compute_output_shape(scores.shape, tokens.shape) == found.shape
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_context_of_large_scores_in_half_precision():
    """The softmax is in float32, and its weights add up to 1."""
    scores = 100 * normal(1, 4, 4096, 1)
    tokens = np.ones((1, 4, 4096, 2), np.float32)
    layer = ContextPooling(dtype="mixed_float16")
    assert layer(scores, tokens).dtype == "float16"
    found = run(lambda x: layer(x, tokens), scores)
    np.testing.assert_allclose(found, np.ones((1, 4, 1, 2)), atol=2e-3)


@pytest.mark.parametrize(
    ("policy", "precision"), [("mixed_float16", 2**-11), ("mixed_bfloat16", 2**-8)]
)
def test_the_norm_of_an_image_is_in_float32(policy: str, precision: float):
    """The sum of a million numbers overflows in float16; that of their squares too."""
    x = (1000 + 300 * normal(1, 4, 256, 1024)).astype("float16").astype("float32")
    wanted = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    if policy == "mixed_bfloat16":
        x = keras.ops.cast(x, "bfloat16")  # rounds the input before the norm
        values = keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))
        wanted = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        found = image_norm(x, "norm")
    finally:
        keras.config.set_dtype_policy(before)
    assert keras.backend.standardize_dtype(found.dtype) == policy.removeprefix("mixed_")
    found = keras.ops.convert_to_numpy(keras.ops.cast(found, "float32"))
    assert np.abs(found - wanted).max() <= 1.01 * precision * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("layer", "key"), [(Unfold(2), "per_image"), (ResizeLike(), "align_corners")]
)
def test_models_saved_before_the_second_family_load(layer, key: str):
    saved = keras.saving.serialize_keras_object(layer)
    assert saved["config"].pop(key) is False
    loaded = keras.saving.deserialize_keras_object(saved)
    assert loaded.get_config() == layer.get_config()


@pytest.mark.parametrize("layer_class", [Fold, ResizeToMultiple, Unfold])
def test_patches_have_at_least_one_pixel(layer_class):
    with pytest.raises(ValueError, match="`patch_size` must be.* Received: 0"):
        layer_class(0)
    assert layer_class.from_config(layer_class(3).get_config()).patch_size == 3
