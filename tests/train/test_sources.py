"""What sources list and what they refuse."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.batches import (
    CONFIG,
    listed,
    mean_colors,
    schedule_of,
    train_batches,
    weighed,
)
from tests.helpers.image_files import make_folder, pil_file
from train.data import pipeline as data
from train.data.registry import load_source
from train.data.source import SPLITS, evenly_spaced
from train.data.tfds import _ExampleIds


@pytest.fixture(scope="module")
def digits():
    return load_source("classification", "digits")


def test_digits_are_split_by_class(digits):
    assert digits.num_examples == {"train": 1437, "validation": 360}
    assert digits.class_names == tuple("0123456789")
    examples = {split: listed(digits, split) for split in SPLITS}
    ids = {split: {e["id"] for e in examples[split]} for split in SPLITS}
    assert len(ids["train"]) == 1437 and len(ids["validation"]) == 360
    assert not ids["train"] & ids["validation"]
    fractions = [
        np.bincount([e["label"] for e in examples[split]], minlength=10) / count
        for split, count in digits.num_examples.items()
    ]
    np.testing.assert_allclose(*fractions, atol=0.003)


def test_order_is_a_function_of_the_seed(digits):
    orders = [[e["id"] for e in listed(digits, "train", seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_a_sample_comes_from_all_over_the_split(digits):
    sample = evenly_spaced(digits, "validation", 36)
    ids = [example["id"] for example in listed(sample, "validation")]
    whole = [example["id"] for example in listed(digits, "validation")]
    assert ids == whole[::10]
    assert sample.num_examples == {"validation": 36}


PNG = pil_file("RGB", (255, 0, 0), "PNG", (8, 8))


def test_folder_source(tmp_path):
    classes = {"a": {"1.png": PNG, "2.JPG": b"", "3.txt": b""}, "b": {"4.png": PNG}}
    source = load_source("classification", f"folder:{make_folder(tmp_path, classes)}")
    assert source.class_names == ("a", "b")
    assert source.num_examples == {"train": 3, "validation": 3}
    for split in SPLITS:
        ids = [e["id"].decode() for e in listed(source, split, 3)]
        names = [
            f"{tmp_path}/{split}/{name}" for name in ("a/1.png", "a/2.JPG", "b/4.png")
        ]
        assert sorted(ids) == names
        for example in listed(source, split, 3):
            folder = source.class_names[example["label"]]
            assert f"/{split}/{folder}/" in example["id"].decode()


def without_validation(path):
    make_folder(path, {"a": {"1.png": PNG}})
    (path / "validation" / "a" / "1.png").unlink()
    (path / "validation" / "a").rmdir()
    (path / "validation").rmdir()


def without_images(path):
    make_folder(path, {"a": {"1.txt": b"text"}, "b": {}})


def with_an_empty_class(path):
    make_folder(path, {"a": {"1.png": PNG}, "b": {}})


def with_a_class_in_one_split(path):
    make_folder(path, {"a": {"1.png": PNG}})
    (path / "train" / "b").mkdir()
    (path / "train" / "b" / "1.png").write_bytes(PNG)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "No images in .*. Expected .*<class>"),
        (lambda path: path.rmdir(), r" is not a folder. Expected .*without .*/<class>"),
        (without_validation, "validation is not a folder. .*without these two folders"),
        (without_images, "No images in .*train. Expected .*.jpg, .jpeg, .png"),
        (with_an_empty_class, "Class folders without images in .*train: b. "),
        (with_a_class_in_one_split, "Only in train: b. Only in validation: none"),
    ],
)
def test_folders_that_are_refused(make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_source("classification", f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["nonsense", "", "folder:", "tfds:", "folder"])
def test_unknown_sources(name):
    with pytest.raises(ValueError, match="`digits`, `folder:PATH` or `tfds:NAME`"):
        load_source("classification", name)


def test_what_is_not_taken_is_counted(tmp_path, caplog):
    files = {"1.png": PNG, "2.tiff": b"", "3.TIFF": b"", "notes.txt": b""}
    make_folder(tmp_path, {"a": files, "b": {"1.png": PNG}})
    (tmp_path / "train" / "a" / "folder.jpg").mkdir()
    with caplog.at_level("WARNING", logger="absl"):
        source = load_source("classification", f"folder:{tmp_path}")
    assert source.num_examples == {"train": 2, "validation": 2}
    assert "1 .tiff, 1 .TIFF, 1 folder, 1 .txt" in caplog.text


def test_one_class_is_refused(tmp_path):
    """Also beside folders that are no classes."""
    photos = {"1.png": PNG, "2.png": PNG}
    make_folder(tmp_path, {"images": photos, ".ipynb_checkpoints": photos})
    with pytest.raises(ValueError, match="only one class, images: .* two or more, as"):
        load_source("classification", f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "ignored", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "#recycle"]
)
def test_folders_of_systems_and_tools_are_no_classes(ignored, tmp_path, caplog):
    photos = {
        "1.png": PNG,
        "._1.png": b"AppleDouble",
        "Thumbs.db": b"",
        ".DS_Store": b"",
    }
    make_folder(tmp_path, {"a": photos, "b": {"1.png": PNG}})
    (tmp_path / "train" / ignored).mkdir()
    (tmp_path / "train" / ignored / "1-checkpoint.png").write_bytes(PNG)
    (tmp_path / "train" / "._a").write_bytes(b"AppleDouble")
    with caplog.at_level("WARNING", logger="absl"):
        source = load_source("classification", f"folder:{tmp_path}")
    assert source.class_names == ("a", "b")
    assert source.num_examples == {"train": 2, "validation": 2}
    assert "train: skipped hidden files and files of a system or tool" in caplog.text
    for name in (ignored, "._a", "a/._1.png", "a/Thumbs.db", "a/.DS_Store"):
        assert name in caplog.text


def test_classes_that_differ_in_case_or_spaces_are_told(tmp_path, caplog):
    make_folder(
        tmp_path, {n: {"1.png": PNG} for n in ("Cat", "cat", "hot dog", "hotdog")}
    )
    with caplog.at_level("WARNING", logger="absl"):
        source = load_source("classification", f"folder:{tmp_path}")
    assert len(source.class_names) == 4
    assert "has the classes 'Cat', 'cat', whose names differ only in" in caplog.text
    assert "has the classes 'hot dog', 'hotdog', whose names" in caplog.text


NAMES = ("circle", "square", "star")
COUNTS = {"train": 40, "test": 12}


def define_tiny_shapes(splits):
    """Defines (and so registers) a data set whose images tell their label and index."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        "label": tfds.features.ClassLabel(names=list(NAMES)),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(splits[split]) for split in splits}

        def _generate_examples(self, count):
            for i in range(count):
                image = np.full((20, 30, 3), 6 * i, np.uint8)
                yield i, {"image": image, "label": i % 3}

    return TinyShapes


