"""From sources to batches: every example once, whatever the files hold."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

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
from train.data import sampler
from train.data.registry import load_source
from train.data.source import SPLITS


@pytest.fixture(scope="module")
def digits():
    return load_source("classification", "digits")


@pytest.fixture(scope="module")
def first_pass(digits):
    """The batches of the first epoch, which no test changes."""
    return train_batches(digits)


def test_an_epoch_has_every_example_once_in_scheduled_shapes(digits, first_pass):
    schedule = schedule_of(CONFIG, digits)
    batches = first_pass
    shapes = [batch["image"].shape for batch in batches]
    assert shapes == [(s.batch, s.height, s.width, 3) for s in schedule]
    for batch, shape in zip(batches, schedule):
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        assert len(batch["label"]) == len(batch["index"]) == shape.batch

    order = listed(digits, "train", data.shuffle_seed(CONFIG, 0))
    assert weighed(batches, "index").tolist() == [example["index"] for example in order]
    labels = [example["label"] for example in order]
    np.testing.assert_array_equal(weighed(batches, "label"), labels)

    # The last batch alone is filled, with other images than its own.
    assert all(np.all(batch["weight"] == 1) for batch in batches[:-1])
    last = batches[-1]
    count = 1437 - sum(shape.batch for shape in schedule[:-1])
    size = schedule[-1].batch
    assert 0 < count < size
    np.testing.assert_array_equal(last["weight"], np.arange(size) < count)
    assert set(last["index"][count:]) == {-1}
    np.testing.assert_array_equal(last["label"][count:], labels[: size - count])


def test_passes_are_equal_and_epochs_differ(digits, first_pass):
    for one, two in zip(first_pass, train_batches(digits), strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            np.testing.assert_array_equal(two[key], value)
    other = weighed(train_batches(digits, epoch=1), "label")
    assert not np.array_equal(other, weighed(first_pass, "label"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2**31])
def test_large_seeds(digits, seed):
    config = dataclasses.replace(CONFIG, seed=seed)
    assert len(weighed(train_batches(digits, config), "index")) == 1437


@pytest.mark.parametrize(
    ("replicas", "pipelines"), [(2, 2), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_shards_make_up_the_whole(digits, replicas, pipelines):
    """Example `i` of a batch belongs to replica `i % replicas`, the filling too."""
    config = dataclasses.replace(CONFIG, batch_size=40 * replicas, sizes=(32, 64))
    shapes = sampler.batch_shapes((32, 64), 32, config.batch_size, replicas)
    count = digits.num_examples["train"]
    schedule = sampler.epoch_schedule(shapes, count, 0)
    whole = list(data.train_batches(digits, config, schedule, 0).as_numpy_iterator())
    for pipeline in range(pipelines):
        context = tf.distribute.InputContext(pipelines, pipeline, replicas)
        shard = data.Shard.of(context)
        assert shard.count == replicas // pipelines
        batches = data.train_batches(digits, config, schedule, 0, shard=shard)
        batches = list(batches.as_numpy_iterator())
        assert len(batches) == len(whole) * shard.count
        for i, batch in enumerate(batches):
            replica = shard.first + i % shard.count
            for key, value in whole[i // shard.count].items():
                np.testing.assert_array_equal(batch[key], value[replica::replicas])


def test_a_batch_that_replicas_cannot_share(digits):
    schedule = schedule_of(CONFIG, digits)
    shard = data.Shard(replicas=3, first=0, count=3)
    with pytest.raises(ValueError, match="batch of (44|100) images.*among 3"):
        data.train_batches(digits, CONFIG, schedule, 0, shard=shard)


@pytest.mark.parametrize("split", SPLITS)
def test_evaluation_has_every_example_once_in_order(digits, split):
    batches = list(data.eval_batches(digits, split, 32, 100, 1.0).as_numpy_iterator())
    assert {batch["image"].shape for batch in batches} == {(100, 32, 32, 3)}
    count = digits.num_examples[split]
    assert weighed(batches, "index").tolist() == list(range(count))
    labels = [example["label"] for example in listed(digits, split)]
    np.testing.assert_array_equal(weighed(batches, "label"), labels)


RED, GRAY = (255, 0, 0), (120, 120, 120)


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


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    """A source whose class `good` decodes and `bad` does not, and good's colors."""
    readable = dict(READABLE)
    if decodes_webp():
        readable["rgb.webp"] = (pil_file("RGB", RED, "WEBP", lossless=True), RED)
    good = {name: content for name, (content, _) in readable.items()}
    path = make_folder(
        tmp_path_factory.mktemp("mixed"),
        {"bad": {**UNREADABLE, "notes.txt": b"not listed"}, "good": good},
    )
    colors = {name: color for name, (_, color) in readable.items()}
    return load_source("classification", f"folder:{path}"), colors


def assert_decoded(source, split, batches, colors):
    """Checks the colors of what was decoded, and the names of what was not."""

    def file_names(indices) -> list[str]:
        names = [source.name_of(split, index) for index in indices if index >= 0]
        return [name.split("/")[-1] for name in names]

    seen = file_names(weighed(batches, "index"))
    skipped = [
        name
        for batch in batches
        for name in file_names(batch["index"][batch["weight"] == 0])
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
    indices = np.concatenate([batch["index"] for batch in batches])
    assert indices[indices >= 0].tolist() == [example["index"] for example in order]
    assert_decoded(source, "train", batches, colors)


@pytest.mark.slow
def test_files_in_memory_give_the_same_batches(mixed_folder):
    source, _ = mixed_folder
    cached = load_source("classification", source.name, cache=True)
    config = dataclasses.replace(CONFIG, batch_size=8, sizes=(32,))
    assert "encoded" in next(iter(cached.examples("train", 0)))
    for one, other in zip(train_batches(source, config), train_batches(cached, config)):
        for key, value in one.items():
            np.testing.assert_array_equal(other[key], value)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_evaluation_skips_and_names_what_it_cannot_decode(mixed_folder, batch_size):
    source, colors = mixed_folder
    batches = data.eval_batches(source, "validation", 32, batch_size, 0.875)
    named = [
        name
        for batch in batches
        for name in data.unreadable(source, "validation", batch)
    ]
    batches = list(batches.as_numpy_iterator())
    assert {batch["image"].shape for batch in batches} == {(batch_size, 32, 32, 3)}
    assert_decoded(source, "validation", batches, colors)
    assert sorted(name.split("/")[-1] for name in named) == sorted(UNREADABLE)
