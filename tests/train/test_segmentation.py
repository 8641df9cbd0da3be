"""Segmentation as a task: its loss and score, the real loop, reports and pictures."""

import dataclasses
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from keras_mobilevit.cross_entropy import smoothed_cross_entropy
from keras_mobilevit.drawing import class_color
from keras_mobilevit.weights.file_formats import load_model_file
from tests.helpers.evaluations import assert_same_evaluation
from tests.helpers.networks import build_segmenter
from tests.helpers.voc_files import PLAIN_MASK, make_voc_masks
from tflite.images import load_images
from tflite.tasks.segmentation.task import LOGITS
from train import loop
from train.config import make_config
from train.data import digits, sampler
from train.data import pipeline as data
from train.data.masks import IGNORE_INDEX, decode_mask, encode_mask
from train.data.registry import load_source
from train.evaluation.report import evaluation_report
from train.models import build_state
from train.run import pictures
from train.step import make_train_step
from train.tasks.drawing import CAPTION_HEIGHT, INNER_GAP, SIDE
from train.tasks.segmentation import metric
from train.tasks.segmentation.loss import pixel_cross_entropy
from train.tasks.segmentation.pictures import draw_examples
from train.tasks.segmentation.task import SEGMENTATION

CONFIG = make_config(
    task="segmentation",
    sizes=(64, 96),
    base_size=64,
    batch_size=8,
    epochs=1,
    eval_size=64,
    crop_scale=0.25,
    flip=True,
    color_jitter=True,
)
NETWORK = dataclasses.replace(SEGMENTATION, build_model=build_segmenter)
CLASSES = 5
# Class 4 occurs in no mask; some masks are ignored as a whole.
MASKS = arrays(
    np.uint8, (3, 7, 9), elements=st.sampled_from([0, 1, 2, 3, IGNORE_INDEX])
)
FOUND = arrays(np.int32, (3, 7, 9), elements=st.integers(0, CLASSES - 1))


@pytest.fixture(scope="module")
def scenes():
    return digits.mask_scene_source(counts={"train": 40, "validation": 20})


def expected_metrics(masks, found) -> tuple[np.ndarray, np.ndarray]:
    """Counts pixel by pixel: the IoU of each class, NaN where it does not occur."""
    confusion = np.zeros((CLASSES, CLASSES))
    for label, prediction in zip(masks.ravel(), found.ravel()):
        if label != IGNORE_INDEX:
            confusion[label, prediction] += 1
    with np.errstate(invalid="ignore"):
        right = np.diag(confusion)
        return right / (confusion.sum(0) + confusion.sum(1) - right), confusion


def counted(names, batch, logits) -> dict:
    """Counts the pixels of a batch as an evaluation does."""
    class_map = tf.argmax(logits, axis=-1).numpy()
    targets = {"full_mask": np.asarray(batch["full_mask"])}
    return SEGMENTATION.statistics(names, {"class_map": class_map}, targets)


@settings(max_examples=60, deadline=None)
@given(MASKS, FOUND)
def test_scores_are_those_of_counted_pixels(masks, found):
    names = [f"c{i}" for i in range(CLASSES)]
    batch = {"full_mask": np.array([encode_mask(mask) for mask in masks], object)}
    counts = counted(names, batch, tf.one_hot(found, CLASSES))
    assert counts["confusion"].dtype == np.int64
    score = SEGMENTATION.score(names, counts)
    ious, confusion = expected_metrics(masks, found)
    np.testing.assert_array_equal(counts["confusion"], confusion)
    for name, iou in zip(names, ious):
        expected = -1.0 if np.isnan(iou) else iou
        assert score[f"IoU/{name}"] == pytest.approx(expected, abs=1e-12)
    if (masks == IGNORE_INDEX).all():
        assert score["mIoU"] == score["pixel_accuracy"] == -1.0
        return
    assert score["mIoU"] == pytest.approx(np.nanmean(ious), abs=1e-12)
    accuracy = np.trace(confusion) / confusion.sum()
    assert score["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    theirs = keras.metrics.MeanIoU(CLASSES, ignore_class=IGNORE_INDEX)
    theirs.update_state(masks, found)
    assert score["mIoU"] == pytest.approx(float(theirs.result()), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(*[st.tuples(st.integers(1, 40), st.integers(1, 40))] * 2)
def test_each_pixel_gets_the_class_at_its_center(map_size, image_size):
    class_map = np.arange(np.prod(map_size)).reshape(map_size)
    found = metric.classes_at_pixels(class_map, image_size)
    rows, columns = (
        [int(Fraction(2 * i + 1, 2) * side / count) for i in range(count)]
        for side, count in zip(map_size, image_size)
    )
    np.testing.assert_array_equal(found, class_map[np.ix_(rows, columns)])
    if map_size == image_size:
        np.testing.assert_array_equal(found, class_map)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_pixels_are_counted_strip_by_strip_as_at_once(at_once, map_size):
    rng = np.random.default_rng(at_once)
    mask = rng.choice(np.uint8([0, 1, 2, IGNORE_INDEX]), (13, 11))
    class_map = rng.integers(0, 3, map_size).astype(np.uint8)
    whole = metric.count_pixels(mask, class_map, 3)
    found = metric.classes_at_pixels(class_map, mask.shape)
    for label, prediction in np.ndindex(3, 3):
        is_one = (mask == label) & (found == prediction)
        assert whole[label, prediction] == is_one.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric, "PIXELS_AT_ONCE", at_once)
        strips = metric.count_pixels(mask, class_map, 3)
    np.testing.assert_array_equal(strips, whole)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_the_pixels_that_count(smoothing):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (3, 4, 6)).astype(np.int32)
    logits = rng.normal(0, 3, (3, 4, 6, CLASSES)).astype(np.float32)
    is_counted = rng.random(labels.shape) < 0.6
    weights = np.float32([1, 1, 0])
    arguments = np.where(is_counted, labels, IGNORE_INDEX), logits, is_counted, weights
    losses = pixel_cross_entropy(*arguments, smoothing)
    single = smoothed_cross_entropy(labels.ravel(), logits.reshape(-1, 5), smoothing)
    counted = (is_counted & (weights > 0)[:, None, None]).ravel()
    expected = single.numpy()[counted].mean()
    mean = float(tf.reduce_sum(losses * weights) / 2)  # of the images that count
    assert mean == pytest.approx(expected, 1e-5)


