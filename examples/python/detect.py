"""Prints the objects on a photo, found with MediaPipe.

    make mediapipe    # MediaPipe needs an environment of its own
    .venv/mediapipe/bin/python examples/python/detect.py best.tflite photo.jpg

The corners of the boxes are in pixels: left, top, right, bottom.
"""

import sys

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from PIL import Image, ImageOps

model, photo = sys.argv[1:]
picture = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")  # upright
image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.array(picture))

# Detectors see the whole picture, stretched, as in training.
options = vision.ObjectDetectorOptions(BaseOptions(model), score_threshold=0.3)
with vision.ObjectDetector.create_from_options(options) as detector:
    detections = detector.detect(image).detections
for detection in detections:
    box = detection.bounding_box
    left, top = box.origin_x, box.origin_y
    corners = left, top, left + box.width, top + box.height
    for category in detection.categories:
        print(f"{category.score:.4f} {category.category_name}", *corners)
