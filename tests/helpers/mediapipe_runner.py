"""Runs files with MediaPipe Tasks; started with the Python that has MediaPipe.

    python mediapipe_runner.py classifier|detector|segmenter IMAGES FOLDER MODEL...

IMAGES is a `.npz` of uint8 images `[height, width, 3]`. For each model a file of its
name is written into FOLDER: a `.json` with a list for each image, of `[label, score]`
or of `[label, score, x, y, width, height]` in pixels; or a `.npz` of class maps
`[height, width]`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

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
    """Yields the label, the score and the box of each object on each image."""
    options = vision.ObjectDetectorOptions(base_options=base)
    with vision.ObjectDetector.create_from_options(options) as detector:
        for image in images:
            rows = []
            for found in detector.detect(image).detections:
                box = found.bounding_box
                pixels = [box.origin_x, box.origin_y, box.width, box.height]
                # Objects of several classes in the same box are one detection.
                for category in found.categories:
                    rows.append([category.category_name, category.score, *pixels])
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


def main(task: str, images: str, folder: str, *models: str) -> None:
    """Runs each file on all images."""
    with np.load(images) as arrays:
        given = [
            mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(x))
            for x in arrays.values()
        ]
    for model in models:
        found = list(TASKS[task](BaseOptions(model_asset_path=model), given))
        result = Path(folder, Path(model).stem)
        if task == "segmenter":
            np.savez(result.with_suffix(".npz"), *found)
        else:
            result.with_suffix(".json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
