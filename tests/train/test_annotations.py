"""Files of boxes: what is read, fixed, skipped and refused."""

import json
import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.image_files import pil_file
from tests.helpers.voc_files import examples_of, make_voc_boxes, voc_xml
from train.data.annotation_report import AnnotationReport
from train.data.box_annotations import fix_boxes
from train.data.registry import load_source

NUMBERS = st.one_of(st.floats(-500, 1500), st.just(float("nan")), st.just(np.inf))
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]>'
    "<annotation>&c;</annotation>"
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[NUMBERS] * 4), max_size=8))
def test_repaired_boxes_are_boxes_and_all_others_are_counted(corners):
    report = AnnotationReport()
    boxes, kept = fix_boxes(corners, 640, 480, "file", report)
    assert boxes.dtype == np.float32
    assert len(boxes) == kept.sum() and len(kept) == len(corners)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    skipped = sum(
        count for kind, count in report.counts.items() if kind.endswith("skipped")
    )
    assert skipped == len(corners) - len(boxes)


def test_each_repair_by_hand():
    report = AnnotationReport()
    corners = [
        [64, 48, 320, 240],
        [320, 240, 64, 48],  # swapped
        [-64, 48, 320, 960],  # beyond
        [64, 48, 64, 240],  # no width
        [700, 48, 900, 240],  # outside
        [np.nan, 0, 1, 1],
    ]
    boxes, kept = fix_boxes(corners, 640, 480, "a.xml", report)
    np.testing.assert_allclose(
        boxes, [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5], [0, 0.1, 0.5, 1]]
    )
    assert kept.tolist() == [True, True, True, False, False, False]
    assert report.counts == {
        "boxes with swapped corners, put in order": 1,
        "boxes beyond the image, clipped": 1,
        "boxes without area, skipped": 2,
        "boxes with coordinates that are not numbers, skipped": 1,
    }


def test_boxes_in_fractions_of_the_image_are_told_or_refused(tmp_path, caplog):
    small = coco((1, 7, [0.1, 0.1, 0.5, 0.5], 0), (2, 3, [9, 6, 36, 0.5], 0))
    large = coco((1, 7, [9, 6, 36, 24], 0), (2, 3, [9, 6, 36, 24], 0))
    with caplog.at_level(logging.WARNING, "absl"):
        load_source("detection", f"coco:{make_coco(tmp_path / 'some', small, large)}")
    assert "less than a pixel wide or high, kept; if they are fractions" in caplog.text
    with pytest.raises(ValueError, match="all 4 boxes are less than a pixel wide or"):
        load_source("detection", f"coco:{make_coco(tmp_path / 'all', small, small)}")
    xml = voc_xml(("cat", 0.1, 0.1, 0.5, 0.5))
    path = make_voc_boxes(tmp_path / "voc", {"a": xml}, {"v": xml})
    with pytest.raises(ValueError, match="all 2 boxes are less than a pixel wide or"):
        load_source("detection", f"voc:{path}")


def test_voc(tmp_path, caplog):
    train = {
        "two": voc_xml(("dog", 9, 6, 45, 30), ("cat", 90, 60, 0, 0)),
        "none": voc_xml(),
        "broken": "<annotation",
        "bomb": BOMB,
        "unannotated": None,
        "gone": voc_xml(("cat", 0, 0, 9, 9)),
        "flat": voc_xml(("cat", 5, 5, 5, 9), ("cat", "x", 5, 5, 9)),
    }
    path = make_voc_boxes(
        tmp_path, train, {"v": voc_xml(("cat", 1, 1, 9, 9), difficult=1)}
    )
    (path / "JPEGImages" / "gone.jpg").unlink()
    listed = path / "ImageSets" / "Main" / "train.txt"
    listed.write_text(listed.read_text() + "two\n")
    with caplog.at_level(logging.WARNING, "absl"):
        source = load_source("detection", f"voc:{path}")
    told = caplog.text
    for message in (
        "annotations that are not valid XML, images skipped: 2, .*broken.xml",
        "annotations that are missing, images skipped: 1, .*unannotated.xml",
        "images that are missing, skipped: 1, the first in .*gone.jpg",
        "images listed twice, taken once: 1, the first in .*train.txt: two",
        "boxes without area, skipped: 1, the first in .*flat.xml",
        "coordinates that are not numbers, skipped: 1, the first in .*flat.xml",
    ):
        assert re.search(message, told), message
    assert source.class_names == ("cat", "dog")
    assert source.num_examples == {"train": 3, "validation": 1}
    two, none, flat = examples_of(source, "train")
    np.testing.assert_allclose(two["boxes"], [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]])
    assert two["classes"].tolist() == [1, 0]
    assert none["boxes"].shape == flat["boxes"].shape == (0, 4)
    assert none["classes"].shape == flat["areas"].shape == (0,)
    (held_out,) = examples_of(source, "validation")
    assert held_out["is_crowd"].tolist() == [True]
    assert held_out["areas"].tolist() == [np.inf]  # what is difficult has no size


