"""A new task of conversion is one folder with a `TaskFamily`, and one row."""

import keras
import numpy as np
import pytest

from tests.fakes.halving_task import VARIANTS
from tests.helpers.options import make_options
from tflite import pipeline
from tflite.checked_file import write_checked
from tflite.compare_with_keras import make_reference
from tflite.formats import conversion
from tflite.formats.table import TFLITE, formats_of
from tflite.images import ImageSet
from tflite.models import default_size
from tflite.tasks import registry
from tflite.tasks.registry import OutputFlag, TaskRow

ROW = TaskRow(
    "halving",
    "tests.fakes.halving_task:HALVING",
    output_flag=OutputFlag(
        "halved", "halving networks", ("picture", "mean"), "A toy.", "picture", "mean"
    ),
)


@pytest.fixture
def model(monkeypatch) -> keras.Model:
    monkeypatch.setattr(registry, "TASKS", [ROW, *registry.TASKS])
    images = keras.Input((32, 32, 3))
    scaled = keras.layers.Rescaling(1 / 255)(images)
    halved = keras.layers.AveragePooling2D(2)(scaled)
    return keras.Model(images, halved, name="halving")


def test_the_model_finds_its_task(model):
    assert registry.task_of(model) is VARIANTS["picture"]
    assert default_size("any.keras", model) == 32
    options = make_options(variants={"halved": "mean"})
    assert pipeline.select_tasks(options, model) == {TFLITE: VARIANTS["mean"]}
    assert "int8" not in formats_of(VARIANTS["mean"])
    assert "coreml" not in formats_of(VARIANTS["mean"])


def test_a_file_is_written_with_its_card(model, tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    reference = make_reference(model, ImageSet("random", (), images, {}))
    prepared = conversion.prepare(model, 32)
    path = tmp_path / "model.tflite"
    card = write_checked(prepared, "fp32", [reference], path, {})
    assert card["task"] == "halving" and card["parity"]["max_abs"] <= 1e-3
    assert card["outputs"][0]["meaning"] == "half the size"
