"""Annotations of pictures that EXIF turns, and of pictures of another size."""

import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

from keras_mobilevit.image_files import Header, decode
from tests.helpers.image_files import photo_file
from tests.helpers.voc_files import examples_of
from train.data.annotation_report import AnnotationReport
from train.data.geometry import AS_SHOWN, AS_STORED, SCALED, find_canvas
from train.data.masks import decode_mask
from train.data.registry import load_source

WIDTH, HEIGHT = 48, 64  # of the upright picture
BOX = (6, 40, 22, 60)  # of the red object on it
SIDEWAYS = (5, 6, 7, 8)


def upright() -> np.ndarray:
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (230, 20, 20)
    return pixels


def as_stored(photo: bytes) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Returns the size and the box that a program sees which ignores EXIF."""
    with Image.open(io.BytesIO(photo)) as image:
        rows, columns = np.nonzero(np.asarray(image)[..., 0] > 160)
        corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        return image.size, tuple(map(int, corners))


def voc(path, photo: bytes, size, box) -> str:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (path / folder).mkdir(parents=True)
    (path / "JPEGImages" / "p.jpg").write_bytes(photo)
    stated = (
        "" if size is None else "<width>{}</width><height>{}</height>".format(*size)
    )
    corners = "".join(
        f"<{tag}>{x}</{tag}>" for tag, x in zip(("xmin", "ymin", "xmax", "ymax"), box)
    )
    (path / "Annotations" / "p.xml").write_text(
        f"<annotation><size>{stated}</size><object><name>cup</name><bndbox>{corners}"
        "</bndbox></object></annotation>"
    )
    for part in ("train", "val"):
        (path / "ImageSets" / "Main" / f"{part}.txt").write_text("p\n")
    return f"voc:{path}"


def coco(path, photo: bytes, size, box) -> str:
    (path / "annotations").mkdir(parents=True)
    width, height = box[2] - box[0], box[3] - box[1]
    for part in ("train", "val"):
        (path / part).mkdir()
        (path / part / "p.jpg").write_bytes(photo)
        (path / "annotations" / f"instances_{part}.json").write_text(
            json.dumps(
                {
                    "images": [
                        {
                            "id": 1,
                            "file_name": "p.jpg",
                            "width": size[0],
                            "height": size[1],
                        }
                    ],
                    "categories": [{"id": 1, "name": "cup"}],
                    "annotations": [
                        {
                            "image_id": 1,
                            "category_id": 1,
                            "bbox": [*box[:2], width, height],
                        }
                    ],
                }
            )
        )
    return f"coco:{path}"


def assert_on_object(source) -> None:
    """Checks that the box is on the red object of the upright picture."""
    (example,) = examples_of(source, "train")
    with open(example["path"], "rb") as file:
        pixels = decode(file.read())
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = np.round(example["boxes"][0] * [width, height, width, height])
    red = (pixels[..., 0] > 160) & (pixels[..., 1] < 80)
    inside = np.zeros_like(red)
    inside[int(y1) : int(y2), int(x1) : int(x2)] = True
    assert (red & inside).sum() / (red | inside).sum() > 0.9


@pytest.mark.parametrize("layout", [voc, coco])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_on_the_picture_as_shown(layout, orientation, tmp_path):
    photo = photo_file(upright(), orientation)
    assert_on_object(
        load_source("detection", layout(tmp_path, photo, (WIDTH, HEIGHT), BOX))
    )


@pytest.mark.parametrize("layout", [voc, coco])
@pytest.mark.parametrize("orientation", SIDEWAYS)
def test_boxes_on_the_pixels_as_stored(layout, orientation, tmp_path, caplog):
    photo = photo_file(upright(), orientation)
    size, box = as_stored(photo)
    assert size == (HEIGHT, WIDTH)
    with caplog.at_level(logging.WARNING, "absl"):
        source = load_source("detection", layout(tmp_path, photo, size, box))
    assert_on_object(source)
    assert f"{AS_STORED}: 2, the first in" in caplog.text


@pytest.mark.parametrize("layout", [voc, coco])
@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("scale", [0.5, 3, 2.3])
def test_boxes_on_a_copy_of_another_size(layout, orientation, scale, tmp_path, caplog):
    photo = photo_file(upright(), orientation)
    size, box = (round(WIDTH * scale), round(HEIGHT * scale)), np.multiply(BOX, scale)
    with caplog.at_level(logging.WARNING, "absl"):
        source = load_source("detection", layout(tmp_path, photo, size, box.tolist()))
    assert_on_object(source)
    assert f"{SCALED}: 2, the first in" in caplog.text


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_without_a_size_boxes_are_on_the_picture_as_shown(size, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "absl"):
        source = load_source(
            "detection", voc(tmp_path, photo_file(upright(), 6), size, BOX)
        )
    assert_on_object(source)
    assert AS_SHOWN in caplog.text


@pytest.mark.parametrize("layout", [voc, coco])
@pytest.mark.parametrize(
    ("orientation", "size", "box", "message"),
    [
        (
            1,
            (100, 64),
            BOX,
            "states 100x64 pixels, but its image .*p.jpg has 48x64. Is",
        ),
        (6, (100, 64), BOX, r"100x64 .* has 48x64, and as stored 64x48\. Is it"),
        (1, (HEIGHT, WIDTH), BOX, "states 64x48 pixels, but its image .* has 48x64"),
        (
            1,
            (24, 32),
            BOX,
            r"the box \[6.0, 40.0, 22.0, 60.0\] does not lie on a .*24x32",
        ),
        (6, (HEIGHT, WIDTH), BOX, "does not lie on a picture of 64x48"),
    ],
)
def test_a_size_that_fits_nothing(layout, orientation, size, box, message, tmp_path):
    photo = photo_file(upright(), orientation)
    with pytest.raises(ValueError, match=message):
        load_source("detection", layout(tmp_path, photo, size, box))


def test_where_both_sizes_are_equal_the_shown_picture_counts():
    report = AnnotationReport()
    for orientation, size in ((3, (40, 30)), (4, (40, 30)), (6, (50, 50))):
        canvas = find_canvas(Header(size, orientation), size, "a", "b", report)
        assert canvas.orientation == 1 and not canvas.is_certain
    assert find_canvas(Header(size, 1), size, "a", "b", report).is_certain
    assert find_canvas(Header((40, 30), 6), (30, 40), "a", "b", report).is_certain
    assert report.counts == {AS_SHOWN: 3}


def voc_masks(path, photo: bytes, mask: np.ndarray) -> str:
    for folder in ("SegmentationClass", "JPEGImages", "ImageSets/Segmentation"):
        (path / folder).mkdir(parents=True)
    (path / "JPEGImages" / "p.jpg").write_bytes(photo)
    Image.fromarray(mask).save(path / "SegmentationClass" / "p.png")
    for part in ("train", "val"):
        (path / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("p\n")
    return f"voc:{path}"


def upright_mask() -> np.ndarray:
    return (upright()[..., 0] > 160).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("scale", [1, 2])
def test_masks_lie_on_the_picture_as_shown(orientation, is_stored, scale, tmp_path):
    photo = photo_file(upright(), orientation)
    mask = np.kron(upright_mask(), np.ones((scale, scale), np.uint8))
    if is_stored and orientation in SIDEWAYS:
        with Image.open(io.BytesIO(photo)) as image:
            mask = (np.asarray(image)[..., 0] > 160).astype(np.uint8)
        mask = np.kron(mask, np.ones((scale, scale), np.uint8))
        assert mask.shape == (WIDTH * scale, HEIGHT * scale)
    source = load_source("segmentation", voc_masks(tmp_path, photo, mask))
    (example,) = examples_of(source, "train")
    found = decode_mask(example["mask"]).numpy()
    np.testing.assert_array_equal(found, upright_mask())


def test_a_mask_of_another_aspect_names_both_sizes(tmp_path):
    source = voc_masks(tmp_path, photo_file(upright(), 6), upright_mask()[:40])
    message = (
        "p.png has 48x40 pixels, but its image .*p.jpg has 48x64, and as stored 64"
    )
    with pytest.raises(ValueError, match=message):
        load_source("segmentation", source)
