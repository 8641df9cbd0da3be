"""Errors of an incomplete installation name the command that completes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keras_mobilevit.__main__ import main

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
