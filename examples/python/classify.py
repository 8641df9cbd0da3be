"""Prints the most likely classes of a photo, found with MediaPipe.

    make mediapipe    # MediaPipe needs an environment of its own
    .venv/mediapipe/bin/python examples/python/classify.py best.tflite photo.jpg

The names of the classes are in the file.
"""

import json
import sys
import zipfile

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from mediapipe.tasks.python.components.containers.rect import RectF
from mediapipe.tasks.python.vision.core.image_processing_options import (
    ImageProcessingOptions,
)
from PIL import Image, ImageOps

model, photo = sys.argv[1:]
with zipfile.ZipFile(model) as archive:  # it follows the network in the same file
    crop = json.loads(archive.read("keras_mobilevit.json"))["crop"]
# Phones store many photos on their side; exif_transpose turns them upright.
picture = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.array(picture))

# MediaPipe stretches the whole picture to the square that the network takes. Training
# showed it the center without stretching, so this crop is more accurate.
side = crop * min(picture.size)
x, y = (side / length / 2 for length in picture.size)  # half of the crop's sides
center = RectF(left=0.5 - x, top=0.5 - y, right=0.5 + x, bottom=0.5 + y)

options = vision.ImageClassifierOptions(BaseOptions(model), max_results=5)
with vision.ImageClassifier.create_from_options(options) as classifier:
    result = classifier.classify(image, ImageProcessingOptions(center))
for category in result.classifications[0].categories:
    name = category.category_name or f"class {category.index}"
    print(f"{category.score:.4f} {name}")
