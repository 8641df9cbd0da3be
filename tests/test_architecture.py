"""Which way the packages depend on each other."""

import ast
import sys
from pathlib import Path

import pytest

import tflite
import train

ROOT = Path(__file__).parents[1]
OURS = ("keras_mobilevit", "train", "tflite", "benchmarks")
# What a package may import. TensorFlow is one of keras_mobilevit's backends, loaded
# where it is one; h5py, safetensors and torch read files of weights.
ALLOWED = {
    "keras_mobilevit": {
        "keras_mobilevit",
        "keras",
        "numpy",
        "PIL",
        "h5py",
        "huggingface_hub",
        "safetensors",
        "tensorflow",
        "torch",
    },
    "train": {
        "keras_mobilevit",
        "train",
        "keras",
        "numpy",
        "tensorflow",
        "absl",
        "ai_edge_litert",
        "defusedxml",
        "jax",
        "matplotlib",
        "PIL",
        "pycocotools",
        "safetensors",
        "sklearn",
        "tensorflow_datasets",
        "timm",
        "torch",
        "torchvision",
        "tqdm",
    },
    "tflite": {
        "keras_mobilevit",
        "train.tasks.classification.task",
        "train.config",
        "train.run.console",
        "train.data.pipeline",
        "train.tasks.detection.task",
        "train.tasks.detection.postprocess",
        "train.data.images",
        "keras_mobilevit.litert",
        "train.tasks.classification.metric",
        "train.run.records",
        "train.data.sampler",
        "train.tasks.segmentation.task",
        "train.tasks.segmentation.postprocess",
        "train.data.registry",
        "train.data.source",
        "train.run.tables",
        "train.tasks.task",
        "train.data.unreadable",
        "tflite",
        "keras",
        "numpy",
        "tensorflow",
        "absl",
        "ai_edge_litert",
        "ai_edge_quantizer",
        "coremltools",
        "flatbuffers",
        "google.protobuf",
        "matplotlib",
        "onnxruntime",
        "openvino",
        "PIL",
        "segno",
        "tensorflow_model_optimization",
        "tf_keras",
        "timm",
        "torch",
        "tqdm",
        "transformers",
    },
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path} has a relative import in line {node.lineno}.")
            if node.module in OURS:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


def is_allowed(name: str, allowed: set[str]) -> bool:
    parts = name.split(".")
    prefixes = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return bool(prefixes & allowed) or parts[0] in sys.stdlib_module_names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str):
    foreign = {
        (str(path), name)
        for path in (ROOT / package).rglob("*.py")
        for name in imported(path)
        if not is_allowed(name, ALLOWED[package])
    }
    assert not foreign


def without_encoding(path: Path) -> list[str]:
    """Finds `read_text` and `write_text` that leave the encoding to the system.

    The linter finds `open`, but not these two where it does not know a path for one.
    """
    positions = {"read_text": 0, "write_text": 1}  # of the argument
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in positions
        if len(node.args) <= positions[node.func.attr]
        if all(keyword.arg != "encoding" for keyword in node.keywords)
    ]


@pytest.mark.parametrize("package", OURS)
def test_text_has_an_encoding(package: str):
    paths = sorted((ROOT / package).rglob("*.py"))
    assert not [place for path in paths for place in without_encoding(path)]


def environment_set_on_import(path: Path) -> list[str]:
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.Assign)
        if any("environ" in ast.unparse(target) for target in node.targets)
    ]


@pytest.mark.parametrize("package", OURS)
def test_imports_do_not_set_the_environment(package: str):
    """The backend of one command would be that of every process started later."""
    paths = sorted((ROOT / package).rglob("*.py"))
    assert not [line for path in paths for line in environment_set_on_import(path)]


def test_tflite_and_train_are_this_repository():
    for package in (tflite, train):
        assert Path(package.__file__).parents[1] == ROOT


def test_no_module_has_the_name_of_another_library():
    """`python train/main.py` would find it in place of the other."""
    names = {path.stem for package in OURS for path in (ROOT / package).glob("*.py")}
    assert not names & (sys.stdlib_module_names - {"__init__"})
    assert not names & {"absl", "coremltools", "keras", "numpy", "tensorflow"}
