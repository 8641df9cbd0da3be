"""What several test modules need, made once."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Of the whole run: the backend, and the lines that TensorFlow prints.
VARIABLES = {x: os.environ.get(x) for x in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")}


def pytest_collection_finish() -> None:
    """Leaves what the imports made out of every later search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Takes back what a command chose for itself in an earlier test."""
    for name, value in VARIABLES.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """Builds networks of one transformer in each block, for tests of other things.

    All their layers are there, and TensorFlow traces them in half the time.
    """
    from keras_mobilevit import backbone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "TRANSFORMER_DEPTHS", (1, 1, 1))
        yield


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
