"""Data folders with what is no image, or far too large: named, and never waited for."""

import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from keras_mobilevit import image_files
from keras_mobilevit.predict import load_image
from tests.helpers.image_files import pil_file
from tests.helpers.voc_files import (
    PLAIN_MASK,
    examples_of,
    make_voc_boxes,
    make_voc_masks,
    voc_xml,
)
from train.data import box_annotations, unreadable
from train.data import pipeline as data
from train.data.masks import read_mask
from train.data.plan import MAX_OBJECTS
from train.data.registry import load_source
from train.data.source import image_columns, indexed_source

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
SECONDS = 60  # loading takes less, and waiting for a named pipe never ends
XML = voc_xml(("cat", 9, 6, 45, 30))


@pytest.fixture(autouse=True)
def deadline():
    """Ends a test that waits for a named pipe."""

    def end(*_):
        raise TimeoutError("The test waits for something.")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_sparse(path: Path) -> None:
    """Makes a file of 30 GB that takes no space; it begins as a JPEG."""
    path.write_bytes(pil_file("RGB", "red", "JPEG"))
    os.truncate(path, 30 * 2**30)


def make_circle(path: Path) -> None:
    path.symlink_to(path)


STRANGE = [make_pipe, make_link, make_sparse, make_circle]


def photo(value: int) -> bytes:
    return pil_file("RGB", (value, 0, 0), "PNG")


def make_photos(path: Path) -> Path:
    for name in "ab":
        (path / name).mkdir(parents=True)
        for index in range(4):
            value = 40 * index + 9 * (name == "a")
            (path / name / f"{index}.png").write_bytes(photo(value))
    return path


@pytest.mark.parametrize("make", STRANGE)
def test_in_a_folder_of_photos(make, tmp_path, caplog):
    make(make_photos(tmp_path) / "a" / "strange.jpg")
    source = load_source("classification", f"folder:{tmp_path}", cache=True)
    assert sum(source.num_examples.values()) == 8
    assert "1 .jpg that is no file, or larger than 536,870,912 bytes" in caplog.text


@pytest.mark.parametrize("make", STRANGE)
def test_as_an_image_with_boxes(make, tmp_path, caplog):
    path = make_voc_boxes(tmp_path, {"a": XML, "b": XML}, {"c": XML})
    (path / "JPEGImages" / "a.jpg").unlink()
    make(path / "JPEGImages" / "a.jpg")
    source = load_source("detection", f"voc:{path}")
    assert source.num_examples["train"] == 1
    assert "images that cannot be read, skipped: 1" in caplog.text
    assert "JPEGImages/a.jpg" in caplog.text


@pytest.mark.parametrize("make", STRANGE)
def test_as_an_annotation(make, tmp_path, caplog):
    path = make_voc_boxes(tmp_path, {"a": XML, "b": XML}, {"c": XML})
    (path / "Annotations" / "a.xml").unlink()
    make(path / "Annotations" / "a.xml")
    source = load_source("detection", f"voc:{path}")
    assert source.num_examples["train"] == 1
    assert "annotations that cannot be read, images skipped: 1" in caplog.text
    assert "Annotations/a.xml" in caplog.text


@pytest.mark.parametrize("make", STRANGE)
def test_as_a_mask(make, tmp_path, caplog):
    masks = {name: PLAIN_MASK for name in "ab"}
    path = make_voc_masks(tmp_path, masks, {"c": PLAIN_MASK})
    (path / "SegmentationClass" / "a.png").unlink()
    make(path / "SegmentationClass" / "a.png")
    source = load_source("segmentation", f"voc:{path}")
    assert source.num_examples["train"] == 1
    assert "masks that cannot be read, skipped: 1" in caplog.text


@pytest.mark.parametrize("make", [make_pipe, make_link, make_sparse])
def test_as_a_file_of_coco(make, tmp_path):
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        make(tmp_path / "annotations" / f"instances_{part}.json")
    with pytest.raises(ValueError, match="instances_train.json (is a|has 32,212)"):
        load_source("detection", f"coco:{tmp_path}")


@pytest.mark.parametrize("make", STRANGE)
def test_in_predict(make, tmp_path):
    make(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match="photo.jpg"):
        load_image(str(tmp_path / "photo.jpg"))
    if make is not make_circle:
        assert "photo.jpg" in unreadable.with_reason(str(tmp_path / "photo.jpg"))


def test_a_mask_with_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "mask.png"
    path.write_bytes(pil_file("P", 1, "PNG", (90, 60)))
    assert read_mask(path) is not None
    monkeypatch.setattr(image_files, "MAX_PIXELS", 90 * 60 - 1)
    assert read_mask(path) is None


