"""TensorFlow's faster kernels for training give Keras's numbers and gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mobilevit import backend
from keras_mobilevit.blocks import conv_bn_act
from keras_mobilevit.layers import DotProductAttention

RNG = np.random.default_rng(0)


def normal(*shape: int) -> tf.Tensor:
    return tf.constant(RNG.normal(0, 2, shape), tf.float32)


def gradients(function, *inputs):
    """Returns the output of a function and the gradients of its inputs."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = function(*inputs)
        loss = tf.reduce_sum(output * weight(output))
    return [output, *tape.gradient(loss, inputs)]


def weight(output) -> tf.Tensor:
    places = tf.range(tf.size(output), dtype=tf.float32)
    return tf.reshape(tf.cos(places), tf.shape(output))


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, float(tf.reduce_max(tf.abs(other))))
        np.testing.assert_allclose(one, other, atol=2e-6 * scale)


def test_swish():
    x = tf.concat([normal(3, 5, 5, 8), 1e3 * normal(3, 5, 5, 8)], axis=0)
    layer = backend.Activation("silu")
    found = gradients(lambda x: layer(x, training=True), x)
    assert_close(found, gradients(keras.activations.silu, x))


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_attention(tokens):
    inputs = [normal(3, tokens, 12) for _ in range(3)]
    layer = DotProductAttention(4)
    found = gradients(lambda *x: layer(*x, training=True), *inputs)
    assert_close(found, gradients(lambda *x: layer(*x, training=False), *inputs))


@pytest.mark.parametrize("dilation", [1, 2, (6, 3), 18])
@pytest.mark.parametrize("kernel_size", [3, (1, 5)])
def test_dilated_convolution(dilation, kernel_size):
    layer = backend.DilatedConv2D(
        4, kernel_size, padding="same", dilation_rate=dilation, use_bias=False
    )
    layer.build((None, None, None, 3))
    plain = keras.layers.Conv2D.from_config(layer.get_config())
    plain.build((None, None, None, 3))
    plain.set_weights(layer.get_weights())
    x = normal(2, 9, 14, 3)

    def with_kernel(layer):
        with tf.GradientTape() as tape:
            output = layer(x, training=True)
            loss = tf.reduce_sum(output * weight(output))
        return tape.gradient(loss, layer.trainable_weights)

    found = gradients(layer, x) + with_kernel(layer)
    assert_close(found, gradients(plain, x) + with_kernel(plain))


def test_other_dilated_convolutions_are_kerass_own():
    x = normal(2, 9, 14, 4)
    for options in ({"padding": "valid"}, {"padding": "same", "groups": 2}):
        layer = backend.DilatedConv2D(4, 3, dilation_rate=2, **options)
        plain = keras.layers.Conv2D.from_config(layer.get_config())
        layer.build(x.shape)
        plain.build(x.shape)
        plain.set_weights(layer.get_weights())
        np.testing.assert_array_equal(layer(x), plain(x))


def test_another_activation_is_kerass_own():
    x = normal(2, 3)
    layer = backend.Activation("relu")
    np.testing.assert_array_equal(layer(x, training=True), tf.nn.relu(x))


def test_a_saved_model_has_the_layers(tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, conv_bn_act(inputs, 4, 3, "block"))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    layer = loaded.get_layer("block_act")
    assert type(layer) is backend.Activation
    assert layer.activation is keras.activations.silu
    x = normal(2, 8, 8, 3)
    np.testing.assert_array_equal(loaded(x), model(x))