def test_a_batch_of_ignored_pixels_teaches_nothing():
    batch = {
        "mask": tf.fill([2, 4, 4], tf.constant(IGNORE_INDEX, tf.uint8)),
        "weight": tf.ones([2]),
    }
    outputs = {
        name: tf.Variable(tf.random.stateless_normal([2, 4, 4, CLASSES], (0, seed)))
        for seed, name in enumerate(("logits", "auxiliary"))
    }
    config = dataclasses.replace(CONFIG, label_smoothing=0.1, auxiliary_weight=0.4)
    with tf.GradientTape() as tape:
        loss = SEGMENTATION.loss(config, batch, dict(outputs))
    assert loss.numpy().tolist() == [0, 0]
    for gradient in tape.gradient(loss, list(outputs.values())):
        assert not gradient.numpy().any()


def test_an_auxiliary_head_adds_its_part():
    batch = {"mask": tf.constant(PLAIN_MASK[None, :8, :8]), "weight": tf.ones([1])}
    random = tf.random.stateless_normal
    main, other = (random([1, 8, 8, 3], (1, seed)) for seed in (1, 2))
    config = dataclasses.replace(CONFIG, auxiliary_weight=0.4)
    both = SEGMENTATION.loss(config, batch, {"logits": main, "auxiliary": other})
    alone = [SEGMENTATION.loss(CONFIG, batch, x).numpy()[0] for x in (main, other)]
    assert both.numpy()[0] == pytest.approx(alone[0] + 0.4 * alone[1], rel=1e-6)


def test_batches_repeat_and_masks_lie_on_their_digits(scenes):
    def first_batch():
        batches = data.train_batches(
            scenes, config, shapes, 0, load=SEGMENTATION.train_example
        )
        return {name: value.numpy() for name, value in next(iter(batches)).items()}

    shapes = sampler.batch_shapes((96,), 96, 40)
    config = dataclasses.replace(CONFIG, color_jitter=False)
    batch, again = first_batch(), first_batch()
    assert batch["image"].shape == (40, 96, 96, 3) and batch["image"].dtype == np.uint8
    assert batch["mask"].shape == (40, 96, 96) and batch["mask"].dtype == np.uint8
    for name, value in batch.items():
        np.testing.assert_array_equal(value, again[name])
    assert set(np.unique(batch["mask"])) == {*range(11), IGNORE_INDEX}
    brightness = batch["image"].max(axis=-1)
    is_ink = (batch["mask"] > 0) & (batch["mask"] != IGNORE_INDEX)
    ground = np.median(brightness[batch["mask"] == 0])
    assert brightness[is_ink].mean() > ground + 60
    colored = dataclasses.replace(config, color_jitter=True)
    config = colored
    assert (first_batch()["image"] != batch["image"]).any()