@pytest.fixture(scope="module")
def tiny_shapes(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    define_tiny_shapes(COUNTS)
    folder = str(tmp_path_factory.mktemp("tfds"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", folder)
        patch.setattr(tfds.core.constants, "DATA_DIR", folder)
        yield load_source("classification", "tfds:tiny_shapes")


def test_tfds_source(tiny_shapes):
    assert tiny_shapes.name == "tfds:tiny_shapes"
    assert tiny_shapes.class_names == NAMES
    assert tiny_shapes.num_examples == {"train": 40, "validation": 12}
    for split, count in tiny_shapes.num_examples.items():
        examples = listed(tiny_shapes, split, 5)
        assert sorted(example["index"] for example in examples) == list(range(count))
    orders = [
        [e["index"] for e in listed(tiny_shapes, "train", seed)] for seed in (5, 5, 6)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_tfds_examples_have_the_names_of_tfds(tiny_shapes):
    tfds = pytest.importorskip("tensorflow_datasets")
    read_config = tfds.ReadConfig(add_tfds_id=True)
    builder = tfds.builder("tiny_shapes")
    rows = builder.as_dataset(split="train", read_config=read_config)
    expected = [row["tfds_id"].decode() for row in rows.as_numpy_iterator()]
    indices = [example["index"] for example in listed(tiny_shapes, "train")]
    assert [tiny_shapes.name_of("train", index) for index in indices] == expected


def test_names_of_several_files():
    files = ("a__b-train.tfrecord-00000-of-00002", "a__b-train.tfrecord-00001-of-00002")
    ids = _ExampleIds(files, np.array([0, 3]))
    names = [f"{files[0]}__{row}" for row in range(3)] + [f"{files[1]}__0"]
    assert [ids.name(index) for index in range(4)] == names
    assert [int(ids.index(tf.constant(name))) for name in names] == [0, 1, 2, 3]


def test_an_unreadable_example_of_a_stream_is_named(tiny_shapes):
    def damaged(split: str, seed: int | None) -> tf.data.Dataset:
        def damage(example: dict) -> dict:
            is_bad = example["index"] == 7
            encoded = tf.where(is_bad, b"no image", example["encoded"])
            return {**example, "encoded": encoded}

        return tiny_shapes.stream(split, seed).map(damage)

    source = dataclasses.replace(tiny_shapes, stream=damaged)
    schedule = schedule_of(CONFIG, source)
    found = [
        name
        for batch in data.train_batches(source, CONFIG, schedule, 0)
        for name in data.unreadable(source, "train", batch)
    ]
    assert found == ["tiny_shapes-train.tfrecord-00000-of-00001__7"]


def test_tfds_batches_hold_every_example_once(tiny_shapes):
    config = dataclasses.replace(CONFIG, batch_size=8)
    evaluation = data.eval_batches(tiny_shapes, "validation", 32, 8, 1.0)
    for batches, count in (
        (train_batches(tiny_shapes, config), 40),
        (list(evaluation.as_numpy_iterator()), 12),
    ):
        indices = mean_colors(batches).mean(axis=1) / 6
        np.testing.assert_allclose(np.sort(indices), np.arange(count), atol=0.01)
        labels = weighed(batches, "label")
        np.testing.assert_array_equal(labels, np.round(indices) % 3)
        assert sorted(weighed(batches, "index")) == list(range(count))
