"""Runs a file with MediaPipe Tasks; started with the Python that has MediaPipe.

    python mediapipe_runner.py classifier|detector|segmenter MODEL IMAGES RESULTS

IMAGES is a `.npz` of uint8 images `[height, width, 3]`. RESULTS is written: a `.npz`
whose only array `found` is, for each image, a list of `[label, score]`; of `[label,
score, x1, y1, x2, y2]` in pixels; or the class map `[height, width]`.
"""

import json
import sys
from collections.abc import Iterator

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision


def classes(base: BaseOptions, images: list) -> Iterator[list]:
    """Yields the label and the score of each class of each image."""
    options = vision.ImageClassifierOptions(base_options=base)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for image in images:
            (found,) = classifier.classify(image).classifications
            yield [[c.category_name, c.score] for c in found.categories]


def objects(base: BaseOptions, images: list) -> Iterator[list]:
    """Yields the label, the score and the corners of each object on each image."""
    options = vision.ObjectDetectorOptions(base_options=base)
    with vision.ObjectDetector.create_from_options(options) as detector:
        for image in images:
            rows = []
            for found in detector.detect(image).detections:
                box = found.bounding_box
                left, top = box.origin_x, box.origin_y
                corners = [left, top, left + box.width, top + box.height]
                # Objects of several classes in the same box are one detection.
                for category in found.categories:
                    rows.append([category.category_name, category.score, *corners])
            yield rows


def class_maps(base: BaseOptions, images: list) -> Iterator[np.ndarray]:
    """Yields the class of each pixel of each image."""
    options = vision.ImageSegmenterOptions(
        base_options=base, output_category_mask=True, output_confidence_masks=False
    )
    with vision.ImageSegmenter.create_from_options(options) as segmenter:
        for image in images:
            yield segmenter.segment(image).category_mask.numpy_view()[..., 0].copy()


TASKS = {"classifier": classes, "detector": objects, "segmenter": class_maps}


def main(task: str, model: str, images: str, results: str) -> None:
    """Runs a file on all images."""
    with np.load(images) as arrays:
        given = [
            mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(x))
            for x in arrays.values()
        ]
    found = list(TASKS[task](BaseOptions(model_asset_path=model), given))
    if task == "segmenter":
        np.savez(results, *found)
    else:
        with open(results, "w", encoding="utf-8") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
