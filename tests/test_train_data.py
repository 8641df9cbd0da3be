"""From sources to batches: every example once, whatever the files hold."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from train import data, sampler, sources
from train.config import make_config

CONFIG = make_config("digits", sizes=(32, 48), base_size=32, batch_size=100)


@pytest.fixture(scope="module")
def digits():
    return sources.load_source("digits")


def schedule_of(config, source, epoch=0):
    shapes = sampler.batch_shapes(config.sizes, config.base_size, config.batch_size)
    return sampler.epoch_schedule(
        shapes, source.num_examples["train"], epoch, config.seed
    )


def train_batches(source, config=CONFIG, epoch=0):
    schedule = schedule_of(config, source, epoch)
    batches = data.train_batches(source, config, schedule, epoch)
    return list(batches.as_numpy_iterator())


def weighed(batches, key) -> np.ndarray:
    """Joins the values of all examples that count."""
    return np.concatenate([batch[key][batch["weight"] > 0] for batch in batches])


def mean_colors(batches) -> np.ndarray:
    """Gives the mean colour of each image that counts, `[examples, 3]`."""
    means = [{**b, "mean": b["image"].mean(axis=(1, 2), dtype=float)} for b in batches]
    return weighed(means, "mean")


def listed(source, split, seed=None) -> list[dict]:
    return list(source.examples(split, seed).as_numpy_iterator())


def test_digits_are_split_by_class(digits):
    assert digits.num_examples == {"train": 1437, "validation": 360}
    assert digits.class_names == tuple("0123456789")
    examples = {split: listed(digits, split) for split in sources.SPLITS}
    ids = {split: {e["id"] for e in examples[split]} for split in sources.SPLITS}
    assert len(ids["train"]) == 1437 and len(ids["validation"]) == 360
    assert not ids["train"] & ids["validation"]
    shares = [
        np.bincount([e["label"] for e in examples[split]], minlength=10) / count
        for split, count in digits.num_examples.items()
    ]
    np.testing.assert_allclose(*shares, atol=0.003)


def test_order_is_a_function_of_the_seed(digits):
    orders = [[e["id"] for e in listed(digits, "train", seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_an_epoch_has_every_example_once_in_scheduled_shapes(digits):
    schedule = schedule_of(CONFIG, digits)
    batches = train_batches(digits)
    shapes = [batch["image"].shape for batch in batches]
    assert shapes == [(s.batch, s.height, s.width, 3) for s in schedule]
    for batch, shape in zip(batches, schedule):
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        assert len(batch["label"]) == len(batch["id"]) == shape.batch

    order = listed(digits, "train", data.shuffle_seed(CONFIG, 0))
    assert weighed(batches, "id").tolist() == [example["id"] for example in order]
    labels = [example["label"] for example in order]
    np.testing.assert_array_equal(weighed(batches, "label"), labels)

    # The last batch alone is filled, by repeating what it has.
    assert all(np.all(batch["weight"] == 1) for batch in batches[:-1])
    last = batches[-1]
    count = 1437 - sum(shape.batch for shape in schedule[:-1])
    size = schedule[-1].batch
    assert 0 < count < size
    np.testing.assert_array_equal(last["weight"], np.arange(size) < count)
    np.testing.assert_array_equal(last["image"], last["image"][np.arange(size) % count])


def test_passes_are_equal_and_epochs_differ(digits):
    first, second = train_batches(digits), train_batches(digits)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            np.testing.assert_array_equal(two[key], value)
    other = weighed(train_batches(digits, epoch=1), "label")
    assert not np.array_equal(other, weighed(first, "label"))


@pytest.mark.parametrize("seed", [2148, 2**31])
def test_large_seeds(digits, seed):
    config = dataclasses.replace(CONFIG, seed=seed)
    assert len(weighed(train_batches(digits, config), "id")) == 1437


@pytest.mark.parametrize("split", sources.SPLITS)
def test_evaluation_has_every_example_once_in_order(digits, split):
    batches = list(data.eval_batches(digits, split, 32, 100, 1.0).as_numpy_iterator())
    assert {batch["image"].shape for batch in batches} == {(100, 32, 32, 3)}
    ids = [example["id"] for example in listed(digits, split)]
    assert weighed(batches, "id").tolist() == ids
    labels = [example["label"] for example in listed(digits, split)]
    np.testing.assert_array_equal(weighed(batches, "label"), labels)


RED, GRAY = (255, 0, 0), (120, 120, 120)


def pil_file(mode, color, kind, size=(90, 60), **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind, **options)
    return file.getvalue()


def palette_file() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (90, 60), RED).quantize(4).save(file, "PNG")
    return file.getvalue()


def animation() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (90, 60), color) for color in (RED, (0, 0, 255))]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def png_of_16_bits() -> bytes:
    image = np.zeros((60, 90, 3), np.uint16) + np.array([65535, 0, 0], np.uint16)
    return tf.io.encode_png(image).numpy()


READABLE = {
    "rgb.jpg": (pil_file("RGB", RED, "JPEG"), RED),
    "upper.JPEG": (pil_file("RGB", RED, "JPEG"), RED),
    "progressive.jpeg": (pil_file("RGB", RED, "JPEG", progressive=True), RED),
    "cmyk.jpg": (pil_file("CMYK", (0, 255, 255, 0), "JPEG"), RED),
    "gray.jpg": (pil_file("L", 120, "JPEG"), GRAY),
    "rgb.png": (pil_file("RGB", RED, "PNG"), RED),
    "gray.png": (pil_file("L", 120, "PNG"), GRAY),
    "gray16.png": (pil_file("I;16", 120 * 257, "PNG"), GRAY),
    "rgb16.png": (png_of_16_bits(), RED),
    "alpha.png": (pil_file("RGBA", (*RED, 128), "PNG"), RED),
    "gray_alpha.png": (pil_file("LA", (120, 128), "PNG"), GRAY),
    "palette.png": (palette_file(), RED),
    "animation.gif": (animation(), RED),
    "pixel.png": (pil_file("RGB", RED, "PNG", (1, 1)), RED),
    "pixel.jpg": (pil_file("RGB", RED, "JPEG", (1, 1)), RED),
    "row.png": (pil_file("RGB", RED, "PNG", (300, 1)), RED),
    "rgb.bmp": (pil_file("RGB", RED, "BMP"), RED),
    "jpeg_named.png": (pil_file("RGB", RED, "JPEG"), RED),
}
JPEG = pil_file("RGB", RED, "JPEG", (600, 600))
UNREADABLE = {
    "random.jpg": np.random.default_rng(0).bytes(3000),
    "random_after_header.jpg": JPEG[:20] + np.random.default_rng(0).bytes(3000),
    "truncated_header.jpg": JPEG[:300],
    "truncated.jpg": JPEG[: len(JPEG) * 3 // 4],
    "truncated.png": pil_file("RGB", RED, "PNG", (600, 600))[:200],
    "empty.jpg": b"",
    "empty.png": b"",
    "text.png": b"This is no image.\n",
}


def decodes_webp() -> bool:
    try:
        tf.io.decode_image(pil_file("RGB", RED, "WEBP"), expand_animations=False)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def make_folder(path, classes: dict):
    """Writes `{class: {name: bytes}}` as both splits of a folder."""
    for split in sources.SPLITS:
        for name, files in classes.items():
            folder = path / split / name
            folder.mkdir(parents=True)
            for file, content in files.items():
                (folder / file).write_bytes(content)
    return path


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    """A source whose class `good` decodes and `bad` does not, and good's colours."""
    readable = dict(READABLE)
    if decodes_webp():
        readable["rgb.webp"] = (pil_file("RGB", RED, "WEBP", lossless=True), RED)
    good = {name: content for name, (content, _) in readable.items()}
    path = make_folder(
        tmp_path_factory.mktemp("mixed"),
        {"bad": {**UNREADABLE, "notes.txt": b"not listed"}, "good": good},
    )
    colors = {name: color for name, (_, color) in readable.items()}
    return sources.load_source(f"folder:{path}"), colors


