"""Which way the packages depend on each other."""

import ast
import sys
from pathlib import Path

import pytest

import tflite
import train

ROOT = Path(__file__).parents[1]
OURS = ("keras_mobilevit", "train", "tflite", "benchmarks")
# What else a package may import. TensorFlow is a backend of keras_mobilevit, loaded if
# it is in use; h5py, safetensors and torch read weights.
LIBRARIES = {
    "keras_mobilevit": "ai_edge_litert h5py huggingface_hub keras numpy PIL "
    "safetensors tensorflow torch",
    "train": "absl defusedxml keras matplotlib numpy PIL pycocotools safetensors "
    "sklearn tensorflow tensorflow_datasets tqdm",
    "tflite": "absl adbutils ai_edge_litert ai_edge_quantizer coremltools flatbuffers "
    "google.protobuf keras matplotlib numpy onnxruntime openvino PIL segno sklearn "
    "tensorflow tensorflow_model_optimization tf_keras timm torch tqdm transformers",
    "benchmarks": "absl jax keras numpy PIL tensorflow timm torch torchvision tqdm "
    "transformers",
}
# The rooms of each package, in the order of their imports: a room imports from itself
# and from those before it. Files outside a room may import from every room.
ROOMS = {
    "keras_mobilevit": (),
    "train": ("cli", "data", "tasks", "run", "distribution", "evaluation"),
    "tflite": (
        "graph",
        "validation",
        "tasks",
        "metadata",
        "formats",
        "drivers",
        "suites",
    ),
    "benchmarks": (),
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


def is_allowed(name: str, package: str) -> bool:
    parts = name.split(".")
    if parts[0] in OURS:
        return OURS.index(parts[0]) <= OURS.index(package)
    prefixes = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    libraries = set(LIBRARIES[package].split())
    return bool(prefixes & libraries) or parts[0] in sys.stdlib_module_names


@pytest.mark.parametrize("package", OURS)
def test_imports_go_one_way(package: str):
    foreign = {
        (str(path), name)
        for path in (ROOT / package).rglob("*.py")
        for name in imported(path)
        if not is_allowed(name, package)
    }
    assert not foreign


@pytest.mark.parametrize("package", [package for package in OURS if ROOMS[package]])
def test_rooms_import_in_one_order(package: str):
    rooms = ROOMS[package]
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert folders == set(rooms)
    backward = {
        (str(path.relative_to(ROOT)), name)
        for position, room in enumerate(rooms)
        for path in (ROOT / package / room).rglob("*.py")
        for name in imported(path)
        for parts in [name.split(".")]
        if parts[0] == package and parts[1] in rooms[position + 1 :]
    }
    assert not backward


def test_no_test_imports_another():
    modules = (ROOT / "tests").rglob("test_*.py")
    assert not {
        (str(path), name)
        for path in modules
        for name in imported(path)
        if any(part.startswith("test_") for part in name.split(".")[:-1])
    }


@pytest.mark.parametrize("package", [package for package in OURS if ROOMS[package]])
def test_every_room_says_what_lives_there(package: str):
    for room in ROOMS[package]:
        text = ast.get_docstring(
            ast.parse((ROOT / package / room / "__init__.py").read_text("utf-8"))
        )
        assert "ay import" in text and len(text.splitlines()) <= 6, room


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
