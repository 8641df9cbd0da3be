"""Boxes from PASCAL VOC's XML files."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException
from tqdm import tqdm

from train.data.annotations import (
    Objects,
    box_areas,
    image_header,
    place_boxes,
    without_repeats,
)
from train.data.geometry import find_canvas
from train.data.repairs import Repairs
from train.data.sources import IMAGE_SUFFIXES
from train.data.voc import Files, read_names, without_ending

_ENCODING = re.compile(rb"""<\?xml[^>]*encoding=["']([\w.-]+)["']""")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _number(node: Element, tag: str) -> float:
    try:
        return float(node.findtext(tag, "nan"))
    except ValueError:
        return float("nan")


def _decoded(content: bytes) -> bytes | str:
    """Decodes what the parser cannot: encodings of several bytes that XML declares."""
    declared = _ENCODING.match(content)
    name = declared[1].decode() if declared else "utf-8"
    return content if name.lower().startswith("utf") else content.decode(name)


def _parse(file: Path, repairs: Repairs) -> Element | None:
    """Parses an annotation, or returns `None`; entities in it are refused."""
    try:
        root = defusedxml.ElementTree.fromstring(_decoded(file.read_bytes()))
    except (ParseError, DefusedXmlException, OSError, LookupError, ValueError):
        # The last two of encodings that are unknown, or not what was declared.
        repairs.add("annotations that are no XML, images left out", str(file))
        return None
    for node in root.iter():  # whatever namespace and case a tool writes
        node.tag = node.tag.rpartition("}")[2].lower()
    if root.tag == "annotation":
        return root
    kind = "XML files without an <annotation>, images left out"
    repairs.add(kind, str(file))
    return None


def _stated_size(root: Element) -> tuple[int, int] | None:
    """Returns (width, height) by the annotation, `None` if it states none."""
    sides = [_number(root, f"size/{tag}") for tag in ("width", "height")]
    if not all(np.isfinite(side) and side >= 1 for side in sides):
        return None
    return round(sides[0]), round(sides[1])


class _Pictures:
    """Finds the pictures of annotations, none of them for two.

    Args:
        path: the folder of Annotations and JPEGImages.
        repairs: counts what is found in another way than by its own name.
    """

    def __init__(self, path: Path, repairs: Repairs):
        self.images = Files(path / "JPEGImages", IMAGE_SUFFIXES)
        self.annotations = Files(path / "Annotations", (".xml",))
        self.repairs = repairs
        self._owners = {}

    def find(self, name: str, file: Path, root: Element) -> Path | None:
        """Returns the picture of an annotation, by its own name before all others.

        Args:
            name: in the list.
            file: of the annotation.
            root: of its XML, whose <filename> may be that of before a renaming, or of
                the annotation that this one is a copy of.

        Raises:
            ValueError: if several pictures may be meant, or one by two annotations.
        """
        said = [root.findtext(tag, "").strip() for tag in ("filename", "path")]
        own = self.images.find(name)
        if len(own) > 1:
            own = [image for image in own if image.name in said] or own
        if own:
            image = own[0] if len(own) == 1 else self.images.find_one(name)
            self._tell_other_filename(image, said[0], file)
        else:
            image = self._by_filename(said, file)
        if image is None:
            kind = "images that are missing, left out"
            missing = self.images.folder / f"{without_ending(name)}.jpg"
            self.repairs.add(kind, str(missing))
        elif (owner := self._owners.setdefault(image, file)) != file:
            raise ValueError(
                f"{owner} and {file} are both annotations of {image}. Remove one of "
                "them from the list, or give its picture the name of the annotation."
            )
        return image

    def _by_filename(self, said: list[str], file: Path) -> Path | None:
        for name in filter(None, said):
            image = self.images.find_one(name)
            if image is None:
                continue
            stem = without_ending(image.relative_to(self.images.folder).as_posix())
            if not self.annotations.find(stem):
                kind = "images found by the <filename> of their annotation"
                self.repairs.add(kind, str(file))
                return image
            kind = (
                "annotations whose <filename> names the image of another annotation, "
                "left out"
            )
            self.repairs.add(kind, str(file))
        return None

    def _tell_other_filename(self, image: Path, said: str, file: Path) -> None:
        stem = without_ending(Path(said.replace("\\", "/")).name)
        if stem and stem.lower() != without_ending(image.name).lower():
            kind = (
                "annotations with the <filename> of another image, taken as of the "
                "image that has the annotation's own name"
            )
            self.repairs.add(kind, str(file))


def voc_objects(path: Path, split: str, repairs: Repairs) -> Iterator[Objects]:
    """Reads one split of a data set in PASCAL VOC's layout.

    Args:
        path: the folder of Annotations, JPEGImages and ImageSets.
        split: `"train"` or `"val"`.
        repairs: counts what is repaired or left out.

    Yields:
        Of each image `Objects`, whose classes are the names that the file has.

    Raises:
        ValueError: if there is no such list, or an annotation is not that of its image.
    """
    listed = path / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        raise ValueError(
            f"There is no file {listed}. Expected the layout of PASCAL VOC: {path}/"
            "Annotations/*.xml, JPEGImages/*, ImageSets/Main/train.txt and val.txt."
        )
    pictures = _Pictures(path, repairs)
    names = read_names(listed, (pictures.annotations, pictures.images), repairs)
    for name in tqdm(names, f"{split} boxes", disable=None, leave=False):
        file = pictures.annotations.find_one(name)
        if file is None:
            kind = "annotations that are missing, images left out"
            missing = pictures.annotations.folder / f"{without_ending(name)}.xml"
            repairs.add(kind, str(missing))
            continue
        root = _parse(file, repairs)
        image = None if root is None else pictures.find(name, file, root)
        header = None if image is None else image_header(image, repairs)
        if header is not None:
            said = f"{file} states"
            canvas = find_canvas(header, _stated_size(root), said, image, repairs)
            yield _objects(root, image, file, canvas, repairs)


def _is_difficult(node: Element) -> bool:
    return node.findtext("difficult", "").strip().lower() in ("1", "true", "1.0")


def _objects(root: Element, image: Path, file: Path, canvas, repairs) -> Objects:
    nodes = list(root.iter("object"))
    corners = [[_number(node, f"bndbox/{tag}") for tag in _CORNERS] for node in nodes]
    boxes, kept = place_boxes(corners, canvas, str(file), repairs)
    names = np.array([node.findtext("name", "").strip() for node in nodes], object)
    is_named = names[kept] != ""
    unnamed = np.count_nonzero(~is_named)
    repairs.add("objects without a name, left out", str(file), unnamed)
    boxes, kept = boxes[is_named], np.flatnonzero(kept)[is_named]
    difficult = np.array([_is_difficult(node) for node in nodes], bool)[kept]
    areas = np.where(difficult, np.inf, box_areas(boxes))
    objects = Objects(str(image), boxes, names[kept], difficult, areas)
    return without_repeats(objects, str(file), repairs)