def test_perfect_outputs_score_1(scenes):
    """The mask at its own size, seen through a network of the same."""
    batches = data.eval_batches(
        scenes, "validation", 128, 20, 1.0, load=SEGMENTATION.eval_example
    )
    batch = next(iter(batches))
    assert decode_mask(batch["full_mask"][0]).shape == (128, 128)
    logits = 20 * tf.one_hot(batch["mask"], 11)
    names = scenes.class_names
    score = SEGMENTATION.score(names, counted(names, batch, logits))
    assert score["mIoU"] == score["pixel_accuracy"] == score["IoU/7"] == 1.0
    losses = [SEGMENTATION.validation_loss(batch, x) for x in (logits, -logits)]
    assert float(tf.reduce_mean(losses[0])) < 1e-6 < float(tf.reduce_mean(losses[1]))


def test_images_of_different_sizes_are_scored_as_they_are(tmp_path):
    """Each mask is scored in its own pixels, which add nothing to the others."""
    path = make_voc_masks(
        tmp_path, {"a": PLAIN_MASK}, {"b": PLAIN_MASK, "c": PLAIN_MASK}
    )
    tall = np.full((100, 50), 2, np.uint8)
    tall[:30] = IGNORE_INDEX
    Image.new("RGB", (50, 100)).save(path / "JPEGImages" / "c.jpg")
    Image.fromarray(tall).save(path / "SegmentationClass" / "c.png")
    source = load_source("segmentation", f"voc:{path}")
    (batch,) = data.eval_batches(
        source, "validation", 32, 2, 1.0, load=SEGMENTATION.eval_example
    )
    sizes = [decode_mask(mask).shape for mask in batch["full_mask"]]
    assert sizes == [(60, 90), (100, 50)]
    assert batch["image_size"].numpy().tolist() == [[60, 90], [100, 50]]
    found = np.zeros((2, 32, 32), np.int32)
    found[1, 16:] = 2
    counts = [
        counted("abc", {"full_mask": batch["full_mask"][i : i + 1]}, logits[None])
        for i, logits in enumerate(tf.one_hot(found, 3))
    ]
    assert counts[0]["confusion"].tolist() == [[1800, 0, 0]] * 3
    expected = [[0, 0, 0], [0, 0, 0], [1000, 0, 2500]]
    assert counts[1]["confusion"].tolist() == expected


def bytes_of(arrays: dict) -> int:
    """Counts the bytes of arrays, and of the strings that they hold."""
    strings = [x for x in arrays.values() if x.dtype == object]
    own = sum(x.nbytes for x in arrays.values())
    return own + sum(len(text) for array in strings for text in array.ravel())


def eval_batch(source) -> dict:
    batches = data.eval_batches(
        source, "validation", 32, 6, 1.0, load=SEGMENTATION.eval_example
    )
    return {name: value.numpy() for name, value in next(iter(batches)).items()}


def comparison_images(source) -> dict:
    """What a conversion keeps of a split to compare with."""
    images = load_images(LOGITS, source.name, "validation", 0, 32, 1.0)
    return {"image": images.images, **images.targets}


def pictured(source) -> dict:
    return pictures.first_examples(SEGMENTATION, source, CONFIG, count=6)


