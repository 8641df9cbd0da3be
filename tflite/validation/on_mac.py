"""Runs a package with Core ML itself, on macOS.

Packages are checked in NumPy on any machine. A Mac also tells whether Core ML accepts
the package, and what it returns for an image.
"""

import sys

import numpy as np
from PIL import Image

from tflite.validation.mil_evaluator import Evaluator

ELSEWHERE = "Core ML is on macOS only; the package was run in NumPy"


def _predict(path, pixels: np.ndarray) -> dict:
    import coremltools

    model = coremltools.models.MLModel(str(path))
    image, *_ = model.get_spec().description.input
    return model.predict({image.name: Image.fromarray(pixels)})


def _numbers(value) -> np.ndarray | None:
    """Returns an output as an array, of a dictionary its values; `None` for text."""
    value = list(value.values()) if isinstance(value, dict) else value
    array = np.asarray(value)
    return array.ravel() if array.dtype.kind in "biuf" else None


def run_in_core_ml(path, pixels: np.ndarray) -> dict:
    """Runs a package on an image, and compares the outputs with NumPy's.

    Returns an entry of the card: whether it `ran`, and the largest difference `max_abs`
    from NumPy's outputs, or the `reason` for its absence. A failure is not a fault of
    the package: a macOS that is older than the package may refuse it.
    """
    if sys.platform != "darwin":
        return {"ran": False, "reason": ELSEWHERE}
    try:
        found = _predict(path, pixels)
    except Exception as error:  # coremltools raises several types of its own
        return {"ran": False, "reason": f"Core ML refuses it here: {error}"}
    expected, differences = Evaluator(path).run(pixels), [0.0]
    for name in found.keys() & expected.keys():  # outputs of NMS are not in NumPy's
        ours, theirs = _numbers(expected[name]), _numbers(found[name])
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            differences.append(np.abs(ours.astype(float) - theirs).max())
    largest = float(np.max(differences))
    if not np.isfinite(largest):
        reason = "Core ML returns numbers that are not finite here"
        return {"ran": True, "max_abs": None, "reason": reason}
    return {"ran": True, "max_abs": largest}
