"""Files that were changed at random: a line that names the file, or no error at all.

Nothing hangs, takes gigabytes or writes outside of its folder. The mutations of weights
and of .tflite files are elsewhere.
"""

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

from keras_mobilevit.image_files import read_header, read_image
from tests.helpers.image_files import pil_file
from tests.helpers.one_line import one_line
from tests.helpers.voc_files import PLAIN_MASK, make_voc_boxes, make_voc_masks, voc_xml
from train.config import load_config, make_config, save_config
from train.data import images
from train.data.registry import load_source
from train.run.checkpoint import load_checkpoint, save_checkpoint
from train.run.progress import Progress
from train.run.records import RecordWriter, plot_curves, read_epochs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="It limits time and memory by Linux"),
    pytest.mark.filterwarnings("ignore"),  # of damaged images, by Pillow
]
BIG = st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -(10**309)])
NUMBERS = st.one_of(BIG, st.integers(-5, 200), st.floats())
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "..", "../a.png", "/dev/zero", "a\0b", "\ud800", "\u2028", "$"]
    ),
)
JSON_PIECES = (b"[" * 9000, b'{"a":' * 9000, b"9" * 5000, b"NaN", b"\\ud800", b"\xff")
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), BIG, NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)


def mutations(count: int):
    """Runs a test for so many mutations, the same ones each time."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,  # `one_line` has one that also ends a test that hangs
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def parts_of(value: object) -> list[tuple]:
    """Returns the places in a JSON value: containers with a key or an index."""
    found: list[tuple] = []
    if isinstance(value, dict):
        found += [(value, key) for key in value]
    elif isinstance(value, list):
        found += [(value, index) for index in range(len(value))]
    for container, key in list(found):
        found += parts_of(container[key])
    return found


def changed_json(draw: Callable, value: object) -> bytes:
    """Changes some places of a JSON value, and then perhaps its text."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = parts_of(value)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["value", "value", "remove", "repeat", "deep"]))
        if kind == "remove":
            del container[key]
        elif kind == "repeat" and isinstance(container, list):
            container.append(container[key])
        elif kind == "deep":
            deep = container[key]
            for _ in range(draw(st.sampled_from([1, 90]))):
                deep = [deep]
            container[key] = deep
        else:
            container[key] = draw(VALUES)
    text = json.dumps(value).encode()
    if draw(st.integers(0, 9)) == 0:
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.sampled_from(JSON_PIECES)) + text[start:]
    return changed_bytes(draw, text) if draw(st.integers(0, 3)) == 0 else text


