"""Which way the packages depend on each other."""

import ast
from pathlib import Path

import pytest

import tflite
import train

ROOT = Path(__file__).parents[1]
# What a package must not import.
FORBIDDEN = {
    "keras_mobilevit": {"train", "tflite", "absl", "argparse"},
    "train": {"tflite"},
    "tflite": set(),
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str):
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & FORBIDDEN[package], path


def test_tflite_and_train_are_this_repository():
    for package in (tflite, train):
        assert Path(package.__file__).parents[1] == ROOT
