"""The other Keras backends give the numbers of the golden files."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_mobilevit
from tests.helpers.few_steps import fit_losses, write_models

ROOT = Path(__file__).parents[2]

# A process cannot change its backend, so each backend runs in its own process.
SCRIPT = """
import json
import sys
from pathlib import Path

import keras
import numpy as np

import keras_mobilevit
from tests.golden import reference
from tests.helpers.boxes import check_non_max_suppression
from tests.helpers.few_steps import fit_losses
from tests.helpers.references import (
    SEGMENTER,
    build_backbone,
    build_classifier,
    build_segmenter,
    check_backbone,
    check_classifier,
    check_detector,
    check_segmenter,
    write_weights,
)

V2 = "mobilevitv2_050"
backend, folder = sys.argv[1], Path(sys.argv[2])
assert keras.backend.backend() == backend
check_non_max_suppression(0.05, 400, 200)
# Maps of whole patches and odd ones, which the families enlarge differently.
classifiers = [
    build_classifier(write_weights(f"timm_{variant}", folder), variant)
    for variant in ("mobilevit_xxs", V2)
]
for model in classifiers:
    check_classifier(model, f"timm_{model.name}", ((256, 256), (224, 224)))
for output_stride in (16, 8):
    path = write_weights(SEGMENTER, folder)
    check_segmenter(build_segmenter(path, output_stride), output_stride)
    path = write_weights(f"timm_{V2}", folder)
    backbone = build_backbone(path, V2, output_stride)
    check_backbone(backbone, f"timm_{V2}_{output_stride}")
name = f"segmentation/cvnets_{V2}"
model = build_segmenter(write_weights(name, folder), 16, V2, upsample=True)
check_segmenter(model, 16, ((240, 200),), name, reference.resized_key)
name = f"detection/cvnets_{V2}"
model = keras_mobilevit.SSDLite(
    V2,
    weights=write_weights(name, folder),
    input_shape=(None, None, 3),
    include_preprocessing=False,
)
check_detector(model, f"{name}_240x200", (240, 200))

detector = keras.models.load_model(f"{folder}/detector.keras")
wanted = np.load(f"{folder}/detector.npz")
outputs = detector(wanted["images"])
found = keras_mobilevit.detect(outputs, (75, 96), max_detections=20)
outputs["scores"] = found["scores"]  # boxes of equal scores may change their order
for name, value in outputs.items():
    difference = np.abs(keras.ops.convert_to_numpy(value) - wanted[name]).max()
    print(name, difference)
    assert difference <= 1e-4, name
wanted = json.loads((folder / "losses.json").read_text())
for kind, losses in fit_losses(folder).items():
    print(kind, losses, wanted[kind])
    assert np.abs(np.subtract(losses, wanted[kind])).max() <= 1e-3, kind
if backend == "jax":
    import tensorflow
    # Without gradients: JAX cannot differentiate strided convolutions of unknown size.
    options = {"jax2tf_kwargs": {"with_gradient": False}, "verbose": False}
    for model in classifiers:
        model.export(f"{folder}/{model.name}", **options)
        loaded = tensorflow.saved_model.load(f"{folder}/{model.name}")
        for size in ((64, 96), (75, 51)):
            images = reference.images(*size)
            wanted = keras.ops.convert_to_numpy(model(images))
            assert np.abs(loaded.serve(images).numpy() - wanted).max() <= 1e-4, size
"""


def write_detector(folder: Path) -> None:
    """Writes a detector with non-trivial statistics, and its detections."""
    keras.utils.set_random_seed(0)
    model = keras_mobilevit.SSDLite(
        "mobilevit_xxs", classes=3, weights=None, input_shape=(75, 96, 3)
    )
    images = np.random.default_rng(0).uniform(0, 255, (2, 75, 96, 3)).astype("float32")
    for _ in range(5):
        model(images, training=True)
    for layer in model.layers:  # as if trained: with large logits
        if layer.name.endswith("_predictions"):
            layer.kernel.assign(100 * layer.kernel)
    outputs = model(images)
    found = keras_mobilevit.detect(outputs, (75, 96), max_detections=20)
    values = {n: keras.ops.convert_to_numpy(x) for n, x in (outputs | found).items()}
    assert np.abs(values["logits"]).max() > 1
    assert values["scores"].min() > 0.1
    model.save(folder / "detector.keras")
    np.savez(folder / "detector.npz", images=images, **values)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_outputs_equal_the_reference(backend: str, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    write_detector(tmp_path)
    write_models(tmp_path)
    losses = fit_losses(tmp_path)
    (tmp_path / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
