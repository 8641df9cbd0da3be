"""How a folder without `train` and `validation` is split."""

import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.batches import listed
from train.data.folder_split import split_class
from train.data.registry import load_source
from train.data.source import SPLITS

COUNTS = {"cat": 2, "dog": 3, "emu": 40, "fox": 200}
STATED = {"cat/000.jpg", "cat/004.jpg", "cat/010.jpg", "dog/007.jpg"}


def write(path: Path, names, prefix: bytes = b"") -> Path:
    """Writes files `<class>/<name>` of different contents."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(prefix + name.encode())
    return path


def photos(counts=COUNTS) -> list[str]:
    return [f"{name}/{i:03}.jpg" for name, n in counts.items() for i in range(n)]


def split(path: Path) -> dict[str, set[str]]:
    """Returns `{split: {<class>/<name>}}` as training sees it."""
    source = load_source("classification", f"folder:{path}")
    return {
        part: {
            "/".join(id.decode().split("/")[-2:])
            for id in source.columns[part]["id"].numpy()
        }
        for part in SPLITS
    }


def test_each_photo_is_on_one_side_and_each_class_on_both(tmp_path):
    source = load_source("classification", f"folder:{write(tmp_path, photos())}")
    assert source.class_names == tuple(COUNTS)
    for part in SPLITS:
        assert set(source.columns[part]["label"].numpy()) == set(range(len(COUNTS)))
        for example in listed(source, part):
            folder = source.class_names[example["label"]]
            assert f"/{folder}/" in example["id"].decode()
    parts = split(tmp_path)
    assert parts["train"] | parts["validation"] == set(photos())
    assert not parts["train"] & parts["validation"]


@pytest.mark.parametrize("count", range(2, 12))
def test_small_classes_have_both_sides(count, tmp_path):
    for seed in range(20):
        files = [f"class{seed}/{i}.jpg" for i in range(count)]
        write(tmp_path, files)
        parts = split_class([str(tmp_path / file) for file in files])
        assert all(parts.values())
        assert sum(map(len, parts.values())) == count


def test_a_fifth_of_a_large_class_validates(tmp_path):
    write(tmp_path, photos({"a": 2000, "b": 2000}))
    counts = Counter(name.split("/")[0] for name in split(tmp_path)["validation"])
    for name in "ab":  # 18 is the standard deviation
        assert counts[name] == pytest.approx(400, abs=54)


def test_the_split_is_the_stated_one(tmp_path):
    """A change of the rule would evaluate old models on their training photos."""
    write(tmp_path, photos({"cat": 12, "dog": 12}))
    assert split(tmp_path)["validation"] == STATED


def test_the_split_is_the_same_elsewhere(tmp_path, monkeypatch):
    here = write(tmp_path / "here", photos())
    there = write(tmp_path / "validation" / "there", photos(), prefix=b"other bytes")
    monkeypatch.chdir(there)
    assert split(here) == split(there) == split(Path("."))


def test_the_split_does_not_depend_on_the_order(tmp_path):
    files = [str(write(tmp_path, [name]) / name) for name in photos({"fox": 200})]
    shuffled = random.Random(0).sample(files, len(files))
    first, second = split_class(files), split_class(shuffled)
    for part in SPLITS:
        assert first[part] == sorted(second[part])


def test_no_photo_changes_sides_as_photos_are_added(tmp_path):
    names = random.Random(0).sample(photos({"emu": 60, "fox": 200}), 260)
    before = split(write(tmp_path, names[:60]))
    for end in range(100, 261, 40):
        after = split(write(tmp_path, names[:end]))
        for part in SPLITS:
            assert before[part] <= after[part]
        before = after


def test_a_letter_that_macos_writes_as_two_characters_changes_nothing(tmp_path):
    composed = [f"café/{i}é.jpg" for i in range(40)]
    decomposed = [f"cafe\u0301/{i}e\u0301.jpg" for i in range(40)]
    sides = []
    for folder, names in ("composed", composed), ("decomposed", decomposed):
        path = write(tmp_path / folder, names)
        parts = split_class([str(path / name) for name in names])
        sides.append([str(path / name) in parts["train"] for name in names])
    assert sides[0] == sides[1]


def test_copies_stay_together_and_train_if_one_does(tmp_path):
    write(tmp_path, photos())
    before = split(tmp_path)
    copies = {}
    for part in SPLITS:
        for name in sorted(before[part])[:10]:
            for kind in "abc":
                copy = f"{name[:-4]} copy {kind}.jpg"
                shutil.copy(tmp_path / name, tmp_path / copy)
                copies[copy] = name
    after = split(tmp_path)
    for copy, name in copies.items():
        assert (copy in after["train"]) == (name in after["train"])
    assert before["train"] - after["train"] <= set(photos({"cat": 2, "dog": 3}))


def test_photos_of_the_same_size_and_end_are_no_copies(tmp_path):
    """Such as bitmaps with a white border."""
    for i in range(50):
        write(tmp_path, [f"a/{i:02}.bmp"])
        with open(tmp_path / f"a/{i:02}.bmp", "ab") as file:
            file.write(b"\xff" * 5000)
    parts = split_class([str(file) for file in sorted((tmp_path / "a").iterdir())])
    assert 3 <= len(parts["validation"]) <= 18


def test_a_file_that_cannot_be_read_is_split_like_any_other(tmp_path):
    names = ["gone 1.jpg", "gone 2.jpg", "gone 3.jpg"]
    parts = split_class([str(tmp_path / "a" / name) for name in names])
    assert sum(map(len, parts.values())) == 3 and all(parts.values())


@pytest.mark.parametrize("copies", [0, 2])
def test_a_class_with_a_single_photo_is_refused(copies, tmp_path):
    write(tmp_path, [*photos(), "gnu/1.jpg"])
    for i in range(copies):
        shutil.copy(tmp_path / "gnu/1.jpg", tmp_path / f"gnu/copy {i}.jpg")
    with pytest.raises(ValueError, match="a single photo in .*: gnu. .*Add photos"):
        load_source("classification", f"folder:{tmp_path}")


def test_the_rule_is_told(tmp_path, caplog):
    with caplog.at_level("INFO", logger="absl"):
        split(write(tmp_path, photos()))
    assert (
        f"no train/ and validation/ in {tmp_path}: of each class about 20 % of the "
        "photos validate, chosen by the SHA-256 of <class>/<file name>"
    ) in caplog.text


def test_class_folders_beside_train_and_validation_do_not_count(tmp_path):
    parts = [f"{part}/{name}" for part in SPLITS for name in ("a/1.jpg", "b/1.jpg")]
    write(tmp_path, [*parts, "c/1.jpg", "c/2.jpg"])
    source = load_source("classification", f"folder:{tmp_path}")
    assert source.class_names == ("a", "b")
    assert source.num_examples == {"train": 2, "validation": 2}


@pytest.mark.parametrize("name", SPLITS)
def test_pictures_of_trains_are_a_class(name, tmp_path):
    write(tmp_path, photos({"bus": 5, name: 5}))
    source = load_source("classification", f"folder:{tmp_path}")
    assert source.class_names == ("bus", name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1.jpg", "train/b/1.jpg"], "validation is not a folder. .*without"),
        (["validation/a/1.jpg", "a/1.jpg"], "train is not a folder. .*without"),
        (
            ["train/1.jpg", "train/a/1.jpg", "bus/1.jpg"],
            "as a class has, and the .* a,",
        ),
        (["1.jpg", "a/1.jpg", "a/2.jpg"], "outside of class folders, 1 such as 1.jpg"),
        (["1.jpg", "2.jpg"], "outside of class folders, 2 .*Move each photo into"),
        (["a/1.jpg", "a/2.jpg"], "only one class, a: .* or more, as .*/<class>/"),
        (["a/1.jpg", "a/2.jpg", "b/1.txt"], "Class folders without images in .*: b."),
        (["Training/a/1.jpg", "Test/a/1.jpg"], "No images in .*. Expected .*/<class>"),
    ],
)
def test_layouts_that_are_refused(names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_source("classification", f"folder:{write(tmp_path, names)}")


def test_other_files_are_skipped(tmp_path, caplog):
    write(tmp_path, [*photos(), "notes.txt", "cat/notes.txt", ".git/1.jpg"])
    with caplog.at_level("WARNING", logger="absl"):
        assert split(tmp_path)["train"] <= set(photos())
    assert "1 .txt" in caplog.text and "1 file outside of the class" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse the name")
def test_a_folder_whose_name_is_not_utf8_is_named(tmp_path):
    for name in (b"cat", b"\xe4"):  # Latin-1, as in old archives
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        with open(os.path.join(folder, b"a.jpg"), "wb") as file:
            file.write(b"any")
    with pytest.raises(ValueError, match="is not UTF-8. Rename it"):
        load_source("classification", f"folder:{tmp_path}")


def test_photos_in_train_and_validation_themselves_are_explained(tmp_path):
    for part in ("train", "validation"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.jpg").write_bytes(b"any")
    with pytest.raises(ValueError, match="have photos directly inside. Move"):
        load_source("classification", f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_the_part_that_validates_has_several_names(name, tmp_path):
    for part in ("train", name):
        for class_name in ("cat", "dog"):
            folder = tmp_path / part / class_name
            folder.mkdir(parents=True)
            for index in range(1 + (part == "train")):
                content = f"{part}{class_name}{index}".encode()
                (folder / f"{index}.jpg").write_bytes(content)
    source = load_source("classification", f"folder:{tmp_path}")
    assert source.num_examples == {"train": 4, "validation": 2}
    (tmp_path / "validation").mkdir(exist_ok=True)
    if name != "validation":
        with pytest.raises(ValueError, match=f"the folders validation and {name}, and"):
            load_source("classification", f"folder:{tmp_path}")
