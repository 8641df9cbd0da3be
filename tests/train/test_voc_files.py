"""Lists and files of VOC's layout, in the forms that people have them."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_files import pil_file
from tests.helpers.voc_files import examples_of, voc_xml
from train.data.registry import load_source

FOLDERS = (
    "Annotations",
    "JPEGImages",
    "SegmentationClass",
    "ImageSets/Main",
    "ImageSets/Segmentation",
)
MASK = np.tile(np.uint8([0, 1]), (60, 45))
XML = voc_xml(("cup", 9, 6, 45, 30))
TASKS = ("detection", "segmentation")


@pytest.fixture
def voc(tmp_path):
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    add(tmp_path, "v")
    write_list(tmp_path, "val", "v\n")
    return tmp_path


def add(path: Path, name: str, image=".jpg", mask=".png", xml=".xml", filename=""):
    """Adds an image of 90x60 pixels, a mask and an XML, with these endings."""
    kind = {".png": "PNG", ".bmp": "BMP"}.get(image.lower(), "JPEG")
    photo = pil_file("RGB", (200, 30, 30), kind)
    (path / "JPEGImages" / f"{name}{image}").write_bytes(photo)
    Image.fromarray(MASK).convert("P").save(
        path / "SegmentationClass" / f"{name}{mask}"
    )
    tag = f"<annotation><filename>{filename}</filename>"
    (path / "Annotations" / f"{name}{xml}").write_text(XML.replace("<annotation>", tag))


def write_list(path: Path, part: str, text: str, encoding: str = "utf-8") -> None:
    for kind in ("Main", "Segmentation"):
        (path / "ImageSets" / kind / f"{part}.txt").write_bytes(text.encode(encoding))


def taken(task: str, path: Path) -> list[str]:
    """Returns the names of the images of the training part."""
    source = load_source(task, f"voc:{path}")
    return [Path(x["path"].decode()).name for x in examples_of(source, "train")]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "{}.jpg",
        "{}.JPG",
        "{}.xml",
        "{}.png",
        "JPEGImages/{}.jpg",
        "/home/me/data/VOC2012/JPEGImages/{}.jpg",
        r"C:\Users\me\JPEGImages\{}.jpg",
        r"data\{}",
        "{}  1",
        "{} -1",
        "{}.jpg\t0",
        "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png",
        "JPEGImages/{0}.jpg SegmentationClass/{0}.png",
        "{0}.jpg {0}.png",
        "  {}\t",
    ],
)
@pytest.mark.parametrize("name", ["my photo 1", "x_jpg.rf.0a1b"])
def test_forms_of_a_line(task, line, name, voc):
    add(voc, name)
    write_list(voc, "train", line.format(name) + "\n")
    assert taken(task, voc) == [f"{name}.jpg"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
def test_ends_of_lines_and_marks(task, encoding, end, voc):
    for name in ("a", "größe"):
        add(voc, name)
    write_list(voc, "train", f"a{end}größe{end}", encoding)
    assert taken(task, voc) == ["a.jpg", "größe.jpg"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_list_in_another_encoding_is_refused(task, encoding, voc):
    write_list(voc, "train", "größe\n", encoding)
    with pytest.raises(
        ValueError, match="train.txt is not text in UTF-8. Save it again"
    ):
        load_source(task, f"voc:{voc}")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "endings",
    [
        {"image": ".JPG"},
        {"image": ".jpeg"},
        {"image": ".Png"},
        {"image": ".bmp"},
        {"mask": ".PNG"},
        {"mask": ".bmp"},
        {"mask": ".tif"},
        {"xml": ".XML"},
    ],
)
def test_endings_of_files(task, endings, voc):
    add(voc, "a", **endings)
    write_list(voc, "train", "a\n")
    assert taken(task, voc) == [f"a{endings.get('image', '.jpg')}"]


@pytest.mark.parametrize("task", TASKS)
def test_names_in_another_case_and_in_folders(task, voc):
    add(voc, "IMG_1")
    for folder in ("JPEGImages", "SegmentationClass", "Annotations"):
        (voc / folder / "more").mkdir()
    add(voc, "more/b")
    write_list(voc, "train", "img_1\nmore/b.jpg\n")
    assert taken(task, voc) == ["IMG_1.jpg", "b.jpg"]


@pytest.mark.parametrize("task", TASKS)
def test_an_image_is_listed_twice_in_two_forms(task, voc, caplog):
    add(voc, "a")
    write_list(voc, "train", "a\nJPEGImages/A.jpg\n")
    with caplog.at_level(logging.WARNING, "absl"):
        assert taken(task, voc) == ["a.jpg"]
    assert "images listed twice, taken once: 1, the first in" in caplog.text


@pytest.mark.parametrize("task", TASKS)
def test_two_images_of_one_name_are_refused_unless_the_list_tells(task, voc):
    add(voc, "a")
    (voc / "JPEGImages" / "a.png").write_bytes(pil_file("RGB", (0, 0, 9), "PNG"))
    write_list(voc, "train", "a\n")
    with pytest.raises(ValueError, match="a.jpg and a.png differ only in.*rename one"):
        load_source(task, f"voc:{voc}")
    write_list(voc, "train", "a.png\n")
    if task == "detection":  # while a mask may well have the name of the image
        assert taken(task, voc) == ["a.png"]


@pytest.mark.parametrize("task", TASKS)
def test_an_empty_list_and_an_image_in_both_lists(task, voc, caplog):
    write_list(voc, "train", "\ufeff\n")
    with pytest.raises(ValueError, match="train.txt is empty. Expected the name of"):
        load_source(task, f"voc:{voc}")
    write_list(voc, "train", "v\n")
    with caplog.at_level(logging.WARNING, "absl"):
        taken(task, voc)
    assert "1 of 1 validation images are training images, too; the first" in caplog.text


@pytest.mark.parametrize(
    "filename",
    ["a.jpg", "b.jpg", "b", "", "Screenshot 1.png", r"C:\photos\a.jpg", "folder/a.png"],
)
def test_an_annotation_is_of_the_image_of_its_own_name(filename, voc):
    """Whatever the <filename>, which copies of an XML keep."""
    add(voc, "a")
    add(voc, "b", image=".png", filename=filename)
    write_list(voc, "train", "a\nb\n")
    assert taken("detection", voc) == ["a.jpg", "b.png"]


@pytest.mark.parametrize("filename", ["p.jpg", "p", r"C:\photos\p.jpg", "P.JPG"])
def test_without_an_image_of_its_own_name_the_filename_counts(filename, voc, caplog):
    add(voc, "a", filename=filename)
    image = voc / "JPEGImages" / "a.jpg"
    image.rename(image.with_name("p.jpg"))
    write_list(voc, "train", "a\n")
    with caplog.at_level(logging.WARNING, "absl"):
        assert taken("detection", voc) == ["p.jpg"]
    assert "images found by the <filename> of their annotation: 1" in caplog.text


def test_the_image_of_another_annotation_is_not_taken(voc, caplog):
    add(voc, "a")
    add(voc, "b", filename="a.jpg")
    (voc / "JPEGImages" / "b.jpg").unlink()
    write_list(voc, "train", "a\nb\n")
    with caplog.at_level(logging.WARNING, "absl"):
        assert taken("detection", voc) == ["a.jpg"]
    assert "annotations whose <filename> names the image of another" in caplog.text


def test_two_annotations_of_one_image_are_refused(voc):
    for name in ("a", "b"):
        add(voc, name, filename="p.jpg")
        (voc / "JPEGImages" / f"{name}.jpg").unlink()
    (voc / "JPEGImages" / "p.jpg").write_bytes(pil_file("RGB", (0, 0, 9), "JPEG"))
    write_list(voc, "train", "a\nb\n")
    with pytest.raises(
        ValueError, match="a.xml and .*b.xml are both annotations of .*p.jpg"
    ):
        load_source("detection", f"voc:{voc}")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030", "cp1252"])
def test_xml_of_other_systems(encoding, voc):
    add(voc, "a")
    declared = {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    xml = f"<?xml version='1.0' encoding = '{declared}'?>\r\n{XML}"
    xml = xml.replace("cup", " größe\r\n")
    for name in "av":
        (voc / "Annotations" / f"{name}.xml").write_bytes(xml.encode(encoding))
    write_list(voc, "train", "a\n")
    assert load_source("detection", f"voc:{voc}").class_names == ("größe",)


@pytest.mark.parametrize("encoding", ["punycode", "utf-7", "hz", "foo"])
def test_xml_in_an_encoding_of_no_tool_is_left_out(encoding, voc, caplog):
    """To decode punycode takes quadratic time: these 400 KB would take 7 seconds."""
    for name in "ap":
        add(voc, name)
    write_list(voc, "train", "a\np\n")
    declaration = f'<?xml version="1.0" encoding="{encoding}"?>'
    text = declaration + "<annotation>-" + "zaaa9" * 80_000
    (voc / "Annotations" / "a.xml").write_text(text, "utf-8")
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "absl"):
        source = load_source("detection", f"voc:{voc}")
    assert time.monotonic() - start < 3 and source.num_examples["train"] == 1
    assert "encoding that is not read, images skipped: save them" in caplog.text
    assert "a.xml" in caplog.text


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (str.upper, 1),
        (lambda x: x.replace("<annotation>", '<annotation xmlns="http://a.b/c">'), 1),
        (lambda x: x.replace("object>", "Object>"), 1),
        (
            lambda x: x.replace("<object>", "<objects><object>").replace(
                "</object>", "</object></objects>"
            ),
            1,
        ),
        (lambda x: "<html><body>404</body></html>", None),
    ],
    ids=["upper case", "namespace", "one tag", "wrapped", "another XML"],
)
def test_xml_in_another_form_is_no_empty_picture(change, count, voc, caplog):
    for name in ("p", "q"):
        add(voc, name)
    write_list(voc, "train", "p\nq\n")
    file = voc / "Annotations" / "p.xml"
    text = change(file.read_text("utf-8")).replace("CUP", "cup")
    file.write_text(text, "utf-8")
    with caplog.at_level(logging.WARNING):
        source = load_source("detection", f"voc:{voc}")
    found = {
        Path(x["path"].decode()).stem: len(x["classes"])
        for x in examples_of(source, "train")
    }
    assert found == ({"p": count, "q": 1} if count else {"q": 1})
    assert bool(count) == ("XML files without an <annotation>" not in caplog.text)
