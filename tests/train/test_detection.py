"""Detection as a task: examples, augmentation, the real loop, and its score."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mobilevit import anchor_boxes, boxes
from keras_mobilevit.detection import non_max_suppression
from keras_mobilevit.weights.file_formats import load_model_file
from tests.helpers.boxes import iou_of, random_boxes
from tests.helpers.evaluations import assert_same_evaluation
from tests.helpers.networks import build_detector
from tests.helpers.runs import DETECTION_CONFIG as CONFIG
from tests.helpers.runs import DETECTOR
from tests.helpers.voc_files import make_voc_boxes, voc_xml
from train import loop
from train.data import digits, sampler
from train.data import pipeline as data
from train.data.registry import load_source
from train.evaluation.report import evaluation_report
from train.tasks.detection import augment, metric
from train.tasks.detection.postprocess import suppress_file_outputs
from train.tasks.detection.task import DETECTION

SEEDS = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))


@pytest.fixture(scope="module")
def scenes():
    return digits.box_scene_source(counts={"train": 60, "validation": 40})


def test_scenes_have_exact_boxes(scenes):
    for example in scenes.examples("validation", None).as_numpy_iterator():
        picture = tf.io.decode_png(example["encoded"]).numpy().astype(float)
        ground = np.median(picture, axis=(0, 1))
        ink = np.abs(picture - ground).max(axis=2) > 60
        corners = np.round(example["boxes"] * 128).astype(int)
        real = example["classes"] >= 0
        assert 1 <= real.sum() <= 6
        covered = np.zeros_like(ink)
        for x1, y1, x2, y2 in corners[real]:
            window = ink[y1:y2, x1:x2]
            assert window.any(axis=0).mean() > 0.6 and window.any(axis=1).mean() > 0.6
            covered[y1:y2, x1:x2] = True
        assert (ink & ~covered).mean() < 0.002


draw = tf.function(augment.random_crop)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0.4, 2.5), st.integers(0, 4))
def test_crops_keep_what_they_promise(seed, aspect, count):
    corners = np.zeros((4, 4), np.float32)
    corners[:count] = random_boxes(np.random.default_rng(count), count)
    is_object = np.arange(4) < count
    # As an array: of each pair of Python's numbers another graph would be made.
    seed = np.array(seed, np.int32)
    window = draw(corners, is_object, np.float32(aspect), 0.3, seed).numpy()
    assert (window >= 0).all() and (window <= 1.000001).all()
    width, height = window[2:] - window[:2]
    assert min(width, height) >= 0.3 - 1e-6
    moved, is_kept = augment.crop_boxes(
        tf.constant(corners), tf.constant(is_object), tf.constant(window)
    )
    moved, is_kept = moved.numpy(), is_kept.numpy()
    assert is_kept.any() or not count
    assert not is_kept[~is_object].any()
    assert ((moved[is_kept] >= 0) & (moved[is_kept] <= 1)).all()
    if tuple(window) != (0, 0, 1, 1):
        assert 0.49 <= aspect * width / height <= 2.01
    # A box that lies wholly within stays where it was on the image.
    for before, after in zip(corners[is_kept], moved[is_kept]):
        if (before[:2] >= window[:2]).all() and (before[2:] <= window[2:]).all():
            again = after * np.tile([width, height], 2) + np.tile(window[:2], 2)
            assert again == pytest.approx(before, abs=1e-5)


def test_a_flip_moves_boxes_with_the_pixels():
    image = np.zeros((4, 8, 3), np.uint8)
    image[1:3, 1:3] = 255
    image = tf.constant(image)
    corners = np.float32([[1 / 8, 1 / 4, 3 / 8, 3 / 4]])
    seen = set()
    for seed in range(20):
        flipped, moved = augment.random_flip(image, tf.constant(corners), (0, seed))
        x1, y1, x2, y2 = np.round(moved.numpy()[0] * [8, 4, 8, 4]).astype(int)
        assert flipped.numpy()[y1:y2, x1:x2].min() == 255
        assert flipped.numpy().sum() == 4 * 3 * 255
        seen.add(int(x1))
    assert seen == {1, 5}


def test_batches_have_boxes_on_their_objects(scenes):
    """The crop is resized; the boxes still hold the digits' ink."""
    shapes = sampler.batch_shapes((96,), 96, 40)
    config = dataclasses.replace(CONFIG, crop_scale=0.09, flip=True, color_jitter=False)
    batch = next(
        iter(
            data.train_batches(scenes, config, shapes, 0, load=DETECTION.train_example)
        )
    )
    assert batch["image"].shape == (40, 96, 96, 3)
    assert batch["boxes"].shape == (40, 16, 4)
    contrasts = []
    for image, corners, classes in zip(
        *(batch[k].numpy() for k in ("image", "boxes", "classes"))
    ):
        ground = np.median(image.reshape(-1, 3), axis=0)
        ink = np.abs(image - ground).max(axis=2) > 50
        for x1, y1, x2, y2 in np.round(corners[classes >= 0] * 96).astype(int):
            if min(x2 - x1, y2 - y1) > 12:
                window = ink[y1:y2, x1:x2]
                contrasts += [window.any(axis=0).mean(), window.any(axis=1).mean()]
    assert len(contrasts) > 60
    assert np.mean(contrasts) > 0.85


