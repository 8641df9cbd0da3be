"""Top-1 and top-5 accuracy, as counts by class that are summed over batches."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

BEST = 5  # classes that top-5 counts


def best_classes(scores) -> tf.Tensor:
    """Ranks the five classes with the highest scores, int32 `[batch, min(5, classes)]`.

    Among equal scores the lower class index ranks first, as in an argmax, so that a
    model with equal scores does not count as always correct. A row is -1 everywhere if
    one of its scores is not finite.
    """
    best = tf.math.top_k(scores, min(BEST, scores.shape[-1])).indices
    is_finite = tf.reduce_all(tf.math.is_finite(scores), axis=-1, keepdims=True)
    return tf.where(is_finite, best, -1)


def count_correct(
    class_names: Sequence[str],
    predictions: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Counts, by class, `images` and those correct in `top1` and in `top5`."""
    labels = targets["label"]
    hits = predictions["best"] == labels[:, None]  # [examples, 5]

    def by_class(is_counted: np.ndarray) -> np.ndarray:
        return np.bincount(labels[is_counted], minlength=len(class_names))

    return {
        "images": by_class(np.ones(len(labels), bool)),
        "top1": by_class(hits[:, 0]),
        "top5": by_class(hits.any(axis=1)),
    }


def score(class_names: Sequence[str], counts: dict[str, np.ndarray]) -> dict:
    """Returns `top1` and `top5`, in [0, 1], from the sums of `count_correct`."""
    images = counts["images"].sum()
    return {name: float(counts[name].sum() / images) for name in ("top1", "top5")}


def report(
    class_names: Sequence[str], metrics: dict, counts: dict[str, np.ndarray], size: int
) -> str:
    """Formats accuracies as text: a line for each class, then all classes together."""
    width = max(len(name) for name in (*class_names, "class"))
    lines = [f"{'class':<{width}}  images   top-1   top-5"]
    rows = zip(class_names, counts["images"], counts["top1"], counts["top5"])
    total = "all", *(counts[name].sum() for name in ("images", "top1", "top5"))
    for name, images, *hits in (*rows, total):
        parts = [f"{100 * hit / images:.2f}" if images else "-" for hit in hits]
        lines.append(f"{name:<{width}}  {images:>6}  {parts[0]:>6}  {parts[1]:>6}")
    return "\n".join([*lines, f"at {size}x{size} pixels, in percent"])


def confusion_matrix(labels, predictions, num_classes: int) -> np.ndarray:
    """Counts the images of each pair, `[labels, predictions]`."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predictions)), 1)
    return matrix
