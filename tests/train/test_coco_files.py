"""COCO's files as tools write and people join them: ids, names and categories."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.image_files import pil_file
from tests.helpers.voc_files import examples_of
from train.data.coco import boxes
from train.data.registry import load_source

SIZE = (90, 60)
BOX = [9, 6, 36, 24]


def entry(key: int, name: str, size=SIZE) -> dict:
    return {"id": key, "file_name": name, "width": size[0], "height": size[1]}


def thing(image: int, category: int = 1, box=BOX, **more) -> dict:
    return {"image_id": image, "category_id": category, "bbox": list(box), **more}


def content(images, annotations, categories=((1, "cup"), (2, "dog"))) -> dict:
    return {
        "images": images,
        "annotations": annotations,
        "categories": [
            category
            if isinstance(category, dict)
            else dict(zip(("id", "name"), category))
            for category in categories
        ],
    }


GOOD = content([entry(1, "v.png")], [thing(1), thing(1, 2)])


def load(path: Path, train: dict, val: dict = GOOD, encoding="utf-8", files=None):
    """Writes both parts, and a picture for each name, and loads them."""
    (path / "annotations").mkdir(parents=True)
    for part, rows, color in (("train", train, 50), ("val", val, 90)):
        file = path / "annotations" / f"instances_{part}.json"
        file.write_bytes(json.dumps(rows).encode(encoding))
        (path / part).mkdir()
        names = [row["file_name"] for row in rows["images"]]
        for name in files or names:
            picture = path / part / name
            picture.parent.mkdir(exist_ok=True, parents=True)
            picture.write_bytes(pil_file("RGB", (color, 0, 0), "PNG", SIZE))
    return load_source("detection", f"coco:{path}")


def counts(source, split="train") -> dict[str, int]:
    """Returns the number of objects of each image."""
    examples = examples_of(source, split)
    return {Path(x["path"].decode()).name: len(x["classes"]) for x in examples}


@pytest.mark.parametrize(
    "ids", [(0, 0, 0, 0), (1, 2, 1, 2), (1, 1, 2, 2), (None,) * 4, ("a", "a", 3, 3)]
)
def test_ids_of_annotations_mean_nothing(ids, tmp_path):
    boxes = (BOX, [0, 0, 9, 9]) * 2
    things = [
        thing(image, box=box, id=key)
        for image, box, key in zip((1, 1, 2, 2), boxes, ids)
    ]
    train = content([entry(1, "a.png"), entry(2, "b.png")], [*things, thing(1, 2)])
    assert counts(load(tmp_path, train)) == {"a.png": 3, "b.png": 2}


def test_an_object_listed_twice_is_taken_once(tmp_path, caplog):
    """Which has the same class and box: with another of either it is another one."""
    things = [thing(1, id=1), thing(1, id=9), thing(1, 2), thing(1, box=[9, 6, 36, 25])]
    with caplog.at_level(logging.WARNING, "absl"):
        source = load(tmp_path, content([entry(1, "a.png")], things))
    (example,) = examples_of(source, "train")
    assert example["classes"].tolist() == [0, 1, 0]
    assert "objects listed twice, taken once: 1, the first in" in caplog.text


@pytest.mark.parametrize(
    ("images", "categories", "message"),
    [
        (
            [entry(1, "a.png"), entry(1, "b.png")],
            [(1, "cup"), (2, "dog")],
            "train.json: the image id 1 stands for two files, a.png and b.png, so",
        ),
        (
            [entry(1, "a.png"), entry(1, "a.png", (45, 30))],
            [(1, "cup"), (2, "dog")],
            "a.png, id 1, is listed twice, with 90x60 and with 45x30 pixels. Remove",
        ),
        (
            [entry(1, "x/a.png"), entry(2, "y/a.png")],
            [(1, "cup"), (2, "dog")],
            "name two images, x/a.png and y/a.png, but there is only .*a.png for both",
        ),
        (
            [entry(1, "a.png")],
            [(1, "cup"), (2, "dog"), (1, "dog")],
            "the category id 1 stands for two names, 'cup' and 'dog', so",
        ),
        (
            [entry(1, "a.png")],
            [(1, "cup"), (2, "dog"), (3, " dog ")],
            "more than one category is called 'dog': the ids 2 and 3. Rename one",
        ),
        ([entry(1, "a.png")], [(1, "cup"), (2, " ")], "the category 2 has no name"),
        (
            [entry(1, "a.png")],
            [(1, "cup")],
            r"Only in validation: dog\. Write the same",
        ),
    ],
)
def test_what_is_ambiguous_is_refused(images, categories, message, tmp_path):
    things = [thing(1), thing(1, 2)] if len(categories) > 1 else [thing(1)]
    train = content(images, things, categories)
    flat = ["a.png"] if images[0]["file_name"].startswith("x/") else None
    with pytest.raises(ValueError, match=message):
        load(tmp_path, train, copy.deepcopy(GOOD), files=flat and [*flat, "v.png"])


def test_an_image_under_several_ids_has_the_objects_of_all(tmp_path, caplog):
    """As two people list it who labeled different classes, on copies of two sizes."""
    images = [entry(1, "a.png"), entry(2, "./a.png"), entry(3, "a.png", (180, 120))]
    things = [thing(1), thing(2, 2), thing(3, box=[0, 0, 180, 120]), thing(2)]
    with caplog.at_level(logging.WARNING, "absl"):
        source = load(tmp_path, content([*images, entry(1, "a.png")], things))
    (example,) = examples_of(source, "train")
    assert example["classes"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(example["boxes"][2], [0, 0, 1, 1])
    for message in (
        "images listed twice, taken once: 1, the first in a.png",
        "images listed under several ids, with the objects of all of them: 1, the",
        "objects listed twice, taken once: 1",
    ):
        assert message in caplog.text


def test_categories_are_the_same_where_their_names_are(tmp_path, caplog):
    val = content(
        [entry(1, "v.png")], [thing(1, 2), thing(1, 7)], [(7, "dog"), (2, "cup ")]
    )
    train = content(
        [entry(1, "a.png")], [thing(1), thing(1, 2)], [*GOOD["categories"]] * 2
    )
    with caplog.at_level(logging.WARNING, "absl"):
        source = load(tmp_path, train, val)
    assert source.class_names == ("cup", "dog")
    (example,) = examples_of(source, "validation")
    assert example["classes"].tolist() == [0, 1]
    assert "have other ids in val than in train" in caplog.text
    assert "categories listed twice, taken once: 2" in caplog.text


def test_names_of_categories_that_are_nearly_the_same_are_told(tmp_path, caplog):
    names = [(1, "cup"), (2, "Cup"), (3, "hot dog"), (4, "hotdog")]
    rows = content([entry(1, "a.png")], [thing(1, key) for key, _ in names], names)
    with caplog.at_level(logging.WARNING, "absl"):
        assert len(load(tmp_path, rows, rows).class_names) == 4
    assert "has the classes 'cup', 'Cup', whose names differ only" in caplog.text
    assert "has the classes 'hot dog', 'hotdog', whose names" in caplog.text


@pytest.mark.parametrize(
    ("project", "names"),
    [("cells", ["red", "white"]), ("cup", ["cup"]), ("all", ["dog", "cup", "cat"])],
)
def test_a_category_above_the_others_is_no_class(project, names, tmp_path, caplog):
    above = {"id": 0, "name": project, "supercategory": "none"}
    rows = content(
        [entry(1, "a.png")],
        [thing(1, i) for i, _ in enumerate(names, 1)],
        [
            above,
            *(
                {"id": i, "name": name, "supercategory": project}
                for i, name in enumerate(names, 1)
            ),
        ],
    )
    with caplog.at_level(logging.WARNING, "absl"):
        source = load(tmp_path, rows, rows)
    assert source.class_names == tuple(names)
    assert f"category 0, {project!r}, is not a class: it has no obj" in caplog.text
    (example,) = examples_of(source, "train")
    assert example["classes"].tolist() == list(range(len(names)))


def test_a_category_above_others_with_an_object_in_one_part_is_a_class(tmp_path):
    categories = [
        {"id": 1, "name": "animal"},
        {"id": 2, "name": "cat", "supercategory": "animal"},
    ]
    parts = [
        content([entry(1, f"{key}.png")], [thing(1, key)], categories) for key in (1, 2)
    ]
    for index, (train, val) in enumerate((parts, parts[::-1])):
        source = load(tmp_path / str(index), *copy.deepcopy((train, val)))
        assert source.class_names == ("animal", "cat")


def test_classes_without_an_object_to_learn_are_told(tmp_path, caplog):
    train = content(
        [entry(1, "a.png")], [thing(1), thing(1, 2, iscrowd=1)], GOOD["categories"]
    )
    with caplog.at_level(logging.WARNING, "absl"):
        load(tmp_path / "some", train)
    assert "1 of 2 classes have no training object that could be learned" in caplog.text
    assert "will not find them: dog." in caplog.text
    train = content([entry(1, "a.png")], [thing(1, iscrowd=1)], GOOD["categories"])
    with pytest.raises(ValueError, match="all training objects are crowds or marked"):
        load(tmp_path / "none", train)
    with caplog.at_level(logging.WARNING, "absl"):
        load(tmp_path / "validation", GOOD, train)
    assert "all validation objects are crowds or marked as difficult" in caplog.text


@pytest.mark.parametrize("name", [r"train\a.png", "C:\\data\\a.png", "data/x/a.png"])
def test_names_of_files_with_another_path(name, tmp_path):
    train = content([entry(1, name)], [thing(1), thing(1, 2)])
    assert counts(load(tmp_path, train, files=["a.png", "v.png"])) == {"a.png": 2}


@pytest.mark.parametrize("name", ["/x/b.png", "../b.png", r"C:\b.png", r"\\x\y\b.png"])
def test_the_disk_is_not_asked_for_files_outside(name, tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    asked = []
    monkeypatch.setattr(boxes, "_is_file", lambda path: asked.append(path))
    with pytest.raises(ValueError, match="b.png', which is outside of"):
        boxes._Folder(tmp_path).find(name)
    assert set(asked) == {tmp_path / "b.png"}


def test_encodings(tmp_path):
    names = [(1, "größe"), (2, "dog")]
    rows = content([entry(1, "a.png")], [thing(1), thing(1, 2)], names)
    source = load(tmp_path / "mark", rows, rows, "utf-8-sig")
    assert source.class_names == ("größe", "dog")
    for encoding in ("utf-16", "utf-16-le"):
        with pytest.raises(
            ValueError, match="train.json is not (text in UTF-8|valid J)"
        ):
            load(tmp_path / encoding, rows, rows, encoding)


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path, caplog):
    train = content([entry(1, "a.png"), entry(2, "b.png")], [thing(1), thing(1, 2)])
    load(tmp_path, train)
    (tmp_path / "train" / "b.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "absl"):
        assert counts(load_source("detection", f"coco:{tmp_path}")) == {"a.png": 2}
    assert "images that cannot be read, skipped: 1, the first in" in caplog.text


def test_the_same_picture_in_both_parts_is_told(tmp_path, caplog):
    load(tmp_path, GOOD)
    assert "are training images, too" not in caplog.text
    (tmp_path / "train" / "v.png").write_bytes(
        (tmp_path / "val" / "v.png").read_bytes()
    )
    with caplog.at_level(logging.WARNING, "absl"):
        load_source("detection", f"coco:{tmp_path}")
    assert "1 of 1 validation images are training images, too" in caplog.text


@pytest.mark.parametrize(
    ("flag", "is_crowd"), [(0, False), ("0", False), ("1", True), (True, True)]
)
def test_crowds_are_told_by_numbers_and_text(flag, is_crowd, tmp_path):
    things = [thing(1), thing(1, box=(2, 2, 9, 9), iscrowd=flag)]
    source = load(tmp_path, content([entry(1, "a.jpg")], things))
    (example,) = examples_of(source, "train")
    assert sorted(example["is_crowd"].tolist()) == sorted([False, is_crowd])


def test_numbers_and_names_beyond_all_bounds_are_left_out(tmp_path):
    huge = [thing(1, box=[10**400, 1, 5, 5]), thing(1, area=10**400)]
    images = [entry(1, "v.png"), entry(2, "b" * 300 + ".png")]
    source = load(tmp_path, content(images, huge), files=["v.png"])
    assert counts(source) == {"v.png": 1}


@pytest.mark.parametrize("place", ["../secret.png", "{folder}/secret.png", "x/../../s"])
def test_a_name_that_leads_out_of_the_folder_is_refused(place, tmp_path):
    for name in ("secret.png", "s"):
        (tmp_path / name).write_bytes(pil_file("RGB", (70, 0, 0), "PNG", SIZE))
    (tmp_path / "train" / "x").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "v.png").write_bytes(pil_file("RGB", (9, 0, 0), "PNG", SIZE))
    name = place.format(folder=tmp_path)
    for part, rows in (("train", content([entry(1, name)], [thing(1)])), ("val", GOOD)):
        file = tmp_path / "annotations" / f"instances_{part}.json"
        file.write_text(json.dumps(rows), "utf-8")
    with pytest.raises(ValueError, match=r"(secret.png|/s)'.* outside of .*/train"):
        load_source("detection", f"coco:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**300}, "no valid 'width'.*from 1 to 2147483647"),
        ({"height": 10**4000}, "no valid 'height'"),
        ({"width": True}, "no valid 'width'"),
        ({"id": True}, "no valid 'id'.*a whole number"),
        ({"id": 1.0}, "no valid 'id'"),
        ({"file_name": ["a.png"]}, "no valid 'file_name'"),
    ],
)
def test_values_of_another_type_are_named(change, message, tmp_path):
    image = entry(1, "a.png") | change
    train = content([image], [thing(1)])
    with pytest.raises(ValueError, match=f"instances_train.json: one of .*{message}"):
        load(tmp_path, train, files=["a.png"])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images":' * 50_000, "9" * 5000])
def test_json_that_python_cannot_parse_is_named(text, tmp_path):
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        file = tmp_path / "annotations" / f"instances_{part}.json"
        file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match="instances_train.json is not valid JSON: "):
        load_source("detection", f"coco:{tmp_path}")


def write_export(path: Path, part: str) -> None:
    """Writes a part of an export of Roboflow."""
    (path / part).mkdir()
    picture = pil_file("RGB", (9 + len(part), 0, 0), "PNG", SIZE)
    (path / part / "a.png").write_bytes(picture)
    rows = content([entry(1, "a.png")], [thing(1), thing(1, 2)])
    (path / part / "_annotations.coco.json").write_text(json.dumps(rows), "utf-8")


@pytest.mark.parametrize("part", ["valid", "val", "validation"])
def test_an_export_of_roboflow_is_read_as_it_is(part, tmp_path):
    for name in ("train", part):
        write_export(tmp_path, name)
    source = load_source("detection", f"coco:{tmp_path}")
    assert source.class_names == ("cup", "dog")
    for split, name in (("train", "train"), ("validation", part)):
        assert counts(source, split) == {"a.png": 2}
        (example,) = examples_of(source, split)
        assert example["path"] == str(tmp_path / name / "a.png").encode()


def test_an_export_of_roboflow_without_a_part_is_told(tmp_path):
    write_export(tmp_path, "train")
    message = "has only .*/train/_annotations.coco.json. .*valid/_annotations.coco.json"
    with pytest.raises(ValueError, match=message):
        load_source("detection", f"coco:{tmp_path}")


def test_without_annotations_both_layouts_are_told(tmp_path):
    message = "Expected one file .*instances_train.* Roboflow's train/_annotations"
    with pytest.raises(ValueError, match=message):
        load_source("detection", f"coco:{tmp_path}")
