"""One step: in parts, in fewer bits, under XLA, for several batches a call."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mobilevit import anchor_boxes
from keras_mobilevit.layers import DotProductAttention
from tests.helpers.networks import build_detector, build_network, build_segmenter
from train import loop
from train.config import make_config
from train.data import pipeline as data
from train.data import sampler
from train.data.sampler import BatchShape
from train.data.source import Source
from train.models import build_state
from train.step import _clip, as_numbers, make_train_step
from train.tasks.classification.task import CLASSIFICATION
from train.tasks.detection.task import DETECTION
from train.tasks.registry import TASKS, load_task
from train.tasks.segmentation.task import SEGMENTATION

SIZES = (32, 48)
CONFIG = make_config("digits", sizes=SIZES, base_size=32, batch_size=8)
SOURCE = Source("random", tuple("0123456789"), {"train": 40, "validation": 40}, None)
SMALL = dataclasses.replace(
    CLASSIFICATION, build_model=functools.partial(build_network, dropout=0.0)
)
GO_ON = tf.constant(0.0)


def build_without_norm(config, source):
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, activation="silu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10, name="predictions"),
    ]
    return keras.Sequential([keras.Input((None, None, 3)), *layers])


LINEAR = dataclasses.replace(CLASSIFICATION, build_model=build_without_norm)


def random_batch(shape: BatchShape, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (shape.batch, shape.height, shape.width, 3), np.uint8)
    mask = rng.integers(0, 10, images.shape[:3])
    mask[rng.uniform(size=mask.shape) < 0.1] = 255  # which does not count
    corners = np.sort(rng.uniform(0, 1, (shape.batch, 5, 2, 2)), axis=2)
    return {
        "image": tf.constant(images),
        "label": tf.constant(rng.integers(0, 10, shape.batch, np.int32)),
        "boxes": tf.constant(corners.reshape(-1, 5, 4), tf.float32),
        "classes": tf.constant(rng.integers(-1, 10, (shape.batch, 5)), tf.int32),
        "mask": tf.constant(mask, tf.int32),
        "weight": tf.constant(np.arange(shape.batch) > 0, tf.float32),  # one is filling
    }


def make_step(task=SMALL, xla=None, **changes):
    """Returns a step, the model and its moving average."""
    config = dataclasses.replace(CONFIG, **changes)
    state = build_state(task, config, SOURCE, is_fresh=True)
    strategy = tf.distribute.get_strategy()
    step = make_train_step(task, config, state, strategy, jit_compile=xla)
    return step, state.model, state.ema_model


def run(step, *batches) -> dict:
    count = len(batches)
    rates, ema_momentums = tf.fill([count], 1e-3), tf.fill([count], 0.9)
    return as_numbers(step(batches, rates, ema_momentums, GO_ON))


def assert_same_weights(one, other, rtol=1e-5):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


def test_a_batch_in_parts_gives_the_same_step():
    batch = random_batch(BatchShape(32, 32, 8))
    whole, model, average = make_step(LINEAR)
    parts, model_of_parts, average_of_parts = make_step(LINEAR, accumulation_steps=4)
    for _ in range(3):
        one, other = run(whole, batch), run(parts, batch)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert one["count"] == other["count"] == 7
    assert_same_weights(model, model_of_parts)
    assert_same_weights(average, average_of_parts)


def test_several_steps_a_call_give_the_same_weights():
    batches = [random_batch(BatchShape(32, 32, 8), seed) for seed in range(3)]
    single, model, _ = make_step()
    together, model_of_calls, _ = make_step()
    losses = [run(single, batch)["loss"] for batch in batches]
    assert run(together, *batches)["loss"] == pytest.approx(sum(losses), rel=1e-5)
    assert_same_weights(model, model_of_calls, rtol=1e-4)


def test_xla_gives_the_same_step_and_compiles_once_for_each_size():
    shapes = sampler.batch_shapes(SIZES, 32, 8)
    plain, model, _ = make_step()
    compiled, model_of_xla, _ = make_step(xla=True)
    for _ in range(2):
        for shape in shapes:
            batch = random_batch(shape)
            loss = run(plain, batch)["loss"]
            assert run(compiled, batch)["loss"] == pytest.approx(loss, rel=1e-4)
    assert compiled.experimental_get_tracing_count() == len(SIZES)
    assert_same_weights(model, model_of_xla, rtol=1e-3)


def weights_after(optimizer, batches, scaled=False, **changes) -> np.ndarray:
    """Trains with another optimizer than AdamW, which undoes most of a clip."""
    config = dataclasses.replace(CONFIG, **changes)
    state = build_state(LINEAR, config, SOURCE, is_fresh=True)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(state.model.trainable_variables)
    state = dataclasses.replace(state, optimizer=optimizer)
    step = make_train_step(LINEAR, config, state, tf.distribute.get_strategy())
    for batch in batches:
        assert not run(step, batch)["not_finite"]
    return np.concatenate([value.ravel() for value in state.model.get_weights()])


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("clip", [0.05, pytest.param(100.0, marks=pytest.mark.slow)])
def test_gradients_are_clipped_as_by_keras(clip, precision):
    """Those of the whole batch, not of its parts, and without the scale of float16."""
    batches = [random_batch(BatchShape(32, 32, 8), seed) for seed in range(2)]
    scaled = precision == "mixed_float16"

    def train(keras_clip=None, **changes) -> np.ndarray:
        optimizer = keras.optimizers.SGD(1e-3, global_clipnorm=keras_clip)
        settings = {"precision": precision, "accumulation_steps": 2, **changes}
        return weights_after(optimizer, batches, scaled, **settings)

    found, expected, free = train(gradient_clip=clip), train(clip), train()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    moved = np.linalg.norm(found - train(gradient_clip=1e-9))
    if clip == 0.05:
        assert moved == pytest.approx(2 * 1e-3 * 0.05, rel=0.3)  # two steps
        assert np.linalg.norm(free - found) > moved
    else:
        np.testing.assert_array_equal(found, free)


def test_clipping_hides_no_gradient_that_is_not_finite():
    gradients = [tf.constant([3.0, np.inf]), tf.constant([4.0])]
    norm = tf.linalg.global_norm(gradients)
    clipped = _clip(gradients, norm, 1.0)
    assert not np.isfinite(tf.linalg.global_norm(clipped))
    clipped = _clip([tf.constant([3.0]), tf.constant([4.0])], tf.constant(5.0), 1.0)
    np.testing.assert_allclose(tf.concat(clipped, axis=0), [0.6, 0.8], rtol=1e-6)


def build_plain_detector(config, source):
    """Builds one layer that returns as much as a detector of images of 48x64."""
    anchors, classes = len(anchor_boxes(64, 48)), len(source.class_names) + 1
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {
        name: keras.layers.Reshape((anchors, size))(
            keras.layers.Dense(anchors * size, name=name)(x)
        )
        for name, size in (("offsets", 4), ("logits", classes))
    }
    return keras.Model(inputs, outputs)


# XLA takes many seconds for a detector's layers, and few for its loss.
@pytest.mark.parametrize(
    ("task", "build"),
    [
        (DETECTION, build_plain_detector),
        pytest.param(DETECTION, build_detector, marks=pytest.mark.slow),
        (SEGMENTATION, build_segmenter),
    ],
    ids=["boxes", "boxes of maps", "masks"],
)
def test_the_loss_is_the_same_under_xla(task, build):
    task = dataclasses.replace(task, build_model=build)
    plain, _, _ = make_step(task)
    compiled, _, _ = make_step(task, xla=True)
    batch = random_batch(BatchShape(64, 48, 4))
    for _ in range(2):
        loss = run(plain, batch)["loss"]
        assert run(compiled, batch)["loss"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_step_of_each_task_compiles_for_each_size(name):
    task = load_task(name)
    sizes = (64, 80, 96)  # the last map of 80 is odd: it is resized
    step, _, average = make_step(task, xla=True, model="mobilevit_xxs", sizes=sizes)
    before = average.get_weights()
    for _ in range(2):
        for shape in sampler.batch_shapes(sizes, 64, 4):
            sums = run(step, random_batch(shape))
            assert np.isfinite(sums["loss"]) and not sums["not_finite"]
    assert step.experimental_get_tracing_count() == len(sizes)
    assert any(np.any(a != b) for a, b in zip(before, average.get_weights()))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_close_and_averages_in_float32(precision):
    batch = random_batch(BatchShape(32, 32, 8))
    full, model, _ = make_step()
    mixed, mixed_model, average = make_step(precision=precision)
    for _ in range(3):
        loss = run(full, batch)["loss"]
        assert run(mixed, batch)["loss"] == pytest.approx(loss, rel=0.03)
    assert {layer.compute_dtype for layer in average.layers} == {"float32"}
    conv = next(x for x in mixed_model.layers if isinstance(x, keras.layers.Conv2D))
    assert conv.compute_dtype == precision.removeprefix("mixed_")
    assert {w.dtype for w in mixed_model.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


def test_softmax_of_16_bits_is_computed_in_32():
    """Scores of 300 differ by 2 in bfloat16; their weights add up to 1 all the same."""
    layer = DotProductAttention(1, dtype="mixed_bfloat16")
    rng = np.random.default_rng(0)
    query, key = (rng.normal(0, 4, (1, 64, 8)).astype("float32") for _ in range(2))
    value = np.ones((1, 64, 8), "float32")
    for training in (False, True):
        outputs = np.asarray(layer(query, key, value, training=training), "float32")
        np.testing.assert_allclose(outputs, 1.0, atol=0.01)


def test_gradients_that_are_not_finite_are_counted():
    def bad_gradient(config, batch, outputs):
        loss = CLASSIFICATION.loss(config, batch, outputs)
        return loss + tf.sqrt(0.0 * loss)  # finite, of a slope that is no number

    step, _, _ = make_step(dataclasses.replace(SMALL, loss=bad_gradient))
    sums = run(step, random_batch(BatchShape(32, 32, 8)))
    assert np.isfinite(sums["loss"]) and sums["not_finite"] == 1
    with pytest.raises(FloatingPointError, match="step 8 of.*epoch 3.*32x48.*1.00e-03"):
        loop._refuse_divergence(sums, range(7, 8), 2, 1e-3, BatchShape(32, 48, 8))


def test_calls_have_one_step_or_all_of_one_shape():
    a, b = BatchShape(32, 32, 9), BatchShape(48, 48, 4)
    assert data.steps_of_calls([a, a, b, b, b, b, b, a], 2) == [2, 2, 2, 1, 1]
    assert data.steps_of_calls([a, b, a], 1) == [1, 1, 1]
    assert data.steps_of_calls([a, a], 3) == [1, 1]
