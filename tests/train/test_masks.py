"""Masks: files that are read, refused or skipped; and what augments them."""

import io
import logging
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_mobilevit.class_names import VOC_NAMES
from tests.helpers.voc_files import PLAIN_MASK, examples_of, make_voc_masks, write_mask
from train.data import images
from train.data.annotation_report import AnnotationReport
from train.data.digits import mask_scene_source
from train.data.masks import IGNORE_INDEX, decode_mask, read_mask
from train.data.registry import load_source
from train.data.voc.masks import voc_masks
from train.tasks.segmentation import augment

SEEDS = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"


def test_a_mask_is_what_the_palette_has_indices_of(tmp_path):
    void = PLAIN_MASK.copy()
    void[:5] = IGNORE_INDEX
    path = make_voc_masks(tmp_path, {"a": PLAIN_MASK, "b": void}, {"v": PLAIN_MASK})
    source = load_source("segmentation", f"voc:{path}")
    assert source.class_names == ("0", "1", "2")
    assert source.num_examples == {"train": 2, "validation": 1}
    for example, expected in zip(examples_of(source, "train"), (PLAIN_MASK, void)):
        np.testing.assert_array_equal(decode_mask(example["mask"]), expected)
        assert example["path"] == example["id"]
    (cached,) = examples_of(
        load_source("segmentation", f"voc:{path}", cache=True), "validation"
    )
    assert cached["encoded"][:2] == b"\xff\xd8" and "path" not in cached


