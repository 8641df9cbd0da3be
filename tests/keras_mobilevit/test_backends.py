"""The numbers on the other Keras backends are those of the golden files."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_mobilevit

ROOT = Path(__file__).parents[2]

# A process has one backend for life, so each backend needs a process of its own.
SCRIPT = """
import json
import sys
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import save_file

import keras_mobilevit
from tests.golden import reference
from tests.keras_mobilevit.test_boxes import test_non_max_suppression
from tests.keras_mobilevit.test_deeplab import (
    assert_equals_the_golden,
    reference_model,
    write_reference,
)

backend, folder = sys.argv[1:]
assert keras.backend.backend() == backend
stem = Path(reference.__file__).parent / "timm_mobilevit_xxs"
path = Path(folder) / "weights.safetensors"
shapes = json.loads(stem.with_suffix(".json").read_text())
save_file(reference.random_state(shapes), path)
golden = np.load(stem.with_suffix(".npz"))
model = keras_mobilevit.MobileViT_XXS(
    weights=str(path),
    classifier_activation=None,
    include_preprocessing=False,
    input_shape=(None, None, 3),
)
for size in ((256, 256), (224, 224)):
    logits = keras.ops.convert_to_numpy(model(reference.images(*size)))
    difference = np.abs(logits - golden[reference.size_key(*size)]).max()
    print(size, difference)
    assert difference <= 1e-4, size
test_non_max_suppression(0.05, 400, 200)
path = write_reference(Path(folder))
for output_stride in (16, 8):
    assert_equals_the_golden(reference_model(path, output_stride), output_stride)
detector = keras.models.load_model(f"{folder}/detector.keras")
wanted = np.load(f"{folder}/detector.npz")
outputs = detector(wanted["images"])
found = keras_mobilevit.detect(outputs, wanted["anchors"], max_detections=20)
outputs["scores"] = found["scores"]  # boxes of equal scores may change places
for name, value in outputs.items():
    difference = np.abs(keras.ops.convert_to_numpy(value) - wanted[name]).max()
    print(name, difference)
    assert difference <= 1e-4, name
if backend == "jax":
    # Without gradients: JAX has none of strided convolutions of a size that it does
    # not know, for any model of Keras.
    options = {"jax2tf_kwargs": {"with_gradient": False}, "verbose": False}
    model.export(f"{folder}/saved", **options)
    import tensorflow
    loaded = tensorflow.saved_model.load(f"{folder}/saved")  # owns the variables
    for size in ((64, 96), (75, 51)):
        images = reference.images(*size)
        wanted = keras.ops.convert_to_numpy(model(images))
        assert np.abs(loaded.serve(images).numpy() - wanted).max() <= 1e-4, size
"""


def write_detector(folder: Path) -> None:
    """Writes a detector with statistics of its own, and what it finds on images."""
    keras.utils.set_random_seed(0)
    model = keras_mobilevit.SSDLite("mobilevit_xxs", 3, None, (75, 96, 3))
    images = np.random.default_rng(0).uniform(0, 255, (2, 75, 96, 3)).astype("float32")
    for _ in range(5):
        model(images, training=True)
    for layer in model.layers:  # as if trained: with logits that tell classes apart
        if layer.name.endswith("_predictions"):
            layer.kernel.assign(100 * layer.kernel)
    anchors = keras_mobilevit.anchor_boxes(75, 96)
    outputs = model(images)
    found = keras_mobilevit.detect(outputs, anchors, max_detections=20)
    values = {n: keras.ops.convert_to_numpy(x) for n, x in (outputs | found).items()}
    assert np.abs(values["logits"]).max() > 1
    assert values["scores"].min() > 0.1
    model.save(folder / "detector.keras")
    np.savez(folder / "detector.npz", images=images, anchors=anchors, **values)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_outputs_equal_the_reference(backend: str, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    write_detector(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