def file_name(identity: bytes) -> str:
    return identity.decode().split("/")[-1]


def assert_decoded(batches, colors):
    """Checks the colours of what was decoded, and the names of what was not."""
    seen = [file_name(identity) for identity in weighed(batches, "id")]
    skipped = [
        file_name(identity)
        for batch in batches
        for identity in batch["id"][batch["weight"] == 0]
        if identity
    ]
    assert sorted(skipped) == sorted(UNREADABLE)
    assert sorted(seen) == sorted(colors)
    for name, mean in zip(seen, mean_colors(batches)):
        assert np.abs(mean - colors[name]).max() <= 12, (name, mean)
    # What stands in for them is a readable image of the batch, not a black one.
    for batch in batches:
        if batch["weight"].any():
            assert batch["image"].max(axis=(1, 2, 3)).min() > 50


@pytest.mark.parametrize("batch_size", [3, 64])
def test_training_skips_and_names_what_it_cannot_decode(mixed_folder, batch_size):
    source, colors = mixed_folder
    config = dataclasses.replace(
        CONFIG, batch_size=batch_size, crop_scale=1.0, flip=True
    )
    batches = train_batches(source, config)
    schedule = schedule_of(config, source)
    shapes = [(s.batch, s.height, s.width, 3) for s in schedule]
    assert [batch["image"].shape for batch in batches] == shapes
    order = listed(source, "train", data.shuffle_seed(config, 0))
    ids = np.concatenate([batch["id"] for batch in batches])
    assert ids[ids != b""].tolist() == [example["id"] for example in order]
    assert_decoded(batches, colors)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_evaluation_skips_and_names_what_it_cannot_decode(mixed_folder, batch_size):
    source, colors = mixed_folder
    batches = data.eval_batches(source, "validation", 32, batch_size, 0.875)
    named = [name for batch in batches for name in data.unreadable(batch)]
    batches = list(batches.as_numpy_iterator())
    assert {batch["image"].shape for batch in batches} == {(batch_size, 32, 32, 3)}
    assert_decoded(batches, colors)
    assert sorted(name.split("/")[-1] for name in named) == sorted(UNREADABLE)


