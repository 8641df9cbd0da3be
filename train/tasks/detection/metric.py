"""COCO's average precision of the detections of an evaluation."""

from collections.abc import Sequence

import numpy as np

from train.tasks.detection.average_precision import METRICS, average_precision


def collect(
    class_names: Sequence[str],
    predictions: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Collects detections and true objects; padding, of class -1, is removed."""
    is_object = targets["classes"] >= 0
    collected = {**predictions, "true_image_size": targets["image_size"]}
    for name in ("boxes", "classes", "is_crowd", "areas"):
        own = np.empty(len(is_object), object)
        for index, is_own in enumerate(is_object):
            own[index] = targets[name][index][is_own]
        collected[f"true_{name}"] = own
    return collected


def score(class_names: Sequence[str], collected: dict[str, np.ndarray]) -> dict:
    """Scores detections by COCO's rules, in the pixels of the original images."""
    rows = [dict(zip(collected, values)) for values in zip(*collected.values())]
    return average_precision([_in_pixels(row) for row in rows], class_names)


def _in_pixels(row: dict) -> dict:
    """Removes the padding of one image, and scales its boxes to its pixels."""
    height, width = row["true_image_size"]
    is_found, is_real = row["classes"] >= 0, row["true_classes"] >= 0
    scale = np.array([width, height, width, height], np.float64)
    return {
        "boxes": row["boxes"][is_found] * scale,
        "scores": row["scores"][is_found],
        "classes": row["classes"][is_found],
        # Annotations have hundredths of pixels. Float32 changes them by 4e-5 pixels,
        # which may push an overlap of exactly 0.95 below it.
        "true_boxes": np.round(row["true_boxes"][is_real] * scale, 2),
        "true_classes": row["true_classes"][is_real],
        "true_areas": row["true_areas"][is_real] * (height * width),
        "is_crowd": row["true_is_crowd"][is_real],
    }


def report(
    class_names: Sequence[str], metrics: dict, collected: dict, size: int
) -> str:
    """Formats metrics as text: a line for each class, then all classes together."""

    def percent(name: str) -> str:
        value = metrics[name]
        return f"{100 * value:.2f}" if value >= 0 else "-"

    width = max(len(name) for name in (*class_names, "class"))
    lines = [f"{'class':<{width}}      AP    AP50"]
    rows = [(name, f"AP/{name}", f"AP50/{name}") for name in class_names]
    for name, *columns in (*rows, ("all", "AP", "AP50")):
        values = "  ".join(f"{percent(column):>6}" for column in columns)
        lines.append(f"{name:<{width}}  {values}")
    others = [name for name in METRICS if name not in ("AP", "AP50")]
    lines.append(", ".join(f"{name} {percent(name)}" for name in others))
    lines.append(f"at {size}x{size} pixels, in percent, by COCO's rules")
    return "\n".join(lines)
