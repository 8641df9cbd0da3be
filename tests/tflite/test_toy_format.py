"""A new file format is one row of the table."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.helpers.options import make_options
from tflite import pipeline
from tflite.checked_file import write_checked
from tflite.compare_with_keras import make_reference
from tflite.formats import conversion
from tflite.formats.table import FORMATS, FileType, Format, formats_of
from tflite.images import ImageSet

# A toy format: the kernel and bias of a network's dense layer on the mean color.


def save(weights, path: Path, card: dict, conversion) -> None:
    with open(path, "wb") as file:
        np.savez(file, kernel=weights[0], bias=weights[1])


def describe(path, task, names, input_max) -> dict:
    size = path.stat().st_size
    return {"foreign_ops": [], "max_rank": 2, "bytes": size, "sha256": "toy"}


def run(path, pixels, images, names) -> dict[str, np.ndarray]:
    weights, mean = np.load(path), images.mean((1, 2)) / 255
    return {names[0]: mean @ weights["kernel"] + weights["bias"]}


TOY = Format(
    build=lambda conversion: conversion.model.layers[-1].get_weights(),
    purpose="a toy",
    limits={"parity": 1e-3},
    file_type=FileType(".npz", save, describe, run),
)


@pytest.fixture
def model(monkeypatch) -> keras.Model:
    monkeypatch.setitem(FORMATS, "toy", TOY)
    x = images = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(3)(x))


def test_a_file_is_written_with_its_card(model, tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    reference = make_reference(model, ImageSet("random", (), images, {}))
    path = tmp_path / "model_32_toy.npz"
    card = write_checked(
        conversion.prepare(model, 32), "toy", [reference], path, {"model": "toy"}
    )
    assert json.loads(path.with_suffix(".json").read_text()) == card
    assert card["format"] == "toy" and card["parity"]["max_abs"] <= 1e-3
    model.layers[-1].set_weights([np.zeros((3, 3)), np.ones(3)])
    with pytest.raises(ValueError, match="differ from Keras's.*--allow=parity"):
        write_checked(conversion.prepare(model, 32), "toy", [reference], path, {})


def test_the_flags_know_it(model):
    options = make_options(formats=("toy",))
    ((file_type, task),) = pipeline.select_tasks(options, model).items()
    assert file_type is TOY.file_type and "toy" in formats_of(task)
