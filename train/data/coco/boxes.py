"""Images with boxes in COCO's layout: a JSON file and a folder for each split."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np
from absl import logging
from tqdm import tqdm

from train.data.annotation_report import AnnotationReport
from train.data.box_annotations import (
    Objects,
    box_areas,
    drop_repeats,
    has_few_objects,
    image_header,
    is_set,
    object_file_source,
    place_boxes,
    refuse_fractions,
)
from train.data.coco.annotation_file import (
    coco_categories,
    drop_root_categories,
    images_by_id,
    normalize_name,
    read_coco,
)
from train.data.folder import find_part
from train.data.geometry import find_canvas
from train.data.source import SPLITS, Source, refuse_other_classes

_PARTS = dict(zip(SPLITS, ("train", "val")))
ROBOFLOW = "_annotations.coco.json"  # the name of annotations in exports of Roboflow


def coco_source(argument: str, cache: bool = False) -> Source:
    """Opens a data set in COCO's layout.

    `PATH/annotations/instances_train*.json` and `instances_val*.json`. The images are
    in folders with the rest of these names, such as `PATH/train2017/*`. Or, in exports
    of Roboflow, `_annotations.coco.json` beside the images in `PATH/train` and
    `PATH/valid`.
    """
    path, report = Path(argument).expanduser(), AnnotationReport()
    files = _annotation_files(path)
    contents = {file: read_coco(file) for file in files.values()}
    drop_root_categories(contents)
    categories = {
        split: coco_categories(contents[file], file, report)
        for split, file in files.items()
    }
    class_names = _common_names(path, categories)
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split, file in files.items():
        folder = file.parent
        if file.name != ROBOFLOW:
            folder = path / file.stem.removeprefix("instances_")
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder} with the images of {file}.")
        by_id = {key: labels[name] for key, name in categories[split].items()}
        objects = coco_objects(contents[file], by_id, folder, file, report)
        splits[split] = list(objects)
    report.log()
    refuse_fractions(f"coco:{path}", splits, report)
    return object_file_source(f"coco:{path}", class_names, splits, cache)


def _annotation_files(path: Path) -> dict[str, Path]:
    """Finds the annotations of both splits, in COCO's layout or in Roboflow's."""
    parts = {split: find_part(path, split) for split in SPLITS}
    found = {
        split: part / ROBOFLOW
        for split, part in parts.items()
        if part is not None and (part / ROBOFLOW).exists()
    }
    if not found or (path / "annotations").is_dir():
        return {split: _annotation_file(path, part) for split, part in _PARTS.items()}
    if len(found) < len(SPLITS):
        raise ValueError(
            f"{path} has only {next(iter(found.values()))}. Expected Roboflow's "
            f"{path}/train/{ROBOFLOW} and {path}/valid/{ROBOFLOW}. Export the data "
            "with both parts."
        )
    return found


def _annotation_file(path: Path, part: str) -> Path:
    """Finds the annotations of a part, `train` or `val`, in COCO's layout."""
    found = sorted((path / "annotations").glob(f"instances_{part}*.json"))
    if len(found) != 1:
        raise ValueError(
            f"Expected one file {path}/annotations/instances_{part}*.json. Found: "
            f"{', '.join(file.name for file in found) or 'none'}. Roboflow's "
            f"train/{ROBOFLOW} and valid/{ROBOFLOW} are read, too."
        )
    return found[0]


def _common_names(path: Path, categories: dict[str, dict[int, str]]) -> list[str]:
    """Returns the names of the classes, in the order of their ids in training."""
    train, validation = (categories[split] for split in SPLITS)
    refuse_other_classes(str(path), train.values(), validation.values())
    if train != validation:
        logging.warning(
            "The categories of %s have other ids in val than in train. Categories with "
            "the same name are taken as the same.",
            path,
        )
    return list(train.values())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _leaves(name: str) -> bool:
    """Tells whether a name leads out of the folder that it starts from."""
    has_drive = bool(PureWindowsPath(name).drive)  # in a file that Windows wrote
    return has_drive or os.path.isabs(name) or ".." in PurePath(name).parts


