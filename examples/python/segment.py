"""Prints how much of a photo each class covers, found with MediaPipe.

    make mediapipe    # MediaPipe needs an environment of its own
    .venv/mediapipe/bin/python examples/python/segment.py best.tflite photo.jpg

The names of the classes are in the file.
"""

import sys

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from PIL import Image, ImageOps

model, photo = sys.argv[1:]
picture = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")  # upright
image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.array(picture))

# Segmenters see the whole picture, stretched, as in training.
options = vision.ImageSegmenterOptions(
    BaseOptions(model), output_confidence_masks=False, output_category_mask=True
)
with vision.ImageSegmenter.create_from_options(options) as segmenter:
    labels = segmenter.labels
    # The class of each pixel of the photo, counted from 0; gone with the segmenter.
    mask = segmenter.segment(image).category_mask.numpy_view()
    classes, pixels = np.unique(mask, return_counts=True)
for label, count in sorted(zip(classes, pixels), key=lambda row: -row[1]):
    print(f"{count / pixels.sum():.4f} {labels[label]}")