def test_perfect_outputs_score_1(scenes):
    """Outputs made of the truth go through decoding, suppression and COCO's rules."""
    size = 64
    batches = data.eval_batches(
        scenes, "validation", size, 20, 1.0, load=DETECTION.eval_example
    )
    batch = next(iter(batches))
    anchors = anchor_boxes(size, size)
    offsets = np.zeros((20, len(anchors), 4), np.float32)
    logits = np.zeros((20, len(anchors), 11), np.float32)
    logits[..., 0] = 20
    centers = np.asarray(boxes.cxcywh_to_xyxy(anchors))
    for image in range(20):
        taken = set()
        for box, label in zip(
            batch["boxes"].numpy()[image], batch["classes"].numpy()[image]
        ):
            if label < 0:
                continue
            order = np.argsort(-iou_of(box, centers), kind="stable")
            best = next(i for i in order if i not in taken)
            taken.add(best)
            offsets[image, best] = np.asarray(boxes.encode(box, anchors[best]))
            logits[image, best, label + 1] = 40
    outputs = {"offsets": tf.constant(offsets), "logits": tf.constant(logits)}
    predictions = DETECTION.predictions(outputs, size)
    found = {name: np.asarray(value) for name, value in predictions.items()}
    targets = {name: value.numpy() for name, value in batch.items()}
    collected = metric.collect(scenes.class_names, found, targets)
    metrics = DETECTION.score(scenes.class_names, collected)
    assert metrics["AP"] == pytest.approx(1.0, abs=1e-6)
    perfect = float(tf.reduce_mean(DETECTION.validation_loss(batch, outputs)))
    worse = outputs | {"offsets": outputs["offsets"] + 1.0}
    assert perfect < float(tf.reduce_mean(DETECTION.validation_loss(batch, worse)))


def test_files_of_other_classes_follow_each_other():
    """One process evaluates them, and suppresses their boxes with one function."""
    rng = np.random.default_rng(0)
    for anchors, classes in ((5, 3), (6, 3), (5, 2)):
        outputs = {
            "boxes": random_boxes(rng, anchors)[None],
            "scores": rng.uniform(0, 1, (1, anchors, classes)).astype(np.float32),
        }
        found = suppress_file_outputs(outputs)
        wanted = non_max_suppression(outputs["boxes"], outputs["scores"])
        for name, values in wanted.items():
            assert (found[name] == np.asarray(values)).all()


def with_damage(source):
    """Returns a source whose second image of each split cannot be read."""
    columns = {
        split: column
        | {"encoded": tf.tensor_scatter_nd_update(column["encoded"], [[1]], ["no"])}
        for split, column in source.columns.items()
    }
    return dataclasses.replace(source, columns=columns)


def test_the_loop_trains_a_detector(scenes, tmp_path):
    """Also if an image of each split cannot be read."""
    config = dataclasses.replace(CONFIG, sizes=(64,))
    scenes = with_damage(scenes)
    (record,) = loop.train_and_evaluate(DETECTOR, config, scenes, tmp_path)
    assert record["skipped_train"] == record["skipped_validation"] == 1
    assert np.isfinite([record["train_loss"], record["loss"]]).all()
    assert 0 <= record["AP"] <= record["AP50"] <= 1
    assert {"AP/3", "AP50/9", "AP_small"} <= set(record)
    model = load_model_file(tmp_path / "best.keras")
    outputs = model(np.zeros((1, 64, 64, 3)))
    assert outputs["logits"].shape == (1, len(anchor_boxes(64, 64)), 11)
    assert_same_evaluation(DETECTION, config, scenes, tmp_path, record)