@pytest.mark.parametrize(
    "mode, classes", [("L", PLAIN_MASK), ("1", PLAIN_MASK // 2 * 255)]
)
def test_masks_in_gray_and_of_one_bit(tmp_path, mode, classes):
    write_mask(tmp_path / "mask.png", classes, mode)
    found = read_mask(tmp_path / "mask.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, classes if mode == "L" else PLAIN_MASK // 2)


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_masks_of_few_bits_hold_classes_too(bits, tmp_path):
    """Which Pillow reads as values from 0 to 255, and does not write."""
    count = 2**bits
    file = tmp_path / "mask.png"
    write_mask(file, np.arange(count, dtype=np.uint8)[None])
    with Image.open(file) as image:
        image.save(file, bits=bits)  # a palette's indices, in as many bits
    content = bytearray(file.read_bytes())
    assert content[24:26] == bytes([bits, 3])
    content[25] = 0  # gray
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    start = content.index(b"PLTE") - 4
    length = int.from_bytes(content[start : start + 4], "big")
    del content[start : start + 12 + length]
    file.write_bytes(content)
    with Image.open(file) as image:
        assert image.mode == "L"
    np.testing.assert_array_equal(read_mask(file), [range(count)])


def test_names_of_any_case_and_with_spaces(tmp_path):
    path = make_voc_masks(
        tmp_path, {"my photo": PLAIN_MASK, "b": PLAIN_MASK}, {"v": PLAIN_MASK}
    )
    photo = path / "JPEGImages" / "b.jpg"
    photo.rename(photo.with_suffix(".JPG"))
    assert load_source("segmentation", f"voc:{path}").num_examples["train"] == 2


@pytest.mark.parametrize("name", ["classes.txt", "ImageSets/Segmentation/train.txt"])
def test_a_list_that_is_no_text_is_named(name, tmp_path):
    path = make_voc_masks(tmp_path, {"a": PLAIN_MASK}, {"v": PLAIN_MASK})
    (path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"{name} is not text in UTF-8. Save it"):
        load_source("segmentation", f"voc:{path}")


def test_one_class_is_too_few(tmp_path):
    path = make_voc_masks(
        tmp_path, {"a": PLAIN_MASK // 2 * IGNORE_INDEX}, {"v": PLAIN_MASK}
    )
    with pytest.raises(ValueError, match="only the class 0. .*write 1 instead"):
        load_source("segmentation", f"voc:{path}")


def smeared(classes: np.ndarray) -> np.ndarray:
    """Returns what JPEG makes of a mask."""
    file = io.BytesIO()
    Image.fromarray(classes).save(file, "JPEG", quality=80)
    with Image.open(file) as image:
        return np.asarray(image)


LEVELS = [
    PLAIN_MASK * 127,
    np.choose(PLAIN_MASK, [38, 75, 113]).astype(np.uint8),
    PLAIN_MASK * 10,
    PLAIN_MASK // 2 * 15,
    smeared(np.kron(PLAIN_MASK[:12, :18], np.ones((5, 5), np.uint8)) * 100),
    np.arange(90, dtype=np.uint8)[None].repeat(60, axis=0) % 22,
]


@pytest.mark.parametrize("mask", LEVELS, ids=range(len(LEVELS)))
def test_levels_of_gray_are_refused_unless_named(mask, tmp_path):
    """The last ones count as classes do, but more of them than have no names."""
    path = make_voc_masks(tmp_path, {"a": mask}, {"v": mask})
    message = "have the values .* masks as PNG. If they are numbers of classes, name"
    with pytest.raises(ValueError, match=message):
        load_source("segmentation", f"voc:{path}")
    names = [f"class {i}" for i in range(int(mask.max()) + 1)]
    (path / "classes.txt").write_text("\n".join(names), "utf-8-sig")
    assert load_source("segmentation", f"voc:{path}").class_names == tuple(names)


def test_classes_that_no_training_mask_has_are_told(tmp_path, caplog):
    path = make_voc_masks(tmp_path, {"a": PLAIN_MASK * 2}, {"v": PLAIN_MASK})
    with caplog.at_level(logging.WARNING, "absl"):
        assert len(load_source("segmentation", f"voc:{path}").class_names) == 5
    assert (
        "2 of 5 classes are in no training mask, so the model will not find them: 1, 3."
        in caplog.text
    )
    (path / "classes.txt").write_text("sky\nroad\ncar\ntree\n Road \nRiver\n")
    with caplog.at_level(logging.WARNING, "absl"):
        load_source("segmentation", f"voc:{path}")
    assert "will not find them: road, tree, River." in caplog.text
    assert "has the classes 'road', 'Road', whose names differ" in caplog.text


def test_a_training_part_of_one_class_is_refused_with_a_list_too(tmp_path):
    path = make_voc_masks(
        tmp_path, {"a": np.full_like(PLAIN_MASK, 2)}, {"v": PLAIN_MASK}
    )
    (path / "classes.txt").write_text("sky\nroad\ncar\n")
    with pytest.raises(ValueError, match="have only the class 2"):
        load_source("segmentation", f"voc:{path}")


def test_a_mask_in_jpeg_is_refused(tmp_path):
    """By what it is, not by its ending."""
    path = make_voc_masks(tmp_path, {"a": PLAIN_MASK}, {"v": PLAIN_MASK})
    for file in ("a.png", "a.jpg"):
        (path / "SegmentationClass" / "a.png").unlink(missing_ok=True)
        Image.fromarray(PLAIN_MASK).save(path / "SegmentationClass" / file, "JPEG")
        with pytest.raises(
            ValueError, match="is a mask in JPEG. Its compression changes"
        ):
            load_source("segmentation", f"voc:{path}")


def test_names_of_classes(tmp_path):
    all_of_voc = np.arange(90, dtype=np.uint8)[None].repeat(60, axis=0) % 21
    path = make_voc_masks(tmp_path, {"a": all_of_voc}, {"v": PLAIN_MASK})
    assert load_source("segmentation", f"voc:{path}").class_names == VOC_NAMES
    file = path / "classes.txt"
    names = [f"class {i}" for i in range(30)]
    file.write_text("\n".join(names) + "\n\n")
    assert load_source("segmentation", f"voc:{path}").class_names == tuple(names)
    for text, message in (
        ("sky\nsky\n", "classes.txt names classes twice: sky"),
        ("\n", "classes.txt names 0 classes. Expected 2 to 255"),
        ("sky\nroad\n", r"a.png has the class 20, but there are 2 classes: 0 to 1"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_source("segmentation", f"voc:{path}")


def test_what_is_left_out_is_told(tmp_path, caplog):
    names = ("whole", "imageless", "maskless", "broken", "half")
    path = make_voc_masks(tmp_path, dict.fromkeys(names, PLAIN_MASK), {"v": PLAIN_MASK})
    (path / "JPEGImages" / "imageless.jpg").unlink()
    (path / "SegmentationClass" / "maskless.png").unlink()
    (path / "JPEGImages" / "broken.jpg").write_bytes(b"no image")
    half = path / "SegmentationClass" / "half.png"
    half.write_bytes(half.read_bytes()[:-60])
    listed = path / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text(listed.read_text() + "\nwhole\n")
    report = AnnotationReport()
    (found,) = voc_masks(path, "train", report)
    assert Path(found.path).name == "whole.jpg" and found.classes == {0, 1, 2}
    for kind, name in {
        "images listed twice, taken once": "train.txt: whole",
        "images that are missing, skipped": "train.txt: imageless",
        "masks that are missing, images skipped": "maskless.png",
        "images that cannot be read, skipped": "broken.jpg cannot be read as a",
        "masks that cannot be read, skipped": "half.png",
    }.items():
        assert name in report.first_names.pop(kind)
    assert not report.first_names
    assert set(report.counts.values()) == {1}
    load_source("segmentation", f"voc:{path}")
    assert "masks that are missing, images skipped: 1, the first in" in caplog.text


def test_sbd(tmp_path):
    path = make_voc_masks(tmp_path, {"a": PLAIN_MASK}, {"v": PLAIN_MASK})
    lists = path / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text(
        "JPEGImages/v.jpg SegmentationClassAug/v.png\n/JPEGImages/a.jpg /x/a.png\n"
    )
    with pytest.raises(ValueError, match="There is no .*SegmentationClassAug. Expect"):
        load_source("segmentation", f"voc:{path}")
    (path / "SegmentationClassAug").mkdir()
    for name in "av":
        write_mask(path / "SegmentationClassAug" / f"{name}.png", PLAIN_MASK * 2, "L")
    source = load_source("segmentation", f"voc:{path}")
    assert source.num_examples == {"train": 2, "validation": 1}
    highest = [
        decode_mask(x["mask"]).numpy().max() for x in examples_of(source, "train")
    ]
    assert highest == [4, 4]


@pytest.mark.parametrize(
    "mask, message",
    [
        (PLAIN_MASK[:, :80], "a.png has 80x60 pixels, but its image .*a.jpg has 90x60"),
        (
            np.stack([PLAIN_MASK] * 3, axis=-1),
            r"a.png is a mask of colors \(RGB\). Expect",
        ),
        (np.uint16(PLAIN_MASK), r"a.png is a mask of another kind \(I;16\). Expected"),
        (
            np.full_like(PLAIN_MASK, IGNORE_INDEX),
            "None of the 1 masks in .* has a pixel",
        ),
        (None, "lists 1 images, and none of them has both an image"),
    ],
)
def test_masks_that_end_with_an_error(tmp_path, mask, message):
    path = make_voc_masks(tmp_path, {"a": PLAIN_MASK}, {"v": PLAIN_MASK})
    file = path / "SegmentationClass" / "a.png"
    file.unlink()
    if mask is not None:
        Image.fromarray(mask).save(file)
    with pytest.raises(ValueError, match=message):
        load_source("segmentation", f"voc:{path}")


def test_a_class_that_only_the_validation_has(tmp_path):
    path = make_voc_masks(tmp_path, {"a": PLAIN_MASK}, {"v": PLAIN_MASK + 7})
    with pytest.raises(ValueError, match="v.png has the class 9, but there are 3"):
        load_source("segmentation", f"voc:{path}")


def test_no_such_source(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"There is no {tmp_path}/Image")):
        load_source("segmentation", f"voc:{tmp_path}")
    with pytest.raises(ValueError, match="Segmentation takes `digits` or `voc:PATH`"):
        load_source("segmentation", "folder:photos")


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"{CAMVID} is not there")
def test_camvid():
    source = load_source("segmentation", f"voc:{CAMVID}")
    assert source.num_examples == {"train": 367, "validation": 101}
    assert len(source.class_names) == 11 and source.class_names[3] == "road"
    example = examples_of(source, "validation")[0]
    assert set(np.unique(decode_mask(example["mask"]))) <= {*range(11), IGNORE_INDEX}


def test_scenes_have_exact_masks():
    """The ground is one color, and each digit another."""
    source = mask_scene_source(counts={"train": 1, "validation": 30})
    assert source.class_names == ("background", *"0123456789")
    for example in examples_of(source, "validation"):
        picture = tf.io.decode_png(example["encoded"]).numpy().astype(float)
        mask = decode_mask(example["mask"]).numpy()
        ground = np.median(picture[mask == 0], axis=0)
        distance = np.abs(picture - ground).max(axis=2)
        assert (distance[mask == 0] < 60).mean() > 0.999
        for label in np.unique(mask[mask > 0]):
            assert (distance[mask == label] > 12).mean() > 0.9


place = tf.function(
    lambda image_size, size, min_scale, seed: augment.random_placement(
        image_size, size, min_scale, seed
    )
)


@settings(max_examples=100, deadline=None)
@given(
    SEEDS,
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.tuples(st.integers(32, 300), st.integers(32, 300)),
    st.floats(1 / 16, 1.0, width=32),
)
def test_a_placement_lies_within_image_and_crop(seed, image_size, size, min_scale):
    arguments = map(tf.constant, (image_size, size, min_scale, seed))
    window, part, corner = (x.numpy() for x in place(*arguments))
    assert (window[2:] >= 1).all() and (window[:2] >= 0).all()
    assert (window[:2] + window[2:] <= image_size).all()
    assert (part >= 1).all() and (corner >= 0).all()
    assert (corner + part <= size).all()
    # What is missing on the crop is missing on the image: nothing is cut off there.
    cut = window[2:] < image_size
    assert (part[cut] >= np.array(size)[cut] - 1).all()


def test_scales_and_aspects_that_are_drawn():
    scales, aspects = [], []
    for seed in range(300):
        seed = tf.constant([3, seed])
        window, part, _ = place((200, 400), (500, 500), tf.constant(0.25), seed)
        height, width = part.numpy() / window.numpy()[2:] * (200, 400)
        scales.append(height / 500)
        aspects.append(width / height)
    assert min(scales) == pytest.approx(0.5, abs=0.03)
    assert max(scales) == pytest.approx(2.0, abs=0.05)
    assert min(aspects) == pytest.approx(1.0, abs=0.05)  # as an evaluation squeezes
    assert max(aspects) == pytest.approx(2.0, abs=0.05)
    whole = place((128, 128), (96, 96), tf.constant(1.0), tf.constant([1, 2]))
    assert [x.numpy().tolist() for x in whole] == [[0, 0, 128, 128], [96, 96], [0, 0]]


def blobs(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes a mask of large patches, and an image whose colors tell the class."""
    coarse = np.random.default_rng(0).integers(0, 4, (4, 5))
    mask = np.kron(coarse, np.ones((height // 4, width // 5), int)).astype(np.uint8)
    return np.stack([60 + 40 * mask] * 3, axis=-1).astype(np.uint8), mask


def agreement(image: np.ndarray, mask: np.ndarray) -> float:
    """Returns the part of the pixels with the color of their class."""
    expected = np.where(mask == IGNORE_INDEX, 0, 60 + 40 * mask.astype(int))
    return (np.abs(image[..., 0].astype(int) - expected) < 20).mean()


@pytest.mark.parametrize("seed", range(6))
def test_image_and_mask_stay_together(seed):
    image, mask = map(tf.constant, blobs(160, 200))
    size = (96, 96)
    placement = augment.random_placement((160, 200), size, 0.25, (seed, 1))
    picture = images.open_picture(tf.io.encode_png(image))
    image = augment.place_image(picture, placement, size)
    mask = augment.place_mask(mask, placement, size)
    assert image.shape == (*size, 3) and mask.shape == size
    assert mask.dtype == tf.uint8
    assert agreement(image.numpy(), mask.numpy()) > 0.9
    inside = np.zeros(size, bool)
    (y, x), (rows, columns) = placement.corner.numpy(), placement.size.numpy()
    inside[y : y + rows, x : x + columns] = True
    np.testing.assert_array_equal(mask.numpy() == IGNORE_INDEX, ~inside)
    assert not image.numpy()[~inside].any()
    flipped = augment.random_flip(image, mask, (seed, 2))
    assert agreement(*(x.numpy() for x in flipped)) > 0.9


def test_a_flip_is_drawn_by_the_seed():
    image, mask = map(tf.constant, blobs(80, 100))
    flips = {
        augment.random_flip(image, mask, (0, i))[1].numpy().tobytes() for i in range(12)
    }
    assert flips == {mask.numpy().tobytes(), mask.numpy()[:, ::-1].tobytes()}
