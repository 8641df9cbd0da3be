"""Prints the most likely classes of a photo, found with LiteRT without MediaPipe.

    pip install ai-edge-litert pillow
    python litert.py best_256_fp32.tflite photo.jpg

The names of the classes are in the file.
"""

import json
import sys
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

model, photo = sys.argv[1:]
with zipfile.ZipFile(model) as archive:  # it follows the network in the same file
    card = json.loads(archive.read("keras_mobilevit.json"))
    labels = archive.read("labels.txt").decode().splitlines()
run = Interpreter(model).get_signature_runner()
((name, details),) = run.get_input_details().items()
_, height, width, _ = details["shape"]

# Phones store many photos on their side; exif_transpose turns them upright.
picture = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
# The center, with the aspect of the network's input.
scale = card["crop"] * min(picture.width / width, picture.height / height)
crop_width, crop_height = round(width * scale), round(height * scale)
left, top = (picture.width - crop_width) // 2, (picture.height - crop_height) // 2
box = left, top, left + crop_width, top + crop_height
pixels = picture.resize((width, height), Image.Resampling.BILINEAR, box)

# int8 files take the pixels as they are, others floats in the network's own range.
values = np.asarray(pixels, details["dtype"])
if details["dtype"] == np.float32:
    values *= card["input"]["largest_value"] / 255
(probabilities,) = run(**{name: values[None]}).values()
for best in np.argsort(-probabilities[0])[:5]:
    print(f"{probabilities[0, best]:.4f} {labels[best]}")
