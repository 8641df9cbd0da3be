"""COCO's measure, through this project's own reading and scoring."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.image_files import pil_file
from train.data.annotation_report import AnnotationReport
from train.data.coco.annotation_file import coco_categories, read_coco
from train.data.coco.boxes import coco_objects
from train.data.source import Source
from train.tasks.detection.average_precision import average_precision
from train.tasks.detection.task import DETECTION

COCO_EVAL = Path(__file__).parents[3] / "shared" / "data" / "coco_eval"


def padded(rows: list[np.ndarray], filler=0) -> np.ndarray:
    shape = (len(rows), max(map(len, rows)), *rows[0].shape[1:])
    array = np.full(shape, filler, rows[0].dtype)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


@pytest.mark.skipif(not COCO_EVAL.exists(), reason="COCO's annotations are not here")
def test_known_numbers_of_coco(tmp_path):
    """100 images of COCO and made-up detections, as an evaluation scores them."""
    file = COCO_EVAL / "instances_val2014_100.json"
    content = read_coco(file)
    for image in content["images"]:
        picture = pil_file("L", 0, "PNG", (image["width"], image["height"]))
        (tmp_path / image["file_name"]).write_bytes(picture)
    categories = coco_categories(content, file, AnnotationReport())
    labels = {key: label for label, key in enumerate(categories)}
    images = list(coco_objects(content, labels, tmp_path, file, AnnotationReport()))
    assert sum(len(image.boxes) for image in images) == 839
    found = json.loads(
        (COCO_EVAL / "instances_val2014_fakebbox100_results.json").read_text()
    )
    sizes = [(image["height"], image["width"]) for image in content["images"]]
    columns = {"boxes": [], "scores": [], "classes": []}
    for image, (height, width) in zip(content["images"], sizes):
        rows = [row for row in found if row["image_id"] == image["id"]]
        xywh = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        columns["boxes"].append(corners / [width, height, width, height])
        columns["scores"].append(np.array([row["score"] for row in rows], float))
        classes = [labels[row["category_id"]] for row in rows]
        columns["classes"].append(np.array(classes, int))
    predictions = {
        "boxes": padded(columns["boxes"]),
        "scores": padded(columns["scores"]),
        "classes": padded(columns["classes"], -1),
        "true_image_size": np.array(sizes),
        "true_boxes": padded([image.boxes for image in images]),
        "true_classes": padded([image.classes for image in images], -1),
        "true_is_crowd": padded([image.is_crowd for image in images]),
        "true_areas": padded([image.areas for image in images]),
    }
    source = Source("coco", tuple(categories.values()), {}, None)
    metrics = DETECTION.score(source.class_names, predictions)
    assert metrics["AP"] == pytest.approx(0.505, abs=5e-4)
    assert metrics["AP50"] == pytest.approx(0.697, abs=5e-4)
    assert metrics["AP75"] == pytest.approx(0.573, abs=5e-4)
    per_class = [metrics[f"AP/{name}"] for name in categories.values()]
    known = [value for value in per_class if value >= 0]
    assert np.mean(known) == pytest.approx(metrics["AP"], abs=1e-9)


def image(**changes) -> dict:
    """One image, of which both objects are found where they are."""
    corners = np.array([[10.0, 10, 50, 60], [100, 20, 160, 90]])
    return {
        "boxes": corners,
        "scores": np.array([0.9, 0.8]),
        "classes": np.array([0, 1]),
        "true_boxes": corners,
        "true_classes": np.array([0, 1]),
        "is_crowd": np.array([False, False]),
    } | changes


def test_perfect_and_wrong_detections():
    names = ("a", "b", "never")
    metrics = average_precision([image()], names)
    for name in ("AP", "AP50/a", "AP/b"):
        assert metrics[name] == pytest.approx(1.0)
    assert metrics["AP/never"] == -1
    wrong = image(classes=np.array([0, 0]))
    metrics = average_precision([wrong], names)
    assert metrics["AP50/a"] == pytest.approx(1.0)
    assert metrics["AP50/b"] == 0
    moved = image(boxes=image()["boxes"] + [8, 0, 8, 0])  # of 40 and of 60 pixels
    metrics = average_precision([moved], names)
    assert metrics["AP50"] == pytest.approx(1.0)
    assert metrics["AP75"] == pytest.approx(0.5)


def test_nothing_found_and_crowds():
    nothing = image(boxes=np.zeros((0, 4)), scores=np.zeros(0), classes=np.zeros(0))
    assert average_precision([nothing, nothing], ("a", "b"))["AP"] == 0
    # What is found in a crowd counts neither way.
    crowd = image(is_crowd=np.array([False, True]))
    metrics = average_precision([crowd], ("a", "b"))
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AP/b"] == -1


def test_a_difficult_object_takes_one_detection():
    """By hand: of three detections, best first, the true one is the last.

    Of a crowd, both others are forgiven, and the precision at a recall of 1 is 1/1. A
    difficult object takes the first, and the second is wrong: 1/2. A detection of a
    part of it, which lies in a crowd, does not overlap a difficult object by half: 1/3.
    """
    difficult, easy = [100.0, 20, 160, 90], [10.0, 10, 50, 60]

    def measure(area: float, *found) -> float:
        one = image(
            boxes=np.array([*found, easy]),
            scores=np.array([0.9, 0.8, 0.7]),
            classes=np.zeros(3, int),
            true_boxes=np.array([difficult, easy]),
            true_classes=np.zeros(2, int),
            is_crowd=np.array([True, False]),
            true_areas=np.array([area, 2000.0]),
        )
        return average_precision([one], ("a",))["AP50"]

    assert measure(4200.0, difficult, difficult) == pytest.approx(1)
    assert measure(np.inf, difficult, difficult) == pytest.approx(1 / 2)
    part = [100.0, 20, 120, 40]
    assert measure(4200.0, part, part) == pytest.approx(1)
    assert measure(np.inf, part, part) == pytest.approx(1 / 3)
