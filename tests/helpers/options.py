"""Options of a conversion, as the flags would give them."""

from pathlib import Path

from tflite.formats.coreml.options import PackageOptions
from tflite.options import Data, Options


def make_options(**changes) -> Options:
    """Returns the options of a named model, with some of them changed."""
    given = {
        "model": "mobilevit_xxs",
        "weights": "none",
        "formats": ("fp32",),
        "size": None,
        "output_dir": Path("."),
        "allowed": (),
        "variants": {},
        "rewrite": True,
        "check_gpu": False,
        "data": Data("digits", None, 1.0),
        "crop": None,
        "validation_images": 8,
        "calibration_images": 60,
        "wants_calibration_images": False,
        "qat_epochs": 1,
        "qat_learning_rate": 1e-5,
        "qat_batch_size": 32,
    } | changes
    raw = given.pop("raw_outputs", False)
    package = PackageOptions(raw_outputs=raw)
    return Options(**given | {"core_ml": given.get("core_ml", package)})
