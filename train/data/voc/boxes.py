"""Images with boxes in PASCAL VOC's layout: one XML file for each image."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException
from tqdm import tqdm

from keras_mobilevit.files import check_file
from train.data.annotation_report import AnnotationReport
from train.data.box_annotations import (
    Objects,
    box_areas,
    check_objects,
    drop_repeats,
    has_few_objects,
    image_header,
    is_set,
    object_file_source,
    place_boxes,
    refuse_fractions,
)
from train.data.geometry import Canvas, find_canvas
from train.data.source import IMAGE_SUFFIXES, SPLITS, Source, join_names
from train.data.voc.files import Files, read_names, without_ending

# An annotation of 4,096 objects has one. To parse this many bytes takes up to 1 GB.
MAX_XML_BYTES = 2**24
_ENCODING = re.compile(rb"""<\?xml[^>]*encoding\s*=\s*["']([\w.-]{1,40})["']""")
# Python's names of the encodings that annotation tools write. It has others, such as
# punycode, that take minutes for a megabyte.
_KNOWN_ENCODINGS = re.compile(
    r"utf-(8|16)(-[bl]e)?|ascii|iso8859-\d+|cp125\d|gb18030|gbk|gb2312|big5|shift_jis"
    r"|euc_jp|euc_kr|koi8-r"
)
_OTHER_ENCODING = (
    "annotations in an encoding that is not read, images skipped: save them as UTF-8"
)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FOUND_BY_FILENAME = "images found by the <filename> of their annotation"
_FILENAME_OF_ANOTHER = (
    "annotations whose <filename> names the image of another annotation, skipped"
)
_OTHER_FILENAME = (
    "annotations with the <filename> of another image, used for the image with the "
    "annotation's own name"
)


def voc_box_source(argument: str, cache: bool = False) -> Source:
    """Opens a data set of boxes in PASCAL VOC's layout.

    `PATH/Annotations/*.xml`, `PATH/JPEGImages/*`, `PATH/ImageSets/Main/train.txt` and
    `val.txt`. The classes are the names in the training part, sorted.
    """
    path, report = Path(argument).expanduser(), AnnotationReport()
    name = f"voc:{path}"
    named = {
        split: list(voc_objects(path, voc_split, report))
        for split, voc_split in zip(SPLITS, ("train", "val"))
    }
    report.log()
    check_objects(name, named)
    refuse_fractions(name, named, report)
    class_names = _class_names(path, named)
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    splits = {
        split: [
            image._replace(classes=np.array([labels[n] for n in image.classes], int))
            for image in images
        ]
        for split, images in named.items()
    }
    return object_file_source(name, class_names, splits, cache)


def _class_names(path: Path, splits: dict[str, list[Objects]]) -> list[str]:
    """Returns the sorted names of the training part, which has all classes."""
    names = {
        split: {name for image in images for name in image.classes}
        for split, images in splits.items()
    }
    unknown = sorted(names["validation"] - names["train"])
    if unknown:
        raise ValueError(
            f"The validation part of {path} has classes that the training part lacks: "
            f"{join_names(unknown)}. The training part has: "
            f"{join_names(sorted(names['train']))}. Write the same names in both, or "
            "remove these objects."
        )
    return sorted(names["train"])


def _number(node: Element, tag: str) -> float:
    try:
        return float(node.findtext(tag, "nan"))
    except ValueError:
        return float("nan")


def _encoding(content: bytes) -> str | None:
    """Returns the declared encoding of an XML file, or `None` if it is not allowed."""
    declared = _ENCODING.match(content)
    try:
        name = codecs.lookup(declared[1].decode()).name if declared else "utf-8"
    except LookupError:
        return None
    return name if _KNOWN_ENCODINGS.fullmatch(name) else None


def _parse(file: Path, report: AnnotationReport) -> Element | None:
    """Parses an annotation, or returns `None`; an XML file with entities is invalid."""
    try:
        check_file(file, MAX_XML_BYTES)
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        report.add("annotations that cannot be read, images skipped", str(error))
        return None
    encoding = _encoding(content)
    if encoding is None:
        report.add(_OTHER_ENCODING, str(file))
        return None
    try:
        # The parser knows UTF, but not every other encoding.
        text = content if encoding.startswith("utf") else content.decode(encoding)
        root = defusedxml.ElementTree.fromstring(text)
    except (ParseError, DefusedXmlException, LookupError, ValueError):
        # LookupError: the parser's, of an encoding. ValueError: not the declared one.
        report.add("annotations that are not valid XML, images skipped", str(file))
        return None
    for node in root.iter():  # tools differ in namespace and case
        node.tag = node.tag.rpartition("}")[2].lower()
    if root.tag == "annotation":
        return root
    report.add("XML files without an <annotation>, images skipped", str(file))
    return None


def _stated_size(root: Element) -> tuple[int, int] | None:
    """Returns the (width, height) that an annotation states, or `None`."""
    sides = [_number(root, f"size/{tag}") for tag in ("width", "height")]
    if not all(np.isfinite(side) and side >= 1 for side in sides):
        return None
    return round(sides[0]), round(sides[1])


class _ImageFinder:
    """Finds the image of each annotation, and no image for two annotations."""

    def __init__(self, path: Path, report: AnnotationReport):
        self.images = Files(path / "JPEGImages", IMAGE_SUFFIXES)
        self.annotations = Files(path / "Annotations", (".xml",))
        self.report = report
        self._owners: dict[Path, Path] = {}

    def find(self, name: str, file: Path, root: Element) -> Path | None:
        """Returns the image of the annotation `file`, listed as `name`, or `None`.

        The annotation's own name comes first. Its <filename> may be outdated, or copied
        from another annotation. A name that fits several images, or an image of two
        annotations, is refused.
        """
        stated = [root.findtext(tag, "").strip() for tag in ("filename", "path")]
        own = self.images.find(name)
        if len(own) > 1:
            own = [image for image in own if image.name in stated] or own
        image = own[0] if len(own) == 1 else self.images.find_one(name)
        if image is None:
            image = self._find_stated(stated, file)
        else:
            stem = without_ending(Path(stated[0].replace("\\", "/")).name)
            is_other = stem and stem.lower() != without_ending(image.name).lower()
            self.report.add(_OTHER_FILENAME, str(file), int(bool(is_other)))
        if image is None:
            missing = self.images.folder / f"{without_ending(name)}.jpg"
            self.report.add("images that are missing, skipped", str(missing))
        elif (owner := self._owners.setdefault(image, file)) != file:
            raise ValueError(
                f"{owner} and {file} are both annotations of {image}. Remove one of "
                "them from the list, or name its image like the annotation."
            )
        return image

    def _find_stated(self, stated: list[str], file: Path) -> Path | None:
        """Finds an image by its stated names, unless it has its own annotation."""
        for name in filter(None, stated):
            image = self.images.find_one(name)
            if image is None:
                continue
            stem = without_ending(image.relative_to(self.images.folder).as_posix())
            if not self.annotations.find(stem):
                self.report.add(_FOUND_BY_FILENAME, str(file))
                return image
            self.report.add(_FILENAME_OF_ANOTHER, str(file))
        return None


def voc_objects(path: Path, split: str, report: AnnotationReport) -> Iterator[Objects]:
    """Yields the objects of each image of `train` or `val`; their classes are names."""
    listed = path / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        raise ValueError(
            f"There is no file {listed}. Expected the layout of PASCAL VOC: {path}/"
            "Annotations/*.xml, JPEGImages/*, ImageSets/Main/train.txt and val.txt."
        )
    finder = _ImageFinder(path, report)
    names = read_names(listed, (finder.annotations, finder.images), report)
    for name in tqdm(names, f"{split} boxes", disable=None, leave=False):
        file = finder.annotations.find_one(name)
        if file is None:
            missing = finder.annotations.folder / f"{without_ending(name)}.xml"
            report.add("annotations that are missing, images skipped", str(missing))
            continue
        root = _parse(file, report)
        image = None if root is None else finder.find(name, file, root)
        header = None if image is None else image_header(image, report)
        if root is None or image is None or header is None:
            continue
        nodes = list(root.iter("object"))
        if not has_few_objects(len(nodes), str(image), report):
            continue  # before they are read, which takes much longer
        stated = _stated_size(root)
        canvas = find_canvas(header, stated, f"{file} states", image, report)
        yield _objects(nodes, image, file, canvas, report)


def _objects(
    nodes: list[Element],
    image: Path,
    file: Path,
    canvas: Canvas,
    report: AnnotationReport,
) -> Objects:
    corners = [[_number(node, f"bndbox/{tag}") for tag in _CORNERS] for node in nodes]
    boxes, kept = place_boxes(corners, canvas, str(file), report)
    names = np.array([node.findtext("name", "").strip() for node in nodes], object)
    is_named = names[kept] != ""
    unnamed = int(np.count_nonzero(~is_named))
    report.add("objects without a name, skipped", str(file), unnamed)
    boxes, kept = boxes[is_named], np.flatnonzero(kept)[is_named]
    flags = [is_set(node.findtext("difficult")) for node in nodes]
    difficult = np.array(flags, bool)[kept]
    areas = np.where(difficult, np.inf, box_areas(boxes))
    objects = Objects(str(image), boxes, names[kept], difficult, areas)
    return drop_repeats(objects, str(file), report)