def test_an_image_that_cannot_be_read_is_filled(tmp_path):
    xml = voc_xml(("cat", 9, 6, 45, 30))
    path = make_voc_boxes(tmp_path, {"a": xml, "b": xml, "c": voc_xml()}, {"v": xml})
    source = load_source("detection", f"voc:{path}")
    (path / "JPEGImages" / "b.jpg").write_bytes(b"\xff\xd8 no more")
    shapes = [sampler.BatchShape(32, 32, 3)]
    config = dataclasses.replace(CONFIG, crop_scale=1.0)
    (batch,) = data.train_batches(
        source, config, shapes, 0, load=DETECTION.train_example
    )
    assert sorted(batch["weight"].numpy().tolist()) == [0, 1, 1]
    assert [name[-5:] for name in data.unreadable(source, "train", batch)] == ["b.jpg"]
    real = batch["classes"].numpy()[batch["weight"].numpy() > 0]
    assert sorted(real[:, 0].tolist()) == [-1, 0]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A source of which one image in six has 20 objects, the others one."""
    crowd = voc_xml(*[("cat", i, i, 90, 60) for i in range(20)])
    one = voc_xml(("cat", 9, 6, 45, 30))
    xmls = {"a": crowd, **dict.fromkeys("bcdef", one)}
    path = make_voc_boxes(tmp_path_factory.mktemp("crowd"), xmls, xmls)
    return load_source("detection", f"voc:{path}")


def places_of(batches) -> list[int]:
    for batch in batches:
        assert len({batch[key].shape[1] for key in ("boxes", "classes")}) == 1
    return [batch["boxes"].shape[1] for batch in batches]


@pytest.mark.parametrize("steps_per_call", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_crowd_takes_places_in_its_own_batch_alone(crowded, steps_per_call):
    """And in those of the same call, which is compiled for all their shapes."""
    config = dataclasses.replace(
        CONFIG, crop_scale=1.0, steps_per_execution=steps_per_call
    )
    shapes = [sampler.BatchShape(32, 32, 2)] * 3
    arguments = crowded, config, shapes, 0
    whole = list(data.train_batches(*arguments, load=DETECTION.train_example))
    rest = list(data.train_batches(*arguments, 1, load=DETECTION.train_example))
    for first_step, batches in enumerate((whole, rest)):
        crowd = [(b["classes"].numpy() >= 0).sum() > 2 for b in batches]
        calls = data.steps_of_calls(shapes[first_step:], steps_per_call)
        call_of = np.repeat(np.arange(len(calls)), calls)
        expected = [64 if any(np.array(crowd)[call_of == c]) else 16 for c in call_of]
        assert places_of(batches) == expected
    # What is on the images does not depend on the places.
    for batch, other in zip(rest, whole[1:], strict=True):
        for image, same in zip(batch["boxes"].numpy(), other["boxes"].numpy()):
            np.testing.assert_array_equal(image[:16], same[:16])


def test_all_devices_have_the_same_places_in_a_step(crowded):
    shapes = [sampler.BatchShape(32, 32, 2)] * 3
    shards = [
        data.train_batches(
            *(crowded, CONFIG, shapes, 0),
            shard=data.Shard(2, first, 1),
            load=DETECTION.train_example,
        )
        for first in (0, 1)
    ]
    places = [places_of(list(shard)) for shard in shards]
    assert places[0] == places[1] and sorted(places[0]) == [16, 16, 64]


def test_an_evaluation_counts_every_object_of_a_crowd(crowded):
    """None is cut off, and images keep their own objects alone."""
    batches = list(
        data.eval_batches(
            crowded, "validation", 32, 2, 1.0, load=DETECTION.eval_example
        )
    )
    assert places_of(batches) == [64, 16, 16]
    rows = [
        metric.collect(("cat",), {}, {name: x.numpy() for name, x in batch.items()})
        for batch in batches
    ]
    counts = [len(boxes) for row in rows for boxes in row["true_boxes"]]
    assert counts == [20, 1, 1, 1, 1, 1]
    joined = data.join([{"classes": b["classes"].numpy()} for b in batches])["classes"]
    assert joined.shape == (6, 64) and (joined[1:, 1:] == -1).all()


def test_a_report_of_a_file(scenes, tmp_path):
    model = build_detector(CONFIG, scenes)
    file = tmp_path / "best.keras"
    model.save(file)
    config = dataclasses.replace(CONFIG, weights=str(file))
    lines = evaluation_report(DETECTION, config, scenes).splitlines()
    assert [line.split()[0] for line in lines[1:12]] == [*"0123456789", "all"]
    assert lines[-1] == "at 64x64 pixels, in percent, by COCO's rules"
    other = dataclasses.replace(scenes, class_names=("a", "b"))
    with pytest.raises(ValueError, match="has 10 classes, but digits has 2"):
        evaluation_report(DETECTION, config, other)
    with pytest.raises(ValueError, match="takes --model: a .keras or .tflite.*coco"):
        evaluation_report(DETECTION, CONFIG, scenes)
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="trained on other classes"):
        evaluation_report(DETECTION, config, scenes)
