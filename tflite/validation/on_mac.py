"""Runs a package with Core ML itself, where there is one.

Packages are proven in NumPy, on any machine. A Mac can say besides whether Core ML
takes the package, and what it makes of an image.
"""

import sys

import numpy as np
from PIL import Image

from tflite.validation.mil_evaluator import Evaluator
from tflite.formats.coreml.package import load_coremltools

ELSEWHERE = "Core ML is on macOS only; the package was run in NumPy"


def _predict(path, pixels) -> dict:
    """Returns what Core ML makes of an image, by the outputs' names."""
    model = load_coremltools().models.MLModel(str(path))
    (given,) = model.get_spec().description.input[:1]
    return model.predict({given.name: Image.fromarray(pixels)})


def _numbers(value) -> np.ndarray | None:
    """Returns an output as numbers; a dictionary's are those of its classes."""
    value = list(value.values()) if isinstance(value, dict) else value
    array = np.asarray(value)
    return array.ravel() if array.dtype.kind in "biuf" else None


def run_in_core_ml(path, pixels: np.ndarray) -> dict:
    """Runs a package on an image and compares with NumPy.

    Args:
        path: of the package.
        pixels: uint8 `[height, width, 3]`.

    Returns:
        An entry of the card: whether it `ran`, and the largest difference `max_abs` of
        an output from NumPy's, or the `reason` why not. A system that is older than
        the package may refuse it, so that this is no fault of the package.
    """
    if sys.platform != "darwin":
        return {"ran": False, "reason": ELSEWHERE}
    try:
        found = _predict(path, pixels)
    except Exception as error:  # of several kinds of coremltools's own
        return {"ran": False, "reason": f"Core ML refuses it here: {error}"}
    expected, differences = Evaluator(path).run(pixels), [0.0]
    for name in found.keys() & expected.keys():  # not what was suppressed
        ours, theirs = _numbers(expected[name]), _numbers(found[name])
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            differences.append(np.abs(ours.astype(float) - theirs).max())
    largest = float(np.max(differences))
    if not np.isfinite(largest):
        reason = "Core ML returns numbers that are not finite here"
        return {"ran": True, "max_abs": None, "reason": reason}
    return {"ran": True, "max_abs": largest}
