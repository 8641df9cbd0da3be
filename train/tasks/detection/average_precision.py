"""COCO's measure of detections, by pycocotools.

Source: https://cocodataset.org/#detection-eval.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# The first of COCO's twelve numbers, and what they are called here.
METRICS = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5}


def _quietly(function, *arguments):
    """Calls what prints its progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def _to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Turns corners into corner and size, rounded to the numbers that a file has.

    The last bit of a difference decides whether an overlap is just 0.95.
    """
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return np.round(np.float64(xywh), 6)


def _ground_truth(images: Sequence[dict], class_names: Sequence[str]) -> COCO:
    """Makes COCO's data set of the true objects."""
    annotations = []
    for number, image in enumerate(images, start=1):
        boxes = _to_xywh(image["true_boxes"])
        areas = image.get("true_areas", boxes[:, 2] * boxes[:, 3])
        for box, area, label, is_crowd in zip(
            boxes, areas, image["true_classes"], image["is_crowd"]
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for none
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(is_crowd and np.isfinite(area)),
                }
            )
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number + 1} for number in range(len(images))],
        "categories": [
            {"id": label + 1, "name": name} for label, name in enumerate(class_names)
        ],
        "annotations": annotations,
    }
    _quietly(truth.createIndex)
    return truth


def _rows(images: Sequence[dict]) -> np.ndarray:
    """Lays detections out as pycocotools reads them, `[detections, 7]`."""
    rows = [np.zeros((0, 7))]
    for number, image in enumerate(images, start=1):
        boxes = _to_xywh(image["boxes"])
        numbers = np.full((len(boxes), 1), number)
        scores, classes = image["scores"][:, None], image["classes"][:, None] + 1
        rows.append(np.concatenate([numbers, boxes, scores, classes], axis=1))
    return np.concatenate(rows)


def average_precision(images: Sequence[dict], class_names: Sequence[str]) -> dict:
    """Measures detections by COCO's rules.

    Args:
        images: one dict of arrays for each image, boxes as corners in pixels:

            - `boxes` `[detections, 4]`, `scores` and `classes` `[detections]`
            - `true_boxes` `[objects, 4]` and `true_classes` `[objects]`
            - `is_crowd` `[objects]`: crowds, which take any number of detections that
              lie in them, and difficult objects, which take one that overlaps them as
              it has to overlap any object; what they take counts neither way
            - `true_areas` `[objects]`, in pixels, by which an object is small, medium
              or large; that of its box if it is left out. An infinite one marks what
              is difficult: COCO counts an object by the range that its area is in, and
              this one in none. (VOC's own program lets it take several detections.)

        class_names: in the order of the classes.

    Returns:
        `AP` (the mean over overlaps of 0.5 to 0.95), `AP50`, `AP75`, `AP_small`,
        `AP_medium` and `AP_large`, in [0, 1], and `AP/<class>` and `AP50/<class>` for
        each class. Of what there are no objects it is -1, as COCO has it.
    """
    truth, rows = _ground_truth(images, class_names), _rows(images)
    if len(rows):
        found = _quietly(truth.loadRes, rows)
    else:
        found = COCO()
        found.dataset = truth.dataset | {"annotations": []}
        _quietly(found.createIndex)
    evaluation = COCOeval(truth, found, "bbox")
    for part in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        _quietly(part)
    metrics = {name: float(evaluation.stats[i]) for name, i in METRICS.items()}
    # [overlaps, recalls, classes, areas, detections]: all areas, 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for label, name in enumerate(class_names):
        for metric, values in (
            ("AP", precision[:, :, label]),
            ("AP50", precision[0, :, label]),
        ):
            known = values[values > -1]
            metrics[f"{metric}/{name}"] = float(known.mean()) if len(known) else -1.0
    return metrics