def test_voc_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*train\.txt. Expected the layout"):
        load_source("detection", f"voc:{tmp_path}")
    one = {"a": voc_xml(("cat", 0, 0, 9, 9))}
    path = make_voc_boxes(
        tmp_path / "classes", one, {"b": voc_xml(("cow", 0, 0, 9, 9))}
    )
    with pytest.raises(ValueError, match="has classes that the training part.*cow"):
        load_source("detection", f"voc:{path}")
    path = make_voc_boxes(tmp_path / "empty", one, {"b": voc_xml()})
    with pytest.raises(ValueError, match="has 1 validation images, and no box"):
        load_source("detection", f"voc:{path}")


def make_coco(path, train: dict, val: dict):
    (path / "annotations").mkdir(parents=True)
    for part, content in (("train", train), ("val", val)):
        file = path / "annotations" / f"instances_{part}2017.json"
        file.write_text(json.dumps(content))
        (path / f"{part}2017").mkdir()
        for image in content["images"]:
            (path / f"{part}2017" / image["file_name"]).write_bytes(
                pil_file("RGB", (30, 200, 30), "JPEG")
            )
    return path


def coco(*boxes: tuple, categories=((7, "cat"), (3, "dog"))) -> dict:
    """Makes one image with objects of (id, category, bbox, is crowd)."""
    return {
        "images": [{"id": 5, "file_name": "5.jpg", "width": 90, "height": 60}],
        "categories": [{"id": key, "name": name} for key, name in categories],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": c, "bbox": b, "iscrowd": crowd}
            for i, c, b, crowd in boxes
        ],
    }


def test_coco(tmp_path, caplog):
    train = coco(
        (1, 7, [9, 6, 36, 24], 0), (4, 7, [9, 6, 36, 24], 0), (2, 3, [0, 0, 90, 60], 1)
    )
    train["images"] += [
        {"id": 6, "file_name": "6.jpg", "width": 90, "height": 60},
        {"id": 5, "file_name": "5.jpg", "width": 90, "height": 60},
    ]
    path = make_coco(tmp_path, train, coco((1, 3, [9, 6, 36, 24], 0)))
    (path / "train2017" / "6.jpg").unlink()
    with caplog.at_level(logging.WARNING, "absl"):
        source = load_source("detection", f"coco:{path}", cache=True)
    for kind in ("objects listed twice", "images listed twice", "images that are miss"):
        assert f"{kind}" in caplog.text
    assert source.class_names == ("dog", "cat")  # in the order of the ids
    (example,) = examples_of(source, "train")
    np.testing.assert_allclose(example["boxes"], [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]])
    assert example["classes"].tolist() == [1, 0]
    assert example["is_crowd"].tolist() == [False, True]
    assert example["areas"] == pytest.approx([0.16, 1.0])
    assert example["encoded"][:2] == b"\xff\xd8"


def test_coco_errors(tmp_path):
    with pytest.raises(ValueError, match="Expected one file .*instances_train"):
        load_source("detection", f"coco:{tmp_path}")
    good = coco((1, 7, [9, 6, 36, 24], 0))
    path = make_coco(tmp_path / "unknown", coco((4, 1, [9, 6, 9, 9], 0)), good)
    with pytest.raises(ValueError, match="object 4 has the category 1, which the file"):
        load_source("detection", f"coco:{path}")
    file = path / "annotations" / "instances_train2017.json"
    for content, message in (
        ("{", "is not valid JSON"),
        ("[]", "is not a file of COCO"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "no list of images"),
        ('{"images": 5}', "no list of images, annotations, categories"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_source("detection", f"coco:{path}")
    other = coco((1, 7, [9, 6, 36, 24], 0), categories=[(7, "cat")])
    path = make_coco(tmp_path / "differing", good, other)
    with pytest.raises(ValueError, match="different classes.*dog"):
        load_source("detection", f"coco:{path}")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("annotations", {"bbox": [1, 2]}, "a box that is not four numbers"),
        ("annotations", {"bbox": None}, "one of its annotations has no valid 'bbox'"),
        ("annotations", {"image_id": None}, "no valid 'image_id'"),
        ("images", {"width": None}, "one of its images has no valid 'width'"),
        ("images", {"height": 0}, "one of its images has no valid 'height'"),
        ("categories", {"name": None}, "one of its categories has no valid 'name'"),
        ("categories", {"name": "dog"}, "more than one category is called 'dog'"),
    ],
)
def test_entries_of_coco_that_are_none(tmp_path, part, change, message):
    good, bad = (coco((1, 7, [9, 6, 36, 24], 0)) for _ in range(2))
    bad[part][0] |= change
    make_coco(tmp_path, good, good)
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(bad))
    with pytest.raises(ValueError, match=rf"instances_train2017.json: .*{message}"):
        load_source("detection", f"coco:{tmp_path}")


