"""Small data sets in PASCAL VOC's layout, written for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.image_files import pil_file

PLAIN_MASK = np.tile(np.uint8([0, 1, 2]), (60, 30))  # of 90x60 pixels


def examples_of(source, split: str) -> list[dict]:
    return list(source.examples(split, None).as_numpy_iterator())


def voc_xml(*objects: tuple, difficult=0) -> str:
    rows = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    return f"<annotation>{rows}</annotation>"


def make_voc_boxes(path: Path, train: dict, val: dict) -> Path:
    """Writes `{name: XML or None}` of images of 90x60 pixels."""
    lists = path / "ImageSets" / "Main"
    for folder in (lists, path / "Annotations", path / "JPEGImages"):
        folder.mkdir(parents=True)
    for part, files in (("train", train), ("val", val)):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in files))
        for name, xml in files.items():
            (path / "JPEGImages" / f"{name}.jpg").write_bytes(
                pil_file("RGB", (200, 30, 30), "JPEG")
            )
            if xml is not None:
                (path / "Annotations" / f"{name}.xml").write_text(xml)
    return path


def write_mask(file: Path, classes: np.ndarray, mode: str = "P") -> None:
    image = Image.fromarray(classes)
    if mode == "P":
        # Two classes of one color, as palettes have that go on with black.
        image.putpalette([9, 9, 9, 200, 0, 0, 9, 9, 9] + [0] * 759)
    image.convert(mode).save(file)


def make_voc_masks(path: Path, train: dict, val: dict) -> Path:
    """Writes `{name: classes}` with images of 90x60 pixels."""
    lists = path / "ImageSets" / "Segmentation"
    for folder in (lists, path / "SegmentationClass", path / "JPEGImages"):
        folder.mkdir(parents=True)
    for part, masks in (("train", train), ("val", val)):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in masks))
        for name, classes in masks.items():
            photo = pil_file("RGB", (200, 30, 30), "JPEG")
            (path / "JPEGImages" / f"{name}.jpg").write_bytes(photo)
            write_mask(path / "SegmentationClass" / f"{name}.png", classes)
    return path
