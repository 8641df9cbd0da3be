"""Mean IoU, from a confusion matrix of pixels that is summed over batches."""

from collections.abc import Sequence

import numpy as np

from train.data.masks import decode_mask

PIXELS_AT_ONCE = 2**20


def _cells_at_centers(count: int, side: int) -> np.ndarray:
    """Returns which of `side` cells is at the center of each of `count` pixels."""
    # Integers, since (i + 0.5) * side / count must be exact at the edges of cells.
    return (2 * np.arange(count) + 1) * side // (2 * count)


def classes_at_pixels(class_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the class of the cell at the center of each pixel, `[*size]`."""
    rows, columns = map(_cells_at_centers, size, class_map.shape)
    return class_map[rows[:, None], columns]


def count_pixels(
    mask: np.ndarray, class_map: np.ndarray, num_classes: int
) -> np.ndarray:
    """Counts an image's pixels, `[labels, predictions]`.

    Labels from `num_classes` on do not count. The class map may have any size.
    """
    rows, columns = map(_cells_at_centers, mask.shape, class_map.shape)
    counts = np.zeros(num_classes**2, np.int64)
    # Strip by strip: the indices of a large photo's pixels take much memory.
    height = max(1, PIXELS_AT_ONCE // mask.shape[1])
    for top in range(0, mask.shape[0], height):
        labels = mask[top : top + height]
        found = class_map[rows[top : top + height, None], columns]
        is_counted = labels < num_classes
        cells = labels[is_counted].astype(np.int64) * num_classes + found[is_counted]
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(num_classes, num_classes)


def count_confusion(
    class_names: Sequence[str],
    predictions: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Counts the pixels of some images, each at the size of its own mask."""
    classes = len(class_names)
    confusion = np.zeros((classes, classes), np.int64)
    for mask, class_map in zip(targets["full_mask"], predictions["class_map"]):
        confusion += count_pixels(decode_mask(mask).numpy(), class_map, classes)
    return {"confusion": confusion}


def score(class_names: Sequence[str], counts: dict[str, np.ndarray]) -> dict:
    """Returns `mIoU`, `pixel_accuracy` and `IoU/<class>` of summed confusions.

    They are in [0, 1], or -1 without pixels to measure. `mIoU` is the mean over the
    classes that occur in a mask or a prediction.
    """
    confusion = np.asarray(counts["confusion"], np.int64)
    correct = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - correct
    occurs = union > 0
    ious = np.where(occurs, correct / np.maximum(union, 1), -1.0)
    pixels = confusion.sum()
    return {
        "mIoU": float(ious[occurs].mean()) if occurs.any() else -1.0,
        "pixel_accuracy": float(correct.sum() / pixels) if pixels else -1.0,
        **{f"IoU/{name}": float(iou) for name, iou in zip(class_names, ious)},
    }


def report(
    class_names: Sequence[str], metrics: dict, counts: dict[str, np.ndarray], size: int
) -> str:
    """Formats metrics as text: a line for each class, then all classes together."""
    confusion = counts["confusion"]
    pixels, correct = confusion.sum(axis=1), np.diag(confusion)
    width = max(len(name) for name in (*class_names, "class"))

    def line(name: str, count: int, accuracy: float, iou: float) -> str:
        recall = f"{100 * accuracy:.2f}" if count else "-"
        overlap = f"{100 * iou:.2f}" if iou >= 0 else "-"
        return f"{name:<{width}}  {count:>11}  {recall:>6}  {overlap:>6}"

    lines = [f"{'class':<{width}}       pixels   right     IoU"]
    lines += [
        line(name, pixels[i], correct[i] / max(pixels[i], 1), metrics[f"IoU/{name}"])
        for i, name in enumerate(class_names)
    ]
    lines += [
        line("all", pixels.sum(), metrics["pixel_accuracy"], metrics["mIoU"]),
        f"at {size}x{size} pixels, in percent of the original masks' pixels; the IoU "
        "of all is the mean over the classes that occur",
    ]
    return "\n".join(lines)
