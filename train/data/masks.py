"""Files of masks, read and checked: PASCAL VOC's, and SBD's additions to them.

TensorFlow decodes a palette to its colours, so masks are read here, before the training
starts, and kept in memory as PNGs in gray whose values are the classes: a few kilobytes
for each image. All that is wrong with them is found then:

- an image or a mask that is missing or cannot be read is left out, with its partner,
  and so is an image that is listed twice: told of with a count and the first name;
- a mask that was drawn on the pixels as stored is turned with its image, and one of
  another size but the same aspect is resized by the nearest pixel (`train.data.geometry`);
- a mask of another aspect than its image, of colours instead of classes, of levels of
  gray that no list names, or with a class that there is none of ends with an error,
  since the others are likely to be so too.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from train.data.annotations import image_header
from train.data.geometry import find_canvas
from train.data.repairs import Repairs
from train.data.sources import IMAGE_SUFFIXES
from train.data.voc import MASK_SUFFIXES, Files, read_names, without_ending

IGNORED = 255  # in a mask: neither learned nor counted
_INDEXED = ("P", "L", "1")  # Pillow's modes of images with one small integer a pixel
_LOSSY = ("JPEG", "MPO")
_PNG = b"\x89PNG"
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class MaskedImage(NamedTuple):
    """An image and the classes of its pixels.

    Attributes:
        path: of the image.
        file: of the mask.
        mask: a PNG in gray, see `encode_mask`.
        classes: that the mask has, without the value for what is ignored.
    """

    path: str
    file: str
    mask: bytes
    classes: frozenset[int]


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
            mode, kind, values = image.mode, image.format, np.asarray(image)
    except _UNREADABLE:
        return None
    if kind == "GIF":
        raise ValueError(
            f"{file} is a mask in GIF, whose writers number the colors anew, so that "
            "they are no classes any more. Save the masks as PNG from what they were "
            "made of."
        )
    if kind in _LOSSY:
        raise ValueError(
            f"{file} is a mask in {kind}, which changes the values of pixels a little, "
            "so that they are no classes any more. Save the masks as PNG from what "
            "they were made of."
        )
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
    header, mask = image_header(image, repairs), read_mask(file)
    if mask is None:
        repairs.add("masks that cannot be read, left out", str(file))
    if header is None or mask is None:
        return None
    canvas = find_canvas(header, mask.shape[::-1], f"{file} has", image, repairs)
    mask = canvas.turn_mask(mask, header.size)
    classes = frozenset(np.unique(mask).tolist()) - {IGNORED}
    encoded = encode_mask(np.ascontiguousarray(mask))
    return MaskedImage(str(image), str(file), encoded, classes)


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
            a mask does not fit its image, or a name fits several files.
    """
    file, folder = _voc_list(path, split)
    images = Files(path / "JPEGImages", IMAGE_SUFFIXES)
    masks = Files(folder, MASK_SUFFIXES)
    found, names = [], read_names(file, (masks, images), repairs)
    for name in tqdm(names, f"{split} masks", disable=None, leave=False):
        image, mask = images.find_one(name), masks.find_one(name)
        if image is None:
            repairs.add("images that are missing, left out", f"{file}: {name}")
        elif mask is None:
            missing = folder / f"{without_ending(name)}.png"
            repairs.add("masks that are missing, images left out", str(missing))
        elif pair := _read_pair(image, mask, repairs):
            found.append(pair)
    if not found:
        raise ValueError(
            f"Of {len(names)} images that {file} lists none has both an image in "
            f"{path}/JPEGImages and a mask in {folder} that can be read. Expected "
            f"NAME.jpg and NAME.png for each NAME."
        )
    if not any(pair.classes for pair in found):
        raise ValueError(
            f"None of the {len(found)} masks in {folder} that {file} lists has a pixel "
            f"with a class. {IGNORED} means that a pixel is ignored."
        )
    return found
