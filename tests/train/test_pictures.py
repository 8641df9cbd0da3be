"""Pictures of predictions: what is drawn where, and that training stays as it was."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from safetensors.numpy import load_file

from keras_mobilevit import anchor_boxes, boxes
from keras_mobilevit.drawing import class_color
from tests.helpers.boxes import iou_of
from tests.helpers.runs import CLASSIFIER as NETWORK
from tests.helpers.runs import DETECTION_CONFIG as CONFIG
from tests.helpers.runs import DETECTOR
from tests.helpers.runs import TWO_EPOCHS_OF_DIGITS as DIGITS
from tests.helpers.voc_files import make_voc_boxes, voc_xml
from train import loop
from train.data import digits
from train.data.digits import digits_source
from train.data.registry import load_source
from train.run import pictures
from train.run.pictures import EXAMPLES
from train.run.records import RecordWriter
from train.tasks import drawing
from train.tasks.detection.pictures import draw_examples
from train.tasks.detection.task import DETECTION
from train.tasks.drawing import CAPTION_HEIGHT, GAP, INNER_GAP, SIDE

ROOT = Path(__file__).parents[2]
RECORD = {"epoch": 1, "train_loss": 1.0, "loss": 1.0, "AP": 0.5, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def scenes():
    return digits.box_scene_source(counts={"train": 24, "validation": 12})


def images_of(workdir) -> dict[int, np.ndarray]:
    """Reads the pictures in TensorBoard's files, by their epoch."""
    found = {}
    for file in (workdir / "tensorboard").glob("events*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    assert value.tag == "predictions"
                    width, height, encoded = value.tensor.string_val
                    with Image.open(io.BytesIO(encoded)) as picture:
                        assert picture.size == (int(width), int(height))
                        found[event.step] = np.asarray(picture)
    return found


def outputs_of(objects, size: int, classes: int) -> dict[str, np.ndarray]:
    """Makes the outputs, for one image, that find certain boxes and nothing else."""
    anchors = anchor_boxes(size, size)
    corners = np.asarray(boxes.cxcywh_to_xyxy(anchors))
    offsets = np.zeros((1, len(anchors), 4), np.float32)
    logits = np.zeros((1, len(anchors), classes + 1), np.float32)
    logits[..., 0] = 20
    for box, label in objects:
        nearest = int(np.argmax([iou_of(box, corner) for corner in corners]))
        offsets[0, nearest] = np.asarray(
            boxes.encode(np.float32(box), anchors[nearest])
        )
        logits[0, nearest, label + 1] = 40
    return {"offsets": offsets, "logits": logits}


def is_drawn(picture, box, label: int) -> bool:
    """Tells whether all four edges of a box have its class's color."""
    height, width = picture.shape[:2]
    corners = np.array(box) * [width, height, width, height]
    x1, y1, x2, y2 = corners.round().astype(int)
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    return all(
        # Within a pixel: lines run along the box, not within it.
        (picture[max(0, j - 1) : j + 2, max(0, i - 1) : i + 2] == class_color(label))
        .all(axis=2)
        .any()
        for i, j in ((x1, y), (x2, y), (x, y1), (x, y2))
    )


def halves(picture, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is under the two captions."""
    assert picture.shape[0] == CAPTION_HEIGHT + height
    assert picture.shape[1] == 2 * width + INNER_GAP
    drawn = picture[CAPTION_HEIGHT:]
    return drawn[:, :width], drawn[:, -width:]


@pytest.mark.parametrize(
    ("size", "height", "width"), [((60, 60), SIDE, SIDE), ((300, 400), 288, SIDE)]
)
def test_true_boxes_are_left_and_those_found_right(size, height, width):
    names = ("cat", "dog", "cow")
    one, other = [0.1, 0.2, 0.5, 0.6], [0.45, 0.5, 0.9, 0.8]
    batch = {
        "image": np.full((1, 64, 64, 3), 90, np.uint8),
        "image_size": np.int32([size]),
        "boxes": np.float32([[one, other, [0, 0, 0, 0]]]),
        "classes": np.int32([[1, 2, -1]]),
        "is_crowd": np.zeros((1, 3), bool),
    }
    # The second object is missed: another class is found in its place.
    outputs = outputs_of([(one, 1), (other, 0)], 64, 3)
    (picture,) = draw_examples(names, batch, outputs)
    truth, found = halves(picture, height, width)
    assert is_drawn(truth, one, 1) and is_drawn(truth, other, 2)
    assert is_drawn(found, one, 1) and is_drawn(found, other, 0)
    assert not is_drawn(found, other, 2)
    for half in (truth, found):  # nothing else is drawn
        assert (half[-20:] == 90).all() and (half[:, -20:] == 90).all()
    (nothing,) = draw_examples(names, batch, outputs_of([], 64, 3))
    again, found = halves(nothing, height, width)
    np.testing.assert_array_equal(again, truth)
    assert (found == 90).all()
    (ignored,) = draw_examples(
        names, batch | {"is_crowd": np.array([[False, True, False]])}, outputs
    )
    truth_ignored, _ = halves(ignored, height, width)
    assert is_drawn(truth_ignored, other, 2) and (truth_ignored != truth).any()


def test_a_contact_sheet_keeps_all_pictures_apart():
    shapes = [(30, 80), (40, 60), (40, 80)] * 3
    shown = [np.full((*s, 3), 100 + i, np.uint8) for i, s in enumerate(shapes[:8])]
    sheet = drawing.contact_sheet(shown)
    columns, rows = 2, 4
    assert sheet.shape == (rows * (40 + GAP) + GAP, columns * (80 + GAP) + GAP, 3)
    for index, picture in enumerate(shown):
        top = GAP + index // columns * (40 + GAP)
        left = GAP + index % columns * (80 + GAP)
        height, width = picture.shape[:2]
        window = sheet[top : top + height, left : left + width]
        np.testing.assert_array_equal(window, picture)
        assert (sheet == 100 + index).all(axis=2).sum() == height * width
    single = drawing.contact_sheet(shown[:1])
    assert single.shape == (30 + 2 * GAP, 80 + 2 * GAP, 3)


def test_names_longer_than_their_picture_are_not_cut():
    narrow = np.full((50, 20, 3), 255, np.uint8)
    short, long = (
        drawing.side_by_side({text: narrow, "b": narrow}) for text in ("a", 40 * "a")
    )
    assert short.shape == (50 + CAPTION_HEIGHT, 40 + INNER_GAP, 3)
    assert long.shape[1] > 200
    assert (long[:CAPTION_HEIGHT] != long[0, 0]).any()


@pytest.mark.slow
def test_examples_are_the_first_that_can_be_read(tmp_path):
    xmls = {name: voc_xml(("cat", 9, 6, 45, 30)) for name in "abcdef"}
    path = make_voc_boxes(tmp_path, {"t": xmls["a"]}, xmls)
    source = load_source("detection", f"voc:{path}")
    (path / "JPEGImages" / "b.jpg").write_bytes(b"\xff\xd8 no more")
    for name, gray in (("a", 50), ("c", 150), ("d", 250)):
        Image.new("RGB", (90, 60), (gray,) * 3).save(
            path / "JPEGImages" / f"{name}.jpg"
        )
    first, again = (
        pictures.first_examples(DETECTION, source, CONFIG, count=3) for _ in range(2)
    )
    assert first["image"].shape == (3, CONFIG.eval_size, CONFIG.eval_size, 3)
    assert [int(image.mean()) for image in first["image"]] == [50, 150, 250]
    assert first["image_size"].tolist() == [[60, 90]] * 3
    assert {"boxes", "classes", "is_crowd"} <= set(first)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    # A split of five that can be read has no more.
    assert len(pictures.first_examples(DETECTION, source, CONFIG)["image"]) == 5


@pytest.mark.slow
def test_a_run_leaves_its_predictions(scenes, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=2, sizes=(64,))
    records = loop.train_and_evaluate(DETECTOR, config, scenes, tmp_path)
    assert [record["traces"] for record in records] == [1, 1]
    with Image.open(tmp_path / "predictions.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    height, width = CAPTION_HEIGHT + SIDE + GAP, 2 * SIDE + INNER_GAP + GAP
    assert sheet.shape == (EXAMPLES // 2 * height + GAP, 2 * width + GAP, 3)
    in_tensorboard = images_of(tmp_path)
    assert sorted(in_tensorboard) == [1, 2]
    difference = np.abs(in_tensorboard[2].astype(float) - sheet)
    assert difference.mean() < 4  # a JPEG
    example = next(iter(scenes.examples("validation", None).as_numpy_iterator()))
    first = sheet[GAP + CAPTION_HEIGHT : GAP + CAPTION_HEIGHT + SIDE, GAP : GAP + SIDE]
    real = example["classes"] >= 0
    assert any(map(is_drawn, [first] * 6, example["boxes"][real], example["classes"]))
    assert not list(tmp_path.glob(".*"))


def test_a_picture_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    shown = [np.full((20, 20, 3), 200, np.uint8)]
    writer = RecordWriter(tmp_path, 0, "AP", lambda: shown)
    writer.write(RECORD)
    before = (tmp_path / "predictions.png").read_bytes()

    def fill_the_disk(self, file, **options):
        Path(file).write_bytes(b"\x89PNG half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        writer._write_pictures(np.zeros((9, 9, 3), np.uint8), 2)
    assert (tmp_path / "predictions.png").read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    assert sorted(images_of(tmp_path)) == [1]


@pytest.mark.slow
def test_any_task_draws_without_a_trace_in_its_training(tmp_path):
    """Weights, averages, optimizer and random state stay what they are, to the bit."""

    def masks(class_names, batch, outputs):
        drawn.append(outputs.copy())
        assert batch["image"].shape == (EXAMPLES, 32, 32, 3)
        assert outputs.shape == (EXAMPLES, len(class_names))
        return list(batch["image"] // 2)

    drawn, runs = [], {}
    config = dataclasses.replace(DIGITS, sizes=(32,))
    for name, draw in (("without", None), ("with", masks)):
        task = dataclasses.replace(NETWORK, pictures=draw)
        loop.train_and_evaluate(task, config, digits_source(), tmp_path / name)
        runs[name] = load_file(tmp_path / name / "checkpoint.safetensors")
    assert len(drawn) == config.epochs and (drawn[0] != drawn[1]).any()
    assert runs["with"].keys() == runs["without"].keys()
    assert any("seed" in name for name in runs["with"])
    for name, value in runs["with"].items():
        np.testing.assert_array_equal(value, runs["without"][name], err_msg=name)
    assert (tmp_path / "with" / "predictions.png").exists()
    assert not (tmp_path / "without" / "predictions.png").exists()
    assert not images_of(tmp_path / "without")
    # What is drawn is the average, which the last checkpoint holds.
    average = NETWORK.build_model(config, digits_source())
    average.set_weights(
        [runs["with"][f"average/{variable.path}"] for variable in average.weights]
    )
    examples = pictures.first_examples(NETWORK, digits_source(), config)
    expected = keras.ops.convert_to_numpy(average(np.float32(examples["image"])))
    np.testing.assert_allclose(drawn[1], expected, rtol=1e-4, atol=1e-5)


MIRRORED = """
import dataclasses
import sys

from tests.helpers.runs import DETECTION_CONFIG, DETECTOR
from tests.helpers.train_worker import make_devices
from train import loop
from train.data import digits

strategy = make_devices(2)
source = digits.box_scene_source(counts={"train": 24, "validation": 12})
config = dataclasses.replace(DETECTION_CONFIG, precision="mixed_bfloat16")
loop.train_and_evaluate(DETECTOR, config, source, sys.argv[1], strategy=strategy)
"""


@pytest.mark.slow
def test_mirrored_models_in_16_bits_draw(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", MIRRORED, str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "predictions.png").exists()
    assert sorted(images_of(tmp_path)) == [1]