def test_a_format_that_starts_other_programs_is_none(tmp_path):
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    with pytest.raises(ValueError, match="a.jpg.*in no known format"):
        image_files.read_header(tmp_path / "a.jpg")


def test_links_that_lead_in_circles_end(tmp_path):
    path = make_voc_boxes(tmp_path, {"a": XML}, {"c": XML})
    for name in "xyz":  # without a limit 3**40 folders
        (path / "JPEGImages" / name).symlink_to(path / "JPEGImages")
    assert load_source("detection", f"voc:{path}").num_examples["train"] == 1


LATIN = b"caf\xe9.png"  # as old archives have names


def test_names_that_are_not_utf8_are_read(tmp_path, caplog):
    folder = make_photos(tmp_path) / "a"
    paths = [os.fsencode(folder) + b"/" + name for name in (LATIN, b"\xff.png")]
    for path, content in zip(paths, (photo(200), b"damaged")):
        with open(path, "wb") as file:
            file.write(content)
    source = load_source("classification", f"folder:{tmp_path}")
    assert sum(source.num_examples.values()) == 10
    skipped = []
    for split in source.num_examples:
        for batch in data.eval_batches(source, split, 32, 16, 1.0):
            skipped += data.unreadable(source, split, batch)
    assert skipped == [os.fsdecode(paths[1])]
    assert "in no known format" in unreadable.reason(skipped[0])


def test_such_names_stay_as_they_are_with_and_without_a_cache(tmp_path):
    file = os.fsdecode(os.fsencode(tmp_path) + b"/" + LATIN)
    Path(file).write_bytes(photo(9))
    paths = {"train": [file], "validation": []}
    for cache in (False, True):
        columns = image_columns("folder", paths, cache)
        source = indexed_source("folder", (), {"train": columns["train"]})
        assert source.name_of("train", 0) == file
        (example,) = examples_of(source, "train")
        assert example.get("path", os.fsencode(file)) == os.fsencode(file)


def test_an_image_with_too_many_objects_is_left_out(tmp_path, caplog):
    """It would make every image of its batch as large."""
    few, many = (
        [("cat", 9 + i / 1000, 6, 45, 30) for i in range(count)]
        for count in (MAX_OBJECTS, MAX_OBJECTS + 1)
    )
    xmls = {"a": voc_xml(*few), "b": voc_xml(*many)}
    path = make_voc_boxes(tmp_path / "voc", xmls, {"c": XML})
    with caplog.at_level(logging.WARNING, "absl"):
        source = load_source("detection", f"voc:{path}")
    assert [len(x["classes"]) for x in examples_of(source, "train")] == [MAX_OBJECTS]
    assert "images with more than 4,096 objects, skipped" in caplog.text
    assert "b.jpg" in caplog.text


def test_the_boxes_of_too_many_objects_are_not_read(tmp_path, monkeypatch):
    """400,000 objects in 4 MB took 4 seconds."""
    many = f"<annotation>{'<object/>' * (MAX_OBJECTS + 1)}</annotation>"
    path = make_voc_boxes(tmp_path / "voc", {"a": XML, "b": many}, {"c": XML})
    read: list[int] = []

    def place_boxes(corners, *arguments):
        read.append(len(corners))
        return box_annotations.place_boxes(corners, *arguments)

    monkeypatch.setattr("train.data.voc.boxes.place_boxes", place_boxes)
    source = load_source("detection", f"voc:{path}")
    assert read == [1, 1] and source.num_examples["train"] == 1


def test_such_an_image_of_coco_is_left_out(tmp_path):
    (tmp_path / "annotations").mkdir()
    for part, color in (("train", 9), ("val", 90)):
        (tmp_path / part).mkdir()
        rows = []
        for key, count in ((1, 1), (2, MAX_OBJECTS + 1)):
            content = pil_file("RGB", (color + key, 0, 0), "PNG")
            (tmp_path / part / f"{key}.png").write_bytes(content)
            rows += [
                {"image_id": key, "category_id": 1, "bbox": [x, 6, 30, 20]}
                for x in np.linspace(1, 50, count).tolist()
            ]
        content = {
            "images": [
                {"id": key, "file_name": f"{key}.png", "width": 90, "height": 60}
                for key in (1, 2)
            ],
            "annotations": rows,
            "categories": [{"id": 1, "name": "cup"}],
        }
        file = tmp_path / "annotations" / f"instances_{part}.json"
        file.write_text(json.dumps(content), "utf-8")
    source = load_source("detection", f"coco:{tmp_path}")
    assert source.num_examples == {"train": 1, "validation": 1}
