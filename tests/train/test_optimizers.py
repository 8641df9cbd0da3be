"""Learning rates of head and backbone, and what decays."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from train.config import make_config
from train.optimizers import make_optimizer


def is_head(path: str) -> bool:
    return path.startswith("predictions/")


def make_model() -> keras.Model:
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="body")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="predictions")(x))


def step(**overrides) -> dict[str, np.ndarray]:
    """Takes one step of gradients of 1; returns how far each variable moved."""
    config = make_config("digits", **{"weight_decay": 0.0, **overrides})
    model = make_model()
    before = {v.path: v.numpy() for v in model.trainable_variables}
    optimizer = make_optimizer(config, model, is_head)
    optimizer.learning_rate.assign(0.01)
    variables = model.trainable_variables
    scale = optimizer.scale_loss(1.0)
    optimizer.apply([scale * tf.ones(v.shape) for v in variables], variables)
    return {v.path: before[v.path] - v.numpy() for v in model.trainable_variables}


def test_one_learning_rate():
    for path, moved in step().items():
        np.testing.assert_allclose(moved, 0.01, rtol=1e-3, err_msg=path)


def test_the_heads_own_learning_rate():
    moved = step(head_lr_multiplier=10.0)
    assert len(moved) == 4
    for path, value in moved.items():
        expected = 0.1 if is_head(path) else 0.01
        np.testing.assert_allclose(value, expected, rtol=1e-3, err_msg=path)


def test_decay_is_of_every_variable_and_follows_the_learning_rate():
    """A decay of 1 takes from each weight its part, before the gradient's 0.01."""
    model = make_model()
    for variable in model.trainable_variables:
        variable.assign(tf.ones(variable.shape))
    config = make_config("digits", weight_decay=1.0, head_lr_multiplier=10.0)
    optimizer = make_optimizer(config, model, is_head)
    optimizer.learning_rate.assign(0.01)
    variables = model.trainable_variables
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    for variable in variables:
        rate = 0.1 if is_head(variable.path) else 0.01
        np.testing.assert_allclose(variable, 1 - 2 * rate, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_decay_of_kernels_alone(precision):
    config = make_config(
        "digits", weight_decay=1.0, decay_norms=False, precision=precision
    )
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dense(2, name="predictions")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(tf.ones(variable.shape))
    optimizer = make_optimizer(config, model, is_head)
    optimizer.learning_rate.assign(0.01)
    optimizer.apply([tf.zeros(v.shape) for v in variables], variables)
    decayed = {v.path for v in variables if np.all(v.numpy() < 1)}
    assert decayed == {"depthwise/kernel", "predictions/kernel"}
    assert len(variables) == 6
    for variable in variables:
        expected = 0.99 if variable.path in decayed else 1.0
        np.testing.assert_allclose(variable, expected, rtol=1e-6)


@pytest.mark.parametrize("frozen", ["body", "predictions"])
def test_what_is_frozen_is_not_optimized(frozen):
    model = make_model()
    model.get_layer(frozen).trainable = False
    config = make_config("digits", head_lr_multiplier=10.0)
    optimizer = make_optimizer(config, model, is_head)
    kinds = ("momentum", "velocity")
    paths = [v.path for v in optimizer.variables if v.path.endswith(kinds)]
    assert len(paths) == 4 and not any(frozen in path for path in paths)


def test_float16_leaves_out_a_step_that_overflows_and_halves_the_scale():
    model = make_model()
    config = make_config("digits", precision="mixed_float16")
    optimizer = make_optimizer(config, model, is_head)
    variables = model.trainable_variables
    before, scale = model.get_weights(), float(optimizer.scale_loss(1.0))
    assert scale > 1
    optimizer.apply([tf.fill(v.shape, float("inf")) for v in variables], variables)
    for one, other in zip(before, model.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert float(optimizer.scale_loss(1.0)) == scale / 2
    assert step(precision="mixed_float16").keys() == {v.path for v in variables}