def changed_bytes(draw: Callable, content: bytes) -> bytes:
    """Changes, removes, repeats or adds some bytes."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = start + draw(st.sampled_from([1, 1, 2, 4, 40]))
        kind = draw(st.sampled_from(["flip", "flip", "set", "cut", "end", "repeat"]))
        if kind == "flip" and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[start:end] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "cut":
            del data[start:end]
        elif kind == "end":
            del data[start:]
        else:
            data[start:start] = data[start:end] * draw(st.sampled_from([1, 50]))
    return bytes(data)


# --- COCO -------------------------------------------------------------------------


def make_coco(path: Path) -> dict:
    """Writes a data set, and returns the content of its training part."""
    (path / "annotations").mkdir(parents=True)
    content = {
        "images": [
            {"id": key, "file_name": f"{name}.png", "width": 90, "height": 60}
            for key, name in enumerate("ab", 1)
        ],
        "annotations": [
            {"id": key, "image_id": key, "category_id": key, "bbox": [9, 6, 36, 24]}
            | {"area": 90.5, "iscrowd": 0}
            for key in (1, 2)
        ],
        "categories": [
            {"id": 1, "name": "cup", "supercategory": "thing"},
            {"id": 2, "name": "dog", "supercategory": "thing"},
        ],
    }
    for part in ("train", "val"):
        (path / part).mkdir()
        for name in "ab":
            picture = pil_file("RGB", (9 * len(part), ord(name), 0), "PNG", (90, 60))
            (path / part / f"{name}.png").write_bytes(picture)
        file = path / "annotations" / f"instances_{part}.json"
        file.write_text(json.dumps(content), "utf-8")
    load_source("detection", f"coco:{path}")  # the first time takes seconds
    return content


@mutations(600)
@given(st.data())
def test_json_of_coco(tmp_path_factory, data):
    folder = FOLDERS.get("coco", tmp_path_factory, make_coco)
    file = folder / "annotations" / "instances_train.json"
    file.write_bytes(changed_json(data.draw, FOLDERS.made["coco"]))
    with one_line(folder, str(folder)):
        source = load_source("detection", f"coco:{folder}")
        for example in source.examples("train", None):
            path = example["path"].numpy()
            assert path.startswith(os.fsencode(folder)) and b".." not in path


# --- PASCAL VOC -------------------------------------------------------------------

XML = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    + voc_xml(("cat", 9, 6, 45, 30), ("dog", 2, 2, 9, 9)).replace(
        "<annotation>",
        "<annotation><filename>a.jpg</filename><size><width>90</width>"
        "<height>60</height><depth>3</depth></size>",
    )
).encode()
XML_PIECES = (
    b'<!DOCTYPE a [<!ENTITY b "x">]>',
    b'<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    b"&b;",
    b"<object>",
    b"<a>" * 5000,
    b"<![CDATA[",
    b"1e400",
    b"nan",
    b"-1",
    b"utf-16",
    b"unicode_escape",
    b"punycode",
    b"base64",
    b"idna",
    "\u2028".encode(),
)


def changed_xml(draw: Callable) -> bytes:
    content = bytearray(XML)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 0, 2, 5]))
        content[start:end] = draw(st.sampled_from(XML_PIECES))
    if draw(st.booleans()):  # the declared encoding
        encoding = draw(st.sampled_from([p for p in XML_PIECES if p.isalnum()]))
        content = bytearray(bytes(content).replace(b"UTF-8", encoding))
    return (
        changed_bytes(draw, bytes(content)) if draw(st.booleans()) else bytes(content)
    )


def make_voc(path: Path) -> None:
    names = {name: XML.decode() for name in "ab"}
    make_voc_boxes(path, names, {"c": XML.decode()})
    load_source("detection", f"voc:{path}")


@mutations(500)
@given(st.data())
def test_xml(tmp_path_factory, data):
    folder = FOLDERS.get("voc", tmp_path_factory, make_voc)
    (folder / "Annotations" / "a.xml").write_bytes(changed_xml(data.draw))
    with one_line(folder, str(folder)):
        load_source("detection", f"voc:{folder}")


@mutations(100)
@given(st.data())
def test_lists_of_images(tmp_path_factory, data):
    folder = FOLDERS.get("lists", tmp_path_factory, make_voc)
    file = folder / "ImageSets" / "Main" / "train.txt"
    file.write_bytes(changed_bytes(data.draw, b"a  1\nb -1\n../c\n/etc/passwd\n"))
    with one_line(folder, str(folder)):
        load_source("detection", f"voc:{folder}")


# --- Images -----------------------------------------------------------------------


def several(kind: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def saved(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    noise().convert(mode).save(file, kind, **options)
    return file.getvalue()


PICTURES = [
    saved("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\3\0\1\0\0\0\6\0\0\0"),
    saved("JPEG", progressive=True),
    saved("JPEG", "CMYK"),
    saved("PNG"),
    saved("PNG", "P"),
    saved("PNG", "RGBA"),
    saved("BMP"),
    saved("BMP", "P"),
    saved("GIF", "P"),
    saved("WEBP"),
    saved("TIFF", compression="tiff_lzw"),
    several("GIF"),
    several("WEBP"),
    several("MPO"),
]


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def crop(encoded):
    return images.center_crop({"encoded": encoded}, (16, 16), 1.0)


def make_picture(path: Path) -> None:
    path.mkdir()
    crop(tf.constant(PICTURES[0]))  # traces the function


@mutations(700)
@given(st.data())
def test_images(tmp_path_factory, data):
    folder = FOLDERS.get("images", tmp_path_factory, make_picture)
    content = changed_bytes(data.draw, data.draw(st.sampled_from(PICTURES)))
    file = folder / "photo.jpg"
    file.write_bytes(content)
    with one_line(folder, str(file)):
        size = read_header(file).size
        assert read_image(file).shape == (*size[::-1], 3)
    with one_line(folder, str(file)):
        with contextlib.suppress(tf.errors.OpError):  # which the pipeline skips
            assert crop(tf.constant(content)).shape == (16, 16, 3)


def make_masks(path: Path) -> None:
    masks = {name: PLAIN_MASK for name in "ab"}
    make_voc_masks(path, masks, {"c": PLAIN_MASK})
    load_source("segmentation", f"voc:{path}")


@mutations(200)
@given(st.data())
def test_masks(tmp_path_factory, data):
    folder = FOLDERS.get("masks", tmp_path_factory, make_masks)
    good = (folder / "SegmentationClass" / "b.png").read_bytes()
    file = folder / "SegmentationClass" / "a.png"
    file.write_bytes(changed_bytes(data.draw, good))
    with one_line(folder, str(folder)):
        load_source("segmentation", f"voc:{folder}")


# --- Records ----------------------------------------------------------------------

RECORD = {"epoch": 1, "train_loss": 1.0, "loss": 2.0, "top1": 0.5} | {
    "learning_rate": 0.1,
    "images_per_second": 90.0,
}


@mutations(250)
@given(st.data())
def test_metrics(tmp_path_factory, data):
    folder = FOLDERS.get("metrics", tmp_path_factory, Path.mkdir)
    file = folder / "metrics.jsonl"
    lines = [
        changed_json(data.draw, RECORD | {"epoch": epoch})
        if epoch == 2
        else json.dumps(RECORD | {"epoch": epoch}).encode()
        for epoch in (1, 2, 3)
    ]
    file.write_bytes(b"\n".join(lines) + b"\n")
    with one_line(folder, str(file)):
        records = read_epochs(file, "top1")
        assert {1, 3} <= {record["epoch"] for record in records}
        if data.draw(st.integers(0, 19)) == 0:  # these two take most of the time
            plot_curves(records, "top1").savefig(io.BytesIO())
            RecordWriter(folder, 3, "top1")


@mutations(250)
@given(st.data())
def test_configurations(tmp_path_factory, data):
    folder = FOLDERS.get("config", tmp_path_factory, Path.mkdir)
    file = folder / "config.json"
    save_config(make_config("digits"), file)
    values = json.loads(file.read_text("utf-8"))
    file.write_bytes(changed_json(data.draw, values))
    with one_line(folder, str(file)):
        load_config(file)


def make_checkpoint(path: Path) -> dict:
    path.mkdir()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a")])
    groups = {"model": model}
    save_checkpoint(path / "good.safetensors", groups, PROGRESS)
    return groups


PROGRESS = dataclasses.asdict(Progress(epoch=1, step=2, best=0.5))


@mutations(300)
@given(st.data())
def test_checkpoints(tmp_path_factory, data):
    folder = FOLDERS.get("checkpoint", tmp_path_factory, make_checkpoint)
    groups, good = FOLDERS.made["checkpoint"], folder / "good.safetensors"
    file = folder / "checkpoint.safetensors"
    if data.draw(st.booleans()):
        file.write_bytes(changed_bytes(data.draw, good.read_bytes()))
    else:
        progress = changed_json(data.draw, PROGRESS).decode("utf-8", "replace")
        save_file(load_file(good), file, metadata={"progress": progress})
    before = [x.numpy() for x in groups["model"].variables]
    with one_line(folder, str(file)):
        try:
            saved = load_checkpoint(file, groups)
        except ValueError:
            for variable, value in zip(groups["model"].variables, before):
                np.testing.assert_array_equal(variable.numpy(), value)
            raise
        Progress.of_checkpoint(saved, file)


class Folders:
    """Folders that all mutations of a test share: to write them takes long."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}
        self.made: dict[str, object] = {}

    def get(self, name: str, factory, make: Callable[[Path], object]) -> Path:
        """Returns the folder of a test, and makes it for the first mutation."""
        if name not in self.paths:
            path = factory.mktemp(name) / "data"
            self.made[name] = make(path)
            self.paths[name] = path
        return self.paths[name]


FOLDERS = Folders()
