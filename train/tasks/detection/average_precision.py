"""COCO's average precision of detections, computed by pycocotools.

Source: https://cocodataset.org/#detection-eval.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# The names of the first of COCO's twelve numbers, and their positions.
METRICS = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5}


def _to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Converts corners to corner and size, rounded as in an annotation file.

    The last bit of a difference decides whether an overlap reaches exactly 0.95.
    """
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return np.round(xywh.astype(np.float64), 6)


def _ground_truth(images: Sequence[dict], class_names: Sequence[str]) -> COCO:
    """Makes COCO's data set from the true objects."""
    annotations: list[dict] = []
    for image_id, image in enumerate(images, start=1):
        boxes = _to_xywh(image["true_boxes"])
        areas = image.get("true_areas", boxes[:, 2] * boxes[:, 3])
        for box, area, label, is_crowd in zip(
            boxes, areas, image["true_classes"], image["is_crowd"]
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools reads 0 as none
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(is_crowd and np.isfinite(area)),
                }
            )
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": index + 1} for index in range(len(images))],
        "categories": [
            {"id": label + 1, "name": name} for label, name in enumerate(class_names)
        ],
        "annotations": annotations,
    }
    truth.createIndex()
    return truth


def _rows(images: Sequence[dict]) -> np.ndarray:
    """Arranges detections as pycocotools reads them, `[detections, 7]`."""
    rows = [np.zeros((0, 7))]
    for image_id, image in enumerate(images, start=1):
        boxes = _to_xywh(image["boxes"])
        image_ids = np.full((len(boxes), 1), image_id)
        scores, classes = image["scores"][:, None], image["classes"][:, None] + 1
        rows.append(np.concatenate([image_ids, boxes, scores, classes], axis=1))
    return np.concatenate(rows)


def average_precision(images: Sequence[dict], class_names: Sequence[str]) -> dict:
    """Scores detections by COCO's rules, with one dict of arrays for each image.

    Boxes are corners in pixels. `boxes`, `scores` and `classes` are the detections,
    `true_boxes` and `true_classes` the true objects.

    `is_crowd` marks crowds and difficult objects. A crowd matches any number of
    detections inside it; a difficult object matches one detection with the usual
    overlap. These detections are neither right nor wrong. (VOC's own program lets a
    difficult object match several detections.)

    `true_areas`, by default the areas of the boxes, decide whether an object is small,
    medium or large. An infinite area marks a difficult object: COCO does not count
    objects whose area is outside of all ranges.

    Returns `AP` (the mean over overlaps of 0.5 to 0.95), `AP50`, `AP75`, `AP_small`,
    `AP_medium` and `AP_large`, in [0, 1], and `AP/<class>` and `AP50/<class>` for each
    class. A value without objects is -1, as in COCO.
    """
    rows = _rows(images)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _ground_truth(images, class_names)
        found = truth.loadRes(rows) if len(rows) else _ground_truth([], class_names)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
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