def test_objects_without_an_id_or_an_image(tmp_path, caplog):
    train = coco((1, 7, [9, 6, 36, 24], 0), (2, 3, [0, 0, 9, 9], 0))
    for annotation in train["annotations"]:
        del annotation["id"]
        annotation["area"] = None
    train["annotations"].append({"image_id": 8, "category_id": 3, "bbox": [0, 0, 9, 9]})
    path = make_coco(tmp_path, train, coco((1, 3, [9, 6, 36, 24], 0)))
    with caplog.at_level(logging.WARNING, "absl"):
        (example,) = examples_of(load_source("detection", f"coco:{path}"), "train")
    assert example["classes"].tolist() == [1, 0]
    assert example["areas"] == pytest.approx([0.16, 0.015])
    assert "objects of images that are not listed, skipped: 1" in caplog.text


def test_annotations_that_cannot_be_read(tmp_path, caplog):
    one = voc_xml(("cat", 1, 1, 9, 9))
    train = {
        "good": one,
        "unclosed": one[:-1],
        "nameless": voc_xml(("", 1, 1, 9, 9), ("cat", 2, 2, 9, 9)),
    }
    path = make_voc_boxes(tmp_path, train, {"v": one})
    with caplog.at_level(logging.WARNING, "absl"):
        source = load_source("detection", f"voc:{path}")
    assert "not valid XML, images skipped: 1, the first in" in caplog.text
    assert "objects without a name, skipped: 1, the first in" in caplog.text
    assert source.class_names == ("cat",) and source.num_examples["train"] == 2
    (path / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        ValueError, match="train.txt is not text in UTF-8. Save it again"
    ):
        load_source("detection", f"voc:{path}")


def test_a_training_part_without_boxes_is_told_first(tmp_path):
    path = make_voc_boxes(
        tmp_path, {"a": voc_xml()}, {"v": voc_xml(("cat", 1, 1, 9, 9))}
    )
    with pytest.raises(ValueError, match="has 1 train images, and no box on any"):
        load_source("detection", f"voc:{path}")


def test_images_in_folders_of_their_own(tmp_path):
    train = coco((1, 7, [9, 6, 36, 24], 0))
    path = make_coco(tmp_path, train, train)
    train["images"][0]["file_name"] = "more/5.jpg"
    (path / "train2017" / "more").mkdir()
    (path / "train2017" / "5.jpg").rename(path / "train2017" / "more" / "5.jpg")
    file = path / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(train))
    assert load_source("detection", f"coco:{path}").num_examples["train"] == 1


def test_unknown_source():
    with pytest.raises(ValueError, match="Detection takes `digits`, `voc:PATH`"):
        load_source("detection", "folder:photos")


def test_each_image_holds_its_own_objects_and_no_more(tmp_path):
    """Whatever the others have: 130 on one image add nothing to the next."""
    crowded = voc_xml(*[("cat", i % 80, i % 50, 90, 60) for i in range(130)])
    one = voc_xml(("cat", 1, 1, 9, 9))
    path = make_voc_boxes(tmp_path, {"a": crowded, "b": one}, {"v": crowded, "w": one})
    source = load_source("detection", f"voc:{path}")
    for split in ("train", "validation"):
        examples = examples_of(source, split)
        for name in ("boxes", "classes", "is_crowd", "areas"):
            assert [len(example[name]) for example in examples] == [130, 1]
    spec = source.examples("train", 1).element_spec
    assert spec["boxes"].shape.as_list() == [None, 4]
    assert spec["classes"].shape.as_list() == [None]
