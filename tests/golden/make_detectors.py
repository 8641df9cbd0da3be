"""Writes the golden files of detectors: outputs of SSDLite, compared with ml-cvnets.

ml-cvnets v0.1 does not install beside current packages, so its outputs for one set of
weights are kept outside this repository. This script compares the model with them. Only
if they are equal does it write the model's own outputs for seeded weights.

Run from the root of the repository, in the environment of this project, with the folder
of ml-cvnets' outputs:

    PYTHONPATH=. python tests/golden/make_detectors.py FOLDER

FOLDER has `ssd_xxs.safetensors` (weights with ml-cvnets' names) and `ssd_xxs.npz`:
`conf` `[2, 3232, 81]` and `loc` `[2, 3232, 4]` for two images of
`numpy.random.default_rng(7)`. The script writes to the folder `detection` beside
itself: `cvnets_mobilevit_xxs.json` has the shapes of the tensors by name, and
`cvnets_mobilevit_xxs.npz` has the logits and box deltas of each 41st anchor, float32.
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import load_file, save_file

from keras_mobilevit import SSDLite
from tests.golden.reference import (
    ANCHOR_STEP,
    DETECTION_SIZE,
    images,
    random_state,
    write_outputs,
    write_shapes,
)

STEM = Path(__file__).parent / "detection" / "cvnets_mobilevit_xxs"
TOLERANCE = 1e-4


def run(weights: Path, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of the detector with these weights."""
    model = SSDLite("mobilevit_xxs", weights=str(weights), include_preprocessing=False)
    outputs = model(batch)
    return {name: keras.ops.convert_to_numpy(x) for name, x in outputs.items()}


def compare(folder: Path) -> None:
    """Exits if the model differs from ml-cvnets."""
    wanted = np.load(folder / "ssd_xxs.npz")
    rng = np.random.default_rng(7)
    found = run(
        folder / "ssd_xxs.safetensors", rng.random((2, 320, 320, 3), dtype=np.float32)
    )
    for name, cvnets_name in (("logits", "conf"), ("offsets", "loc")):
        difference = np.abs(found[name] - wanted[cvnets_name]).max()
        print(f"{name}: differ from ml-cvnets by {difference:.2g}")
        if not difference <= TOLERANCE:
            sys.exit("Nothing is written.")


def main() -> None:
    folder = Path(sys.argv[1])
    compare(folder)
    tensors = load_file(folder / "ssd_xxs.safetensors")
    shapes = {
        name: tensor.shape
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch, "ssd_xxs.safetensors")
        save_file(random_state(shapes), weights)
        outputs = run(weights, images(*DETECTION_SIZE))
    write_shapes(STEM, shapes)
    write_outputs(STEM, {name: x[:, ::ANCHOR_STEP] for name, x in outputs.items()})


if __name__ == "__main__":
    main()