def test_a_sample_comes_from_all_over_the_split(digits):
    sample = sources.evenly_spaced(digits, "validation", 36)
    ids = [example["id"] for example in listed(sample, "validation")]
    whole = [example["id"] for example in listed(digits, "validation")]
    assert ids == whole[::10]
    assert sample.num_examples == {"validation": 36}


def test_folder_source(mixed_folder):
    source, colors = mixed_folder
    assert source.class_names == ("bad", "good")
    count = len(UNREADABLE) + len(colors)
    assert source.num_examples == {"train": count, "validation": count}
    for example in listed(source, "train", 3):
        folder = source.class_names[example["label"]]
        assert f"/train/{folder}/" in example["id"].decode()


PNG = pil_file("RGB", RED, "PNG", (8, 8))


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
        (lambda path: None, "train is not a folder. Expected .*<class>"),
        (without_validation, "validation is not a folder. Expected .*<class>"),
        (without_images, "No images in .*train. Expected .*.jpg, .jpeg, .png"),
        (with_an_empty_class, "Class folders without images in .*train: b. "),
        (with_a_class_in_one_split, "Only in train: b. Only in validation: none"),
    ],
)
def test_folders_that_are_refused(make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        sources.load_source(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["nonsense", "", "folder:", "tfds:", "folder"])
def test_unknown_sources(name):
    with pytest.raises(ValueError, match="`digits`, `folder:PATH` or `tfds:NAME`"):
        sources.load_source(name)


def test_what_is_not_taken_is_counted(tmp_path, caplog):
    files = {"1.png": PNG, "2.tiff": b"", "3.TIFF": b"", "notes.txt": b""}
    make_folder(tmp_path, {"a": files})
    (tmp_path / "train" / "a" / "folder.jpg").mkdir()
    with caplog.at_level("WARNING", logger="absl"):
        source = sources.load_source(f"folder:{tmp_path}")
    assert source.num_examples == {"train": 1, "validation": 1}
    assert "1 .tiff, 1 .TIFF, 1 folder, 1 .txt" in caplog.text


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
        yield sources.load_source("tfds:tiny_shapes")


def test_tfds_source(tiny_shapes):
    assert tiny_shapes.name == "tfds:tiny_shapes"
    assert tiny_shapes.class_names == NAMES
    assert tiny_shapes.num_examples == {"train": 40, "validation": 12}
    for split, count in tiny_shapes.num_examples.items():
        examples = listed(tiny_shapes, split, 5)
        assert len({example["id"] for example in examples}) == count
    orders = [
        [e["id"] for e in listed(tiny_shapes, "train", seed)] for seed in (5, 5, 6)
    ]
    assert orders[0] == orders[1] != orders[2]


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
        assert len(set(weighed(batches, "id"))) == count
