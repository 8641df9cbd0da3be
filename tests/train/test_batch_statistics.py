"""Batch normalization has statistics that hold, however few values a batch has."""

import dataclasses
import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging as absl_logging

from keras_mobilevit.backend import BatchNormalization
from train import checks, loop
from train.batch_statistics import MIN_VALUES, learn_over_steps, positions_by_layer
from train.config import make_config
from train.data.source import Source, indexed_source
from train.models import freeze_backbone
from train.recipes import RECIPES
from train.tasks.classification.task import CLASSIFICATION
from train.tasks.registry import TASKS, load_task

ONE_DEVICE = tf.distribute.get_strategy()
SOURCE = Source("some", ("a", "b"), {"train": 5000, "validation": 9}, None)


@functools.cache
def built(task: str, output_stride: int, auxiliary_weight: float, freeze: str):
    config = make_config(
        task=task,
        data="digits",
        model="mobilevit_xxs",
        output_stride=output_stride,
        auxiliary_weight=auxiliary_weight,
    )
    task = load_task(task)
    model = task.build_model(config, SOURCE)
    if freeze == "backbone":
        freeze_backbone(model, task.is_head)
    return model


def build_model(config) -> keras.Model:
    """Gives the XXS of a task as if new; the maps of XS and S have the same sizes.

    The arguments of `built` are all that distinguishes the networks of two recipes.
    """
    model = built(
        config.task, config.output_stride, config.auxiliary_weight, config.freeze
    )
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.learns_over_steps = False
    return model


def found_by(config) -> list[str]:
    shapes = checks.shared_shapes(config, ONE_DEVICE)
    return learn_over_steps(build_model(config), config, shapes)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [(32, 32), (80, 64)])
def test_maps_are_those_of_a_real_image(task, size):
    model = build_model(make_config(task=task, data="digits"))
    found = positions_by_layer(model, *size)
    maps = keras.Function(model.input, [layer.input for layer in found])
    shapes = [x.shape for x in maps(np.zeros((1, *size, 3), "float32"))]
    assert list(found.values()) == [height * width for _, height, width, _ in shapes]
    assert len(found) >= 32


@pytest.mark.parametrize(
    ("flags", "layers", "warning"),
    [
        # The pooled branch, of one image in each part of a batch.
        (
            {"task": "segmentation", "data": "digits", "accumulation_steps": 4},
            ["deeplab_pool_bn"],
            "a part of the batch has 1 image, and 1 layer .such as deeplab_pool_bn.",
        ),
        (
            {"task": "segmentation", "data": "voc:x", "output_stride": 8},
            ["deeplab_pool_bn"],
            "a batch has 1 image, and 1 layer .such as deeplab_pool_bn. would get 1 v",
        ),
        # The last maps of a detector are a cell or few.
        (
            {"task": "detection", "data": "voc:x", "sizes": (256,), "base_size": 256},
            ["ssd128_extra_depthwise_bn", "ssd256_extra_depthwise_bn"],
            "has 1 image, and .* layers .such as ssd256_extra_depthwise_bn. would",
        ),
        # The last stage of a classifier, at its smallest size.
        (
            {"data": "digits", "sizes": (32, 64), "base_size": 32},
            ["stage5_mv0_depthwise_bn"],
            "at 32x32 pixels a batch has 1 image, and .* layers .such as stage5_mv0",
        ),
    ],
    ids=["parts", "recipe", "boxes", "classes"],
)
def test_layers_of_few_values_learn_over_steps(flags, layers, warning, caplog):
    config = make_config(**flags, batch_size=flags.get("accumulation_steps", 1))
    with caplog.at_level("WARNING", absl_logging.get_absl_logger().name):
        found = found_by(config)
    assert set(layers) <= set(found)
    assert (
        re.search(warning, caplog.text)
        and "raise --batch_size or --sizes" in caplog.text
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_as_they_are_take_statistics_from_batches(recipe):
    assert not found_by(make_config(recipe))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_recipes_with_small_batches_leave_no_layer_to_few_values(recipe, batch_size):
    config = make_config(recipe, batch_size=batch_size)
    model = build_model(config)
    shapes = checks.shared_shapes(config, ONE_DEVICE)
    learn_over_steps(model, config, shapes)
    for shape in shapes:
        for layer, count in positions_by_layer(model, *shape[:2]).items():
            assert layer.learns_over_steps or shape.batch * count >= MIN_VALUES


def test_what_is_frozen_keeps_its_statistics():
    sizes = {"sizes": (32,), "base_size": 32, "batch_size": 1}
    assert not found_by(make_config("digits", **sizes, freeze="backbone"))


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 1, 1, 4), (1, 2, 1, 4), (3, 4)])
def test_statistics_over_steps_are_those_of_all_values(shape):
    rng = np.random.default_rng(0)
    scale, center = np.array([0.1, 1, 5, 20]), np.array([0, 3, -9, 100])
    layer = BatchNormalization(momentum=0.9)
    layer.learns_over_steps = True
    layer.build((None, *shape[1:]))

    @tf.function
    def step(x):  # in a graph, as in training, and many times as fast
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, x)

    for _ in range(1500):
        x = (rng.normal(size=shape) * scale + center).astype("float32")
        y, gradient = step(tf.constant(x))
    mean, variance = (np.array(w) for w in layer.non_trainable_weights)
    np.testing.assert_allclose(mean, center, atol=8)
    np.testing.assert_allclose(np.sqrt(variance), scale, rtol=0.35)
    # What a layer does in training is what the finished model does.
    np.testing.assert_allclose(y, layer(x, training=False), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        gradient, np.broadcast_to(1 / np.sqrt(variance + layer.epsilon), shape), 1e-4
    )


