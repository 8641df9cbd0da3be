"""Files of masks, read and checked: PASCAL VOC's, and SBD's additions to them.

TensorFlow decodes a palette to its colours, so masks are read here, before the training
starts, and kept in memory as PNGs in gray whose values are the classes: a few kilobytes
for each image. All that is wrong with them is found then:

- an image or a mask that is missing or cannot be read is left out, with its partner,
  and so is an image that is listed twice: told of with a count and the first name;
- a mask of another size than its image, of colours instead of classes, or with a class
  that there is none of ends with an error, since the others are likely to be so too.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from train.annotations import Repairs, read_lines
from train.sources import IMAGE_SUFFIXES

IGNORED = 255  # in a mask: neither learned nor counted
_INDEXED = ("P", "L", "1")  # Pillow's modes of images with one small integer a pixel
_PNG = b"\x89PNG"
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class MaskedImage(NamedTuple):
    """An image and the classes of its pixels.

    Attributes:
        path: of the image.
        file: of the mask.
        mask: a PNG in gray, see `encode_mask`.
        size: (height, width).
        highest: class in the mask; -1 if all of it is ignored.
    """

    path: str
    file: str
    mask: bytes
    size: tuple[int, int]
    highest: int


def encode_mask(classes: np.ndarray) -> bytes:
    """Writes a mask, uint8 `[height, width]`, as a PNG in gray."""
    return tf.io.encode_png(classes[..., None]).numpy()


def decode_mask(encoded):
    """Reads what `encode_mask` wrote: uint8 `[height, width]`."""
    return tf.io.decode_png(encoded, channels=1)[..., 0]


def _voc_list(path: Path, split: str) -> tuple[Path, Path]:
    """Finds the list of a split, `train` or `val`, and the folder of its masks."""
    lists = path / "ImageSets" / "Segmentation"
    file, folder = lists / f"{split}.txt", path / "SegmentationClass"
    if split == "train" and (lists / "train_aug.txt").is_file():
        file, folder = lists / "train_aug.txt", path / "SegmentationClassAug"
    if not file.is_file() or not folder.is_dir():
        missing = folder if file.is_file() else file
        raise ValueError(
            f"There is no {missing}. Expected the layout of PASCAL VOC: {path}/"
            "JPEGImages/*, SegmentationClass/*.png, ImageSets/Segmentation/train.txt "
            "and val.txt; with SBD's masks train_aug.txt and SegmentationClassAug/*."
        )
    return file, folder


def _listed_name(line: str) -> str:
    """Returns the name that a line lists, of itself or of the path of its image."""
    # SBD's list has two paths in a line; names in VOC's may have spaces.
    name = Path(line.split()[0]).name if "/" in line else line.strip()
    return name.removesuffix(next((s for s in IMAGE_SUFFIXES if name.endswith(s)), ""))


def _image_file(folder: Path, name: str) -> Path | None:
    suffixes = (s for suffix in IMAGE_SUFFIXES for s in (suffix, suffix.upper()))
    files = (folder / f"{name}{suffix}" for suffix in suffixes)
    return next((file for file in files if file.is_file()), None)


def _image_size(file: Path) -> tuple[int, int] | None:
    """Returns (height, width), or `None` of what is no image."""
    try:
        with Image.open(file) as image:
            return image.height, image.width
    except _UNREADABLE:
        return None


def read_mask(file: Path) -> np.ndarray | None:
    """Reads a mask of any kind of file.

    Args:
        file: of an image with a palette or in gray.

    Returns:
        The classes, uint8 `[height, width]`; `None` of a file that cannot be read.

    Raises:
        ValueError: if it is an image of colours.
    """
    try:
        with Image.open(file) as image:
            mode, values = image.mode, np.asarray(image)
    except _UNREADABLE:
        return None
    if mode not in _INDEXED:
        kind = "colours" if mode in ("RGB", "RGBA") else "another kind"
        raise ValueError(
            f"{file} is a mask of {kind} ({mode}). Expected the class of each pixel: "
            "a PNG with a palette, or in gray of 8 bits."
        )
    return values.astype(np.uint8) // _gray_step(file)


def _gray_step(file: Path) -> int:
    """Returns what Pillow multiplies a gray PNG's values by, if they have few bits."""
    with open(file, "rb") as opened:
        header = opened.read(26)
    if not header.startswith(_PNG):
        return 1
    bits, color = header[24:26]  # by the PNG specification, in its first chunk, IHDR
    return 255 // (2**bits - 1) if color == 0 and bits in (2, 4) else 1


def _read_pair(image: Path, file: Path, repairs: Repairs) -> MaskedImage | None:
    size, mask = _image_size(image), read_mask(file)
    if size is None or mask is None:
        unreadable = ("images", image) if size is None else ("masks", file)
        repairs.add(f"{unreadable[0]} that cannot be read, left out", unreadable[1])
        return None
    if mask.shape != size:
        (height, width), (mask_height, mask_width) = size, mask.shape
        raise ValueError(
            f"{file} has {mask_width}x{mask_height} pixels, but its image {image} has "
            f"{width}x{height}. Expected the same."
        )
    highest = (
        int(mask[mask != IGNORED].max(initial=0)) if (mask != IGNORED).any() else -1
    )
    return MaskedImage(str(image), str(file), encode_mask(mask), size, highest)


def voc_masks(path: Path, split: str, repairs: Repairs) -> list[MaskedImage]:
    """Reads one split of a data set in PASCAL VOC's layout.

    Args:
        path: the folder of JPEGImages, SegmentationClass and ImageSets.
        split: `"train"` or `"val"`.
        repairs: counts what is left out.

    Returns:
        The images whose masks can be read, in the order of the list.

    Raises:
        ValueError: if there is no such list or folder, no image of the list is left,
            or a mask is none of its image.
    """
    file, folder = _voc_list(path, split)
    lines = [line for line in read_lines(file) if line.strip()]
    counts = Counter(_listed_name(line) for line in lines)
    for name, count in counts.items():
        repairs.add("images listed twice, taken once", name, count - 1)
    found = []
    for name in tqdm(counts, f"{split} masks", disable=None, leave=False):
        image, mask = _image_file(path / "JPEGImages", name), folder / f"{name}.png"
        if image is None:
            repairs.add("images that are missing, left out", f"{file}: {name}")
        elif not mask.is_file():
            repairs.add("masks that are missing, images left out", str(mask))
        elif pair := _read_pair(image, mask, repairs):
            found.append(pair)
    if not found:
        raise ValueError(
            f"Of {len(counts)} images that {file} lists none has both an image in "
            f"{path}/JPEGImages and a mask in {folder} that can be read. Expected "
            f"NAME.jpg and NAME.png for each NAME."
        )
    if not any(pair.highest >= 0 for pair in found):
        raise ValueError(
            f"None of the {len(found)} masks in {folder} that {file} lists has a pixel "
            f"with a class. {IGNORED} means that a pixel is ignored."
        )
    return found
