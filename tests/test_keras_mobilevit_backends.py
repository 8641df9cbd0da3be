"""The numbers on the other Keras backends are those of the golden files."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

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
from tests.test_keras_mobilevit_boxes import test_non_max_suppression
from tests.test_keras_mobilevit_deeplab import (
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
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_logits_equal_the_reference(backend: str, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