def test_with_many_values_statistics_over_steps_are_as_those_of_batches():
    rng = np.random.default_rng(0)
    layers = [BatchNormalization(momentum=0.9) for _ in range(2)]
    layers[0].learns_over_steps = True
    for _ in range(200):
        x = (rng.normal(size=(4, 8, 8, 3)) * [1, 2, 3] + [0, 5, -5]).astype("float32")
        over_steps, of_batch = (layer(x, training=True) for layer in layers)
    np.testing.assert_allclose(over_steps, of_batch, atol=0.3)
    for one, other in zip(*(layer.non_trainable_weights for layer in layers)):
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.02)


def build_pooled(config, source) -> keras.Model:
    """Builds a classifier whose one batch normalization sees one value an image."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 1)(inputs)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = BatchNormalization(momentum=0.9, name="pooled_bn")(x)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))


@pytest.mark.slow
def test_a_training_with_batches_of_one_image_knows_the_spread(tmp_path):
    """The variance was 0.9 to the power of 48, with the training loss as usual."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 1), np.uint8)
    images = [tf.io.encode_png(image).numpy() for image in pixels]
    column = {
        "encoded": images,
        "label": np.arange(48, dtype=np.int32) % 2,
        "id": [str(i) for i in range(48)],
    }
    columns = {"train": column, "validation": column}
    source = indexed_source("some", ("a", "b"), columns)
    config = make_config(
        data="digits",
        sizes=(32,),
        base_size=32,
        eval_size=32,
        batch_size=4,
        accumulation_steps=4,
        epochs=1,
        warmup_steps=1,
        ema_momentum=0.01,
    )
    task = dataclasses.replace(CLASSIFICATION, build_model=build_pooled)
    loop.train_and_evaluate(task, config, source, tmp_path)
    model = keras.models.load_model(tmp_path / "best.keras")
    assert np.array(model.get_layer("pooled_bn").moving_variance).min() > 0.5


@pytest.mark.parametrize(
    ("images", "flags", "message"),
    [
        (3, {"batch_size": 8}, "has 3 training images, but the smallest batch takes 4"),
        # It is found by halving: counting down took minutes.
        (900, {"batch_size": 10**6}, "Add images, or give --batch_size="),
        (0, {"batch_size": 8}, "has no train images"),
    ],
)
def test_an_empty_training_is_refused(images, flags, message, tmp_path):
    config = make_config("digits", sizes=(32, 48), base_size=32, epochs=3, **flags)
    source = dataclasses.replace(
        SOURCE, num_examples={"train": images, "validation": 2}
    )
    with pytest.raises(ValueError, match=message) as error:
        checks.check_training(config, source, ONE_DEVICE)
    if proposed := re.search(r"--batch_size=(\d+)", str(error.value)):
        config = dataclasses.replace(config, batch_size=int(proposed[1]))
        checks.check_training(config, source, ONE_DEVICE)


def test_no_validation_images_are_refused():
    source = dataclasses.replace(SOURCE, num_examples={"train": 99, "validation": 0})
    with pytest.raises(ValueError, match="some has no validation images"):
        checks.check_training(make_config("digits"), source, ONE_DEVICE)