@pytest.mark.parametrize(
    "prepare",
    [
        eval_batch,
        pytest.param(comparison_images, marks=pytest.mark.slow),
        pytest.param(pictured, marks=pytest.mark.slow),
    ],
)
def test_a_large_photo_adds_nothing_to_the_small_ones(prepare, tmp_path):
    """Half a megapixel in a frame for six would take three megabytes."""
    sizes = {}
    for name, side in (("small", 60), ("large", 700)):
        masks = {letter: PLAIN_MASK for letter in "abcdef"}
        path = make_voc_masks(tmp_path / name, {"t": PLAIN_MASK}, masks)
        mask = np.zeros((side, side), np.uint8)
        mask[: side // 2] = 1
        Image.new("RGB", (side, side)).save(path / "JPEGImages" / "f.jpg")
        Image.fromarray(mask).save(path / "SegmentationClass" / "f.png")
        found = prepare(load_source("segmentation", f"voc:{path}"))
        assert decode_mask(found["full_mask"][-1]).shape == (side, side)
        sizes[name] = bytes_of({k: v for k, v in found.items() if k != "index"})
    assert sizes["large"] - sizes["small"] < 20_000


@pytest.mark.parametrize(
    "auxiliary_weight", [pytest.param(0.0, marks=pytest.mark.slow), 0.4]
)
def test_the_loop_trains_a_segmenter(scenes, tmp_path, auxiliary_weight):
    config = dataclasses.replace(CONFIG, sizes=(64,), auxiliary_weight=auxiliary_weight)
    (record,) = loop.train_and_evaluate(NETWORK, config, scenes, tmp_path)
    assert np.isfinite([record["train_loss"], record["loss"]]).all()
    assert 0 <= record["mIoU"] <= record["pixel_accuracy"] <= 1
    assert {"IoU/background", "IoU/9"} <= set(record)
    assert (tmp_path / "predictions.png").exists()
    model = load_model_file(tmp_path / "best.keras")
    outputs = model(np.zeros((1, 64, 64, 3)))
    logits = outputs["logits"] if auxiliary_weight else outputs
    assert logits.shape == (1, 64, 64, 11)
    assert_same_evaluation(SEGMENTATION, config, scenes, tmp_path, record)


@pytest.mark.slow
def test_the_real_network_trains(scenes):
    """One step of MobileViT with the head; its rate is ten times the others'."""
    config = dataclasses.replace(CONFIG, auxiliary_weight=0.4, head_lr_multiplier=10.0)
    state = build_state(SEGMENTATION, config, scenes, True)
    heads = {
        variable.path.split("/")[0]
        for variable in state.model.trainable_variables
        if SEGMENTATION.is_head(variable.path)
    }
    assert {"deeplab_classifier", "deeplab_aspp2_conv", "deeplab_auxiliary_bn"} <= heads
    assert all(name.startswith("deeplab") for name in heads)
    strategy = tf.distribute.get_strategy()
    step = make_train_step(SEGMENTATION, config, state, strategy)
    batches = data.train_batches(
        scenes,
        config,
        [sampler.BatchShape(64, 64, 4)] * 10,
        0,
        load=SEGMENTATION.train_example,
    )
    batch = next(iter(batches))
    del batch["index"]
    sums = step((batch,), tf.constant([1e-3]), tf.constant([0.9]), tf.constant(0.0))
    assert float(sums["not_finite"]) == 0 and float(sums["loss"]) > 0


def test_a_report_of_a_file(scenes, tmp_path):
    file = tmp_path / "best.keras"
    build_segmenter(CONFIG, scenes).save(file)
    config = dataclasses.replace(CONFIG, weights=str(file))
    lines = evaluation_report(SEGMENTATION, config, scenes).splitlines()
    names = [line.split()[0] for line in lines[1:13]]
    assert names == ["background", *"0123456789", "all"]
    pixels = [int(line.split()[1]) for line in lines[1:13]]
    assert sum(pixels[:-1]) == pixels[-1] == 20 * 128 * 128
    assert lines[-1].startswith("at 64x64 pixels, in percent")
    other = dataclasses.replace(scenes, class_names=("a", "b"))
    with pytest.raises(ValueError, match="has 11 classes, but digits has 2"):
        evaluation_report(SEGMENTATION, config, other)
    with pytest.raises(ValueError, match="takes --model: a .keras or .tflite"):
        evaluation_report(SEGMENTATION, CONFIG, scenes)
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="trained on other classes"):
        evaluation_report(SEGMENTATION, config, scenes)
    inputs = keras.Input((None, None, 3))
    keras.Model(inputs, keras.layers.Conv2D(11, 1)(inputs)).save(tmp_path / "x.keras")
    (tmp_path / "labels.txt").unlink()
    config = dataclasses.replace(CONFIG, weights=str(tmp_path / "x.keras"))
    with pytest.raises(ValueError, match="x.keras is not a segmenter"):
        evaluation_report(SEGMENTATION, config, scenes)


def test_pictures_show_truth_left_and_prediction_right():
    names = ("background", "cat", "dog")
    mask = np.zeros((1, 60, 120), np.uint8)
    mask[:, :, 60:90], mask[:, 40:] = 1, IGNORE_INDEX
    batch = {
        "image": np.full((1, 64, 64, 3), 90, np.uint8),
        "full_mask": [encode_mask(mask[0])],
        "image_size": np.int32([[60, 120]]),
    }
    found = np.zeros((1, 64, 64), int)
    found[:, :, :32] = 2
    (picture,) = draw_examples(names, batch, np.eye(3)[found])
    height, width = SIDE // 2, SIDE
    assert picture.shape[0] > CAPTION_HEIGHT + height + 20  # pixels of the legend
    assert picture.shape[1] == 2 * width + INNER_GAP
    drawn = picture[CAPTION_HEIGHT : CAPTION_HEIGHT + height]
    truth, found = drawn[:, :width], drawn[:, -width:]

    def tinted(label):
        return np.round(90 + 0.6 * (np.array(class_color(label)) - 90))

    assert (truth[10, 100] == 90).all() and (truth[10, 250] == tinted(1)).all()
    assert (truth[170] < 70).all()  # not counted
    assert (found[:, :180] == tinted(2)).all() and (found[:, 200:] == 90).all()
    legend = picture[CAPTION_HEIGHT + height :]
    for label in (1, 2):
        assert (legend == class_color(label)).all(axis=-1).sum() > 100
    assert not (legend == class_color(0)).all(axis=-1).any()
