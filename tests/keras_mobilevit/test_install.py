"""Errors of an incomplete installation name the command that completes it."""

import json
import os
import re
import runpy
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

from keras_mobilevit import MobileViT_XXS
from keras_mobilevit.__main__ import main
from keras_mobilevit.litert import LiteRTModel

ROOT = Path(__file__).parents[2]


def test_without_pillow_the_command_says_what_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SystemExit, match="Run `pip install pillow`"):
        main()


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_without_a_backend_the_import_says_what_to_run(backend: str):
    script = f"import sys; sys.modules[{backend!r}] = None; import keras_mobilevit"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: Keras cannot load its backend: ")
    assert backend in last and "Run `pip install tensorflow`, or" in last


@pytest.mark.slow
def test_without_litert_a_file_says_what_to_run(tflite_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ValueError, match="Run `pip install ai-edge-litert`"):
        LiteRTModel(tflite_file)


@pytest.fixture(scope="module")
def arguments(tflite_file, tmp_path_factory) -> list[list[str]]:
    """Arguments of `predict` for a photo and each kind of file."""
    folder = tmp_path_factory.mktemp("photo")
    photo = folder / "photo.png"
    Image.new("RGB", (40, 40), "red").save(photo)
    (folder / "labels.txt").write_text("ant\nbee\ncat\n", encoding="utf-8")
    model = MobileViT_XXS(weights=None, classes=3, input_shape=(32, 32, 3))
    model.save(folder / "a.keras")
    files = (folder / "a.keras", tflite_file)
    return [["predict", str(photo), f"--weights={file}"] for file in files]


def installed_by_predict(monkeypatch) -> set[str]:
    """Returns what `pip install keras-mobilevit[predict]` installs."""
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    waiting = [*given["install_requires"], *given["extras_require"]["predict"]]
    found: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        applies = not requirement.marker or requirement.marker.evaluate({"extra": ""})
        if applies and name not in found:
            try:
                waiting += metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # of another platform
            found.add(name)
    return found


# Runs the command where other packages than the extra's cannot be imported.
BARE = """
import json, sys
hidden = set(json.loads(sys.argv.pop(1)))
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
from keras_mobilevit.__main__ import main
main()
"""


def test_the_extra_is_enough_for_predict(arguments, monkeypatch):
    installed = installed_by_predict(monkeypatch)
    assert {"keras", "pillow", "tensorflow", "huggingface-hub"} <= installed
    hidden = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & installed
        and module not in ("keras_mobilevit", "train", "tflite", "benchmarks")
    ]
    assert {"sklearn", "matplotlib"} <= set(hidden)
    for command in arguments:
        result = subprocess.run(
            [sys.executable, "-c", BARE, json.dumps(hidden), *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert "%" in result.stdout


@pytest.mark.slow
def test_predict_after_an_installation_with_the_extra(arguments, tmp_path):
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin") / "python"
    probe = [python, "-m", "pip", "download", "-q", "--no-deps", "six", "-d", tmp_path]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("packages cannot be installed here")
    install = [python, "-m", "pip", "install", "-q", f"{ROOT}[predict]"]
    subprocess.run(install, check=True, capture_output=True)
    for command in arguments:
        result = subprocess.run(
            [python, "-m", "keras_mobilevit", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert "%" in result.stdout


def test_versions_of_keras_that_run_code_of_a_file_are_not_installed():
    (text,) = re.findall(
        r'^KERAS = "keras(.+)"$', (ROOT / "setup.py").read_text(), re.M
    )
    allowed = SpecifierSet(text)
    safe = {"3.12.4", "3.14.1", "3.15.1", "3.16.0"}
    unsafe = {"3.11.3", "3.12.0", "3.12.3", "3.13.0", "3.13.2", "3.14.0", "3.15.0"}
    assert {version for version in safe | unsafe if version in allowed} == safe
