"""Folders take each other's place whole, or not at all."""

import os
from pathlib import Path

import pytest

from keras_mobilevit.files import whole_folder


def test_a_folder_takes_the_place_of_another(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "a.mlpackage") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [p.name for p in tmp_path.rglob("*")] == ["a.mlpackage", "new"]


def test_a_folder_that_fails_leaves_the_earlier_one(tmp_path):
    folder = tmp_path / "a.mlpackage"
    folder.mkdir()
    with pytest.raises(OSError, match="full"):
        with whole_folder(folder) as temporary:
            temporary.mkdir()
            (temporary / "half").write_text("")
            raise OSError("the disk is full")
    assert [p.name for p in tmp_path.rglob("*")] == ["a.mlpackage"]


def test_an_earlier_folder_survives_a_failed_exchange(tmp_path, monkeypatch):
    folder = tmp_path / "a.mlpackage"
    folder.mkdir()
    (folder / "earlier").write_text("")
    replace = os.replace

    def fail_to_put_in_place(source, target):
        if Path(target) == folder and Path(source).name == folder.name:
            raise OSError("the disk is full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_to_put_in_place)
    with pytest.raises(OSError, match="full"):
        with whole_folder(folder) as temporary:
            temporary.mkdir()
    assert [p.name for p in tmp_path.rglob("*")] == ["a.mlpackage", "earlier"]


def test_a_folder_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "a.mlpackage").write_text("")
    with whole_folder(tmp_path / "a.mlpackage") as temporary:
        temporary.mkdir()
    assert [p.name for p in tmp_path.rglob("*")] == ["a.mlpackage"]
    assert (tmp_path / "a.mlpackage").is_dir()
