"""What several test modules need, made once."""

import gc
import os
from pathlib import Path

import pytest

BACKEND = os.environ.get("KERAS_BACKEND")  # of the whole run


def pytest_collection_finish() -> None:
    """Leaves what the imports made out of every later search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Takes back the backend that a command chose for itself in an earlier test."""
    if BACKEND is None:
        os.environ.pop("KERAS_BACKEND", None)
    else:
        os.environ["KERAS_BACKEND"] = BACKEND


@pytest.fixture(scope="session")
def tflite_file(tmp_path_factory) -> Path:
    """A MobileViT_XXS of 3 classes for images of 32x32 pixels, in float32."""
    import keras

    from keras_mobilevit import MobileViT_XXS
    from tflite.formats import conversion

    keras.utils.set_random_seed(0)
    model = MobileViT_XXS(weights=None, classes=3, input_shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("tflite") / "tiny.tflite"
    path.write_bytes(conversion.prepare(model, 32).float32)
    return path
