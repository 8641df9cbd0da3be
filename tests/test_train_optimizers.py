"""Learning rates of head and backbone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from train.config import make_config
from train.optimizers import apply_gradients, make_optimizers


def is_head(path: str) -> bool:
    return path.startswith("predictions/")


def make_model() -> keras.Model:
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="body")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="predictions")(x))


def step(**overrides) -> dict[str, np.ndarray]:
    """Takes one step of gradients of 1; returns how far each variable moved."""
    config = make_config("digits", weight_decay=0.0, **overrides)
    model = make_model()
    before = {v.path: v.numpy() for v in model.trainable_variables}
    optimizers = make_optimizers(config, model, is_head)
    gradients = [tf.ones(v.shape) for v in model.trainable_variables]
    apply_gradients(optimizers, gradients, model.trainable_variables, tf.constant(0.01))
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


@pytest.mark.parametrize("frozen", ["body", "predictions"])
def test_a_share_that_is_frozen_has_no_optimizer(frozen):
    model = make_model()
    model.get_layer(frozen).trainable = False
    config = make_config("digits", head_lr_multiplier=10.0)
    (share,) = make_optimizers(config, model, is_head)
    assert share.multiplier == (10.0 if frozen == "body" else 1.0)
    assert len(share.variables) == 2
