"""The kinds of files that networks are converted to, and what is done with each."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_mobilevit.files import atomic_write, atomic_write_folder
from keras_mobilevit.litert import LiteRTModel
from tflite.validation import card as cards


@dataclasses.dataclass(frozen=True)
class FileType:
    """One kind of file, or of folder.

    Attributes:
        suffix: ending of its name.
        save: writes what a format made to a path.
        describe: from a path, the meanings of the outputs by their names and the
            largest value of its images to the entries of a card.
        run: from a path, validation images (uint8 `[images, height, width, 3]`), those
            images on the network's own scale in float32, and the names of the
            outputs, to these `{name: [images, ...]}`.
        whole: `atomic_write` or `atomic_write_folder`.
        facts: what the summary of a card says of this kind.
    """

    suffix: str
    save: Callable[[object, Path], None]
    describe: Callable[[Path, dict, float], dict]
    run: Callable[[Path, np.ndarray, np.ndarray, list[str]], dict[str, np.ndarray]]
    whole: Callable
    facts: Callable[[dict], list[str]]


def _run_tflite(path, pixels, images, names) -> dict[str, np.ndarray]:
    return LiteRTModel(path, os.cpu_count()).predict(images)


def _run_package(path, pixels, images, names) -> dict[str, np.ndarray]:
    from tflite.validation.mil_evaluator import Evaluator

    if len(names) > 1:
        return Evaluator(path).predict_outputs(pixels)
    (name,) = names
    return {name: Evaluator(path).predict(pixels, name == "logits")}


def _save_package(model, path) -> None:
    model.save(str(path))
    for inside in path.rglob("*"):  # coremltools leaves some for its own user alone
        inside.chmod(0o755 if inside.is_dir() else 0o644)


def _tflite_facts(card: dict) -> list[str]:
    facts = [f"{card['xnnpack']['partitions']} XNNPACK partitions"]
    if isinstance(card["gpu"], dict):
        whole = "whole" if card["gpu"]["fully_accelerated"] else "not whole"
        facts.append(f"GPU {whole}")
    return facts


def _package_facts(card: dict) -> list[str]:
    return [f"iOS {card['ios']}"]


TFLITE = FileType(
    ".tflite",
    lambda content, path: path.write_bytes(content),
    cards.describe_file,
    _run_tflite,
    atomic_write,
    _tflite_facts,
)
COREML = FileType(
    ".mlpackage",
    _save_package,
    cards.describe_package,
    _run_package,
    atomic_write_folder,
    _package_facts,
)
