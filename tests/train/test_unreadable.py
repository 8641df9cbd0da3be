"""A batch without a readable image teaches nothing, and a warning says why."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.helpers.image_files import make_folder, pil_file
from tests.helpers.networks import build_detector, build_network, build_segmenter
from tests.helpers.voc_files import PLAIN_MASK, make_voc_boxes, make_voc_masks, voc_xml
from train import loop
from train.config import make_config
from train.data import pipeline as data
from train.data import unreadable
from train.data.masks import IGNORE_INDEX
from train.data.registry import load_source
from train.data.sampler import BatchShape
from train.data.source import SPLITS
from train.tasks.classification.task import CLASSIFICATION
from train.tasks.detection.task import DETECTION
from train.tasks.segmentation.task import SEGMENTATION

BAD = pil_file("RGB", "red", "JPEG", (90, 60))[:400]
GOOD = pil_file("RGB", (200, 0, 0), "JPEG", (90, 60))


def classifier_source(path: Path):
    classes = {"cat": {"a.jpg": GOOD, "b.jpg": GOOD}, "dog": {"c.jpg": GOOD}}
    return load_source("classification", f"folder:{make_folder(path, classes)}")


def detector_source(path: Path):
    xmls = {name: voc_xml(("cat", 9, 6, 45, 30)) for name in "abc"}
    return load_source("detection", f"voc:{make_voc_boxes(path, xmls, xmls)}")


def segmenter_source(path: Path):
    masks = {name: PLAIN_MASK for name in "abc"}
    return load_source("segmentation", f"voc:{make_voc_masks(path, masks, masks)}")


TASKS = {
    "classification": (CLASSIFICATION, build_network, classifier_source),
    "detection": (DETECTION, build_detector, detector_source),
    "segmentation": (SEGMENTATION, build_segmenter, segmenter_source),
}


def make_case(name: str, path: Path, damaged: str):
    """Returns a task, its configuration, and a source of damaged and other files."""
    task, build, make_source = TASKS[name]
    config = make_config(
        task=task.name,
        sizes=(64,),
        base_size=64,
        batch_size=1,
        epochs=1,
        eval_size=64,
        warmup_steps=0,
    )
    source = make_source(path)
    for letter in damaged:
        for file in path.rglob(f"{letter}.jpg"):
            file.write_bytes(BAD)
    return dataclasses.replace(task, build_model=build), config, source


def batches_of(task, config, source):
    schedule = [BatchShape(64, 64, 1)] * source.num_examples["train"]
    train = data.train_batches(source, config, schedule, 0, load=task.train_example)
    held_out = data.eval_batches(
        source, "validation", 64, 1, 1.0, load=task.eval_example
    )
    return [*train, *held_out]


@pytest.fixture(scope="module", params=TASKS)
def case(request, tmp_path_factory):
    """A task, its configuration, a source of which `a.jpg` is damaged, its batches."""
    path = tmp_path_factory.mktemp(request.param)
    case = make_case(request.param, path, damaged="a")
    return *case, batches_of(*case)


def test_what_stands_in_for_them_says_nothing(case):
    *_, batches = case
    bad = [batch for batch in batches if not batch["weight"][0]]
    assert len(bad) == 2 and len(batches) == 6
    for batch in bad:
        for name, value in (("classes", -1), ("mask", IGNORE_INDEX), ("image_size", 1)):
            if name in batch:
                assert (batch[name].numpy() == value).all()
        shapes = {name: value.shape for name, value in batch.items()}
        others = [b for b in batches if b.keys() == batch.keys() and b["weight"][0]]
        assert shapes == {name: value.shape for name, value in others[0].items()}
    # Of training it is an image, not blackness, that batch normalization sees.
    assert bad[0]["image"].numpy().max() > 0


def test_the_loss_is_nothing_and_gradients_are_numbers(case):
    task, config, source, batches = case
    model = task.build_model(config, source)
    for batch in batches:
        if batch["weight"][0]:
            continue
        with tf.GradientTape() as tape:
            outputs = model(tf.cast(batch["image"], tf.float32), training=True)
            loss = tf.reduce_sum(task.loss(config, batch, outputs) * batch["weight"])
        assert float(loss) == 0
        for gradient in tape.gradient(loss, model.trainable_variables):
            assert gradient is None or np.isfinite(gradient.numpy()).all()
            assert gradient is None or not gradient.numpy().any()


# Of detection, test_detection.py trains with damaged scenes.
@pytest.mark.parametrize(
    "name",
    [
        "classification",
        pytest.param("segmentation", marks=pytest.mark.slow),
        pytest.param("detection", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_without_them(name, tmp_path, caplog):
    task, config, source = make_case(name, tmp_path, damaged="a")
    (record,) = loop.train_and_evaluate(task, config, source, tmp_path / "run")
    assert record["skipped_train"] == record["skipped_validation"] == 1
    assert np.isfinite([record["train_loss"], record["loss"]]).all()
    told = [m for m in caplog.messages if m.startswith("skipped, cannot be read")]
    assert told and all("a.jpg" in text and "JPEG" in text for text in told)


# It is the loop that says so, of any task; the batches of each are tested above.
@pytest.mark.parametrize(
    "name",
    [
        "classification",
        pytest.param("segmentation", marks=pytest.mark.slow),
        pytest.param("detection", marks=pytest.mark.slow),
    ],
)
def test_a_run_without_any_says_which_and_why(name, tmp_path):
    task, config, source = make_case(name, tmp_path, damaged="abc")
    with pytest.raises(ValueError, match="None of the 3 train images.*a.jpg") as error:
        loop.train_and_evaluate(task, config, source, tmp_path / "run")
    assert "JPEG" in str(error.value) and "learning" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (BAD, "JPEG"),
        (pil_file("RGB", "red", "PNG", (90, 60))[:60], "PNG"),
        (b"This is no image.\n", "it is in no known format"),
        (GOOD, "it can be read here and now"),
        (None, "No such file"),
    ],
)
def test_reasons(content, reason, tmp_path):
    file = tmp_path / "photo.jpg"
    if content is not None:
        file.write_bytes(content)
    found = unreadable.reason(str(file))
    assert reason in found and "{{" not in found and "[Op:" not in found
    assert unreadable.with_reason(str(file)) == f"{file} ({found})"


def test_what_is_no_file_has_a_reason():
    assert "data set" in unreadable.reason("digits/7")


@pytest.mark.slow
def test_the_last_batch_is_filled_from_the_epochs_start(tmp_path):
    """Also where the run is resumed, and where there are fewer images than places."""
    for index in range(5):
        for split in SPLITS:
            folder = tmp_path / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (40 * index + 40,) * 3).save(
                folder / f"{index}.png"
            )
    source = load_source("classification", f"folder:{tmp_path}")
    config = make_config(sizes=(32,), base_size=32, batch_size=2, crop_scale=1.0)
    schedule = [BatchShape(32, 32, n) for n in (2, 2, 12)]
    whole = list(data.train_batches(source, config, schedule, 0))
    for first_step in (1, 2):
        batches = list(data.train_batches(source, config, schedule, 0, first_step))
        for batch, expected in zip(batches, whole[first_step:], strict=True):
            for name, value in batch.items():
                np.testing.assert_array_equal(value, expected[name])
    order = np.concatenate([b["image"].numpy().mean(axis=(1, 2, 3)) for b in whole])
    assert len(set(order[:5])) == 5
    np.testing.assert_array_equal(order, np.tile(order[:5], 4)[: len(order)])
    assert whole[-1]["weight"].numpy().tolist() == [1] + [0] * 11


@pytest.mark.parametrize("content", [b"", b"<html>404", b"BM" + bytes(60), b"\xff\xd8"])
def test_an_unreadable_first_image_does_not_end_a_run(content, tmp_path):
    photo = pil_file("RGB", "red", "JPEG")
    classes = {"a": {"0.jpg": content, "1.jpg": photo}, "b": {"1.jpg": photo}}
    source = load_source("classification", f"folder:{make_folder(tmp_path, classes)}")
    (batch,) = data.eval_batches(source, "train", 32, 4, 1.0).as_numpy_iterator()
    assert batch["weight"].sum() == 2
