"""Compares the detections of a file with Keras's."""

import numpy as np

from keras_mobilevit import boxes as box_math
from tflite.tasks.task import Outputs
from tflite.validation import parity
from train.tasks.detection.postprocess import suppress_file_outputs

MIN_COMPARED_SCORE = 0.05  # objects with lower scores are not compared one by one
SAME_BOX_IOU = 0.9  # boxes with at least this intersection over union are the same


def matched_scores(reference: Outputs, found: Outputs) -> tuple[np.ndarray, int]:
    """Matches an image's objects with those of a reference.

    An object matches if its class is the same and its box overlaps by `SAME_BOX_IOU`.
    Returns the differences of the scores of the matched objects, and the number of the
    reference's objects without a match.
    """
    expected, actual = (np.asarray(x["boxes"], np.float32) for x in (reference, found))
    overlaps = np.asarray(box_math.iou(expected[:, None], actual[None]))
    is_same = reference["classes"][:, None] == found["classes"][None]
    overlaps = np.where(is_same, overlaps, 0.0)  # [reference, found]
    differences, missing = [], 0
    for row, score in zip(overlaps, reference["scores"]):
        if not len(row) or row.max() < SAME_BOX_IOU:
            missing += 1
        else:
            differences.append(abs(found["scores"][row.argmax()] - score))
    return np.array(differences), missing


def agreement(reference: Outputs, found: Outputs) -> tuple[np.ndarray, float]:
    """Compares the objects that score at least `MIN_COMPARED_SCORE` on many images.

    Both are results of `suppress_file_outputs`. Returns the differences of the scores
    of the matched objects, and the fraction of the reference's objects that have a
    match.
    """
    differences, missing = [np.zeros(0)], 0
    compared = ("boxes", "scores", "classes")
    reference, found = ({n: x[n] for n in compared} for x in (reference, found))
    for index, scores in enumerate(reference["scores"]):
        is_compared = scores >= MIN_COMPARED_SCORE
        of_image = {name: x[index] for name, x in found.items()}
        wanted = {name: x[index][is_compared] for name, x in reference.items()}
        some, unmatched = matched_scores(wanted, of_image)
        differences.append(some)
        missing += unmatched
    all_differences = np.concatenate(differences)
    objects = len(all_differences) + missing
    return all_differences, 1.0 if not objects else len(all_differences) / objects


def compare_raw(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    """Compares the boxes and scores of all anchors."""
    found = [parity.compare(reference[n], outputs[n]) for n in ("boxes", "scores")]
    _, matched = agreement(
        suppress_file_outputs(reference), suppress_file_outputs(outputs)
    )
    # The outputs are fractions and probabilities.
    return parity.worst(found) | {"max_abs_reference": 1.0, "agreement": matched}


def compare_suppressed(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    """Compares the objects after NMS."""
    differences, matched = agreement(reference, outputs)
    of_scores = parity.compare(reference["scores"], outputs["scores"])
    return {
        "max_abs": float(differences.max(initial=0.0)),
        "mean_abs": float(differences.mean()) if len(differences) else 0.0,
        "max_abs_reference": 1.0,
        "psnr_db": of_scores["psnr_db"],
        "agreement": matched,
    }