class _Folder:
    """Finds the files of images by their names in annotations."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._present = {entry.name for entry in folder.iterdir()}
        self._names: dict[Path, str] = {}

    def find(self, file_name: str) -> Path | None:
        """Returns the path of an image, if need be by the last part of its name.

        A name that leads to the file of another name, or out of the folder, is
        refused.
        """
        plain = normalize_name(file_name)
        outside = None
        # One listing finds names without folders; others need a look at the disk.
        for name in (file_name, plain, plain.rpartition("/")[2]):
            path = self.folder / name
            is_present = name in self._present
            if not is_present and _leaves(name):  # the disk is not asked for it
                outside = path
            elif is_present or _is_file(path):
                other = self._names.setdefault(path, plain)
                if other != plain:
                    raise ValueError(
                        f"The annotations name two images, {other} and {plain}, but "
                        f"there is only {path} for both. Restore the images that the "
                        "annotations name."
                    )
                return path
        if outside is not None:
            raise ValueError(
                f"The annotations name the image {file_name!r}, which is outside of "
                f"{self.folder}. Move it into this folder, and name it from there."
            )
        return None


def coco_objects(
    content: dict,
    labels: dict[int, int],
    folder: Path,
    file: Path,
    report: AnnotationReport,
) -> Iterator[Objects]:
    """Yields the `Objects` of each image in the content of `file` that exists.

    `labels` are by the categories' ids. An image that is listed under several ids has
    the objects of all of them.
    """
    images = images_by_id(content, file, report)
    found: dict[Path, list[Objects]] = {}
    by_image = _annotations_by_image(content, images, labels, file, report)
    files = _Folder(folder)
    progress = tqdm(images.items(), file.stem, unit="img", disable=None, leave=False)
    for key, image in progress:
        path = files.find(image["file_name"])
        if path is None:
            path = folder / image["file_name"]
            report.add("images that are missing, skipped", str(path))
            continue
        objects = _objects(image, by_image.get(key, []), labels, path, file, report)
        if objects is not None:
            found.setdefault(path, []).append(objects)
    for path, parts in found.items():
        kind = "images listed under several ids, with the objects of all of them"
        report.add(kind, str(path), len(parts) > 1)
        columns = map(np.concatenate, zip(*(part[1:] for part in parts)))
        objects = drop_repeats(Objects(str(path), *columns), str(path), report)
        if has_few_objects(len(objects.boxes), str(path), report):
            yield objects


def _annotations_by_image(
    content: dict,
    images: dict[int, dict],
    labels: dict[int, int],
    file: Path,
    report: AnnotationReport,
) -> dict[int, list[dict]]:
    by_image: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        key = annotation.get("id", "without id")
        if annotation["image_id"] not in images:
            kind = "objects of images that are not listed, skipped"
            report.add(kind, f"{file}, id {key}")
            continue
        if annotation["category_id"] not in labels:
            raise ValueError(
                f"{file}: the object {key} has the category "
                f"{annotation['category_id']}, which the file does not list. Add it to "
                "the categories, or remove its objects."
            )
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    return by_image


def _objects(
    image: dict,
    found: list[dict],
    labels: dict[int, int],
    path: Path,
    file: Path,
    report: AnnotationReport,
) -> Objects | None:
    """Returns the `Objects` of one entry; `None` if its image cannot be read."""
    header = image_header(path, report)
    if header is None:
        return None
    size = (image["width"], image["height"])
    canvas = find_canvas(header, size, f"{file} states", path, report)
    # Python integers can exceed float64; no coordinate does.
    rows = [[x if abs(x) < 1e18 else math.nan for x in a["bbox"]] for a in found]
    xywh = np.array(rows, np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes, kept = place_boxes(corners, canvas, str(path), report)
    classes = np.array([labels[a["category_id"]] for a in found], np.int32)
    is_crowd = np.array([is_set(a.get("iscrowd")) for a in found], bool)
    areas = np.array([_area(a) for a in found], np.float64)[kept] / (size[0] * size[1])
    areas = np.where(areas > 0, areas, box_areas(boxes))
    return Objects(str(path), boxes, classes[kept], is_crowd[kept], areas)


def _area(annotation: dict) -> float:
    """Returns the area of an object's mask; 0 if the entry has no valid area."""
    area = annotation.get("area")
    return area if isinstance(area, int | float) and abs(area) < 1e18 else 0.0
