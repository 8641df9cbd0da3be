"""The content of COCO's JSON files, checked before it is used.

Ids of images and categories connect the parts of a file, so an id with two images or
two names is refused. Ids of annotations are not used and may repeat.
"""

from pathlib import Path, PureWindowsPath

from absl import logging

from keras_mobilevit.files import read_json
from train.data.annotation_report import AnnotationReport

# COCO's own files have half a gigabyte. To parse one takes several times its size.
MAX_JSON_BYTES = 2**32
_MAX_SIDE = 2**31 - 1  # no format of images has longer ones
_KEYS = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_KINDS = {
    int: "a whole number",
    str: "a string",
    list: "a list of four numbers: left, top, width and height in pixels",
}
_SIDES = ("width", "height")
_RENUMBER = (
    "This happens when two files that count from 1 are joined. Renumber the {}, also "
    "in the annotations."
)


def read_coco(file: Path) -> dict:
    """Reads and checks COCO's annotations; strips the names of the categories."""
    content = read_json(file, MAX_JSON_BYTES)
    keys = content if isinstance(content, dict) else {}
    missing = [part for part in _KEYS if not isinstance(keys.get(part), list)]
    if missing:
        raise ValueError(
            f"{file} is not a file of COCO annotations: it has no list of "
            f"{', '.join(missing)}."
        )
    for part, row_keys in _KEYS.items():
        for row in content[part]:
            _check_row(row, row_keys, f"{file}: one of its {part}")
    for category in content["categories"]:
        category["name"] = category["name"].strip()
        if not category["name"]:
            raise ValueError(f"{file}: the category {category['id']} has no name.")
    return content


def _check_row(row, keys: dict[str, type], where: str) -> None:
    """Raises a ValueError if a required key of an entry is missing or invalid."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not an object, but {str(row)[:200]}.")
    for key, kind in keys.items():
        if not _is_of(row.get(key), kind, key in _SIDES):
            least = f" from 1 to {_MAX_SIDE}" if key in _SIDES else ""
            raise ValueError(
                f"{where} has no valid {key!r}: {str(row)[:200]}. Expected "
                f"{_KINDS[kind]}{least}."
            )
    box = row.get("bbox", [0] * 4)
    if len(box) != 4 or not all(isinstance(x, int | float) for x in box):
        raise ValueError(
            f"{where} has a box that is not four numbers: {str(box)[:200]}. Expected "
            "left, top, width and height in pixels."
        )


def _is_of(value: object, kind: type, is_side: bool) -> bool:
    """Tells whether a value is of a kind; `True` and `False` are no numbers."""
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    return not is_side or (isinstance(value, int) and 1 <= value <= _MAX_SIDE)


def drop_root_categories(contents: dict[Path, dict]) -> None:
    """Drops categories that only group others from the content by file.

    Roboflow writes such categories. They have no objects in any of the files, and are
    the supercategory of others. A class may have the same name.
    """
    used = set()  # ids and names
    for content in contents.values():
        names = {row["id"]: row["name"] for row in content["categories"]}
        ids = {annotation["category_id"] for annotation in content["annotations"]}
        used |= {(key, names.get(key)) for key in ids}
    for file, content in contents.items():
        members: dict[str, set[int]] = {}  # ids by their supercategory
        for row in content["categories"]:
            if isinstance(group := row.get("supercategory"), str):
                members.setdefault(group.strip(), set()).add(row["id"])
        rows, content["categories"] = content["categories"], []
        for row in rows:
            is_group = members.get(row["name"], set()) - {row["id"]}
            if not is_group or (row["id"], row["name"]) in used:
                content["categories"].append(row)
                continue
            logging.warning(
                "%s: the category %d, %r, is not a class: it has no objects, and it is "
                "the supercategory of others.",
                file,
                row["id"],
                row["name"],
            )


def coco_categories(
    content: dict, file: Path, report: AnnotationReport
) -> dict[int, str]:
    """Returns the names of the classes by their ids, in the order of the ids."""
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    for row in sorted(content["categories"], key=lambda category: category["id"]):
        key, name = row["id"], row["name"]
        if names.get(key, name) != name:
            raise ValueError(
                f"{file}: the category id {key} stands for two names, {names[key]!r} "
                f"and {name!r}, so the class of its objects is uncertain. "
                + _RENUMBER.format("categories")
            )
        if ids.get(name, key) != key:
            raise ValueError(
                f"{file}: more than one category is called {name!r}: the ids "
                f"{ids[name]} and {key}. Rename one of them, or use one id for both."
            )
        if key in names:
            report.add("categories listed twice, taken once", f"{file}, id {key}")
        names[key], ids[name] = name, key
    return names


def images_by_id(
    content: dict, file: Path, report: AnnotationReport
) -> dict[int, dict]:
    """Returns the entries of images by their ids."""
    images: dict[int, dict] = {}
    for image in content["images"]:
        other = images.setdefault(image["id"], image)
        if other is image:
            continue
        name = normalize_name(image["file_name"])
        other_name = normalize_name(other["file_name"])
        if name != other_name:
            raise ValueError(
                f"{file}: the image id {image['id']} stands for two files, "
                f"{other_name} and {name}, so the image of its objects is uncertain. "
                f"{_RENUMBER.format('images')}"
            )
        sizes = [f"{row['width']}x{row['height']}" for row in (other, image)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{file}: the image {name}, id {image['id']}, is listed twice, with "
                f"{sizes[0]} and with {sizes[1]} pixels. Remove one of the entries."
            )
        report.add("images listed twice, taken once", name)
    return images


def normalize_name(file_name: str) -> str:
    r"""Writes the name of a file with slashes: `.\a\b.jpg` becomes `a/b.jpg`."""
    if "/" not in file_name and "\\" not in file_name:  # nearly all
        return file_name
    return PureWindowsPath(file_name).as_posix()
