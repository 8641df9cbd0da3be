"""Runs `.tflite` files with MediaPipe Tasks, in the environment that has it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

RUNNER = Path(__file__).with_name("mediapipe_runner.py")
METADATA = Path(__file__).with_name("mediapipe_metadata.py")
PYTHON = Path(
    os.environ.get("MEDIAPIPE_PYTHON", Path(sys.prefix, "mediapipe/bin/python"))
)
MISSING = "" if PYTHON.is_file() else f"no MediaPipe in {PYTHON}: make mediapipe"


def run(task: str, models: list[Path], images: np.ndarray, folder: Path) -> list:
    """Returns what MediaPipe finds on each image with each model.

    `task` is `classifier`, `detector` or `segmenter`; the images are uint8 `[images,
    height, width, 3]`. For the results see `mediapipe_runner.py`. Raises a RuntimeError
    with MediaPipe's message if it refuses a file.
    """
    given = folder / "given.npz"
    np.savez(given, *images)
    done = subprocess.run(
        [PYTHON, RUNNER, task, given, folder, *models], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    if task != "segmenter":
        return [
            json.loads((folder / f"{model.stem}.json").read_text("utf-8"))
            for model in models
        ]
    found = []
    for model in models:
        with np.load(folder / f"{model.stem}.npz") as arrays:
            found.append(np.stack(list(arrays.values())))
    return found


def read_metadata(model: Path) -> dict:
    """Returns the metadata of a file as MediaPipe's own schema reads it."""
    done = subprocess.run(
        [PYTHON, METADATA, model], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)
