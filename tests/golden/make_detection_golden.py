"""Writes the golden file of detection: outputs of SSDLite for seeded weights.

ml-cvnets v0.1 no longer installs beside current packages, so its outputs for one set of
weights are kept outside the project. This script first checks that the model equals
them, and only then writes its own outputs for weights that need not be stored.

Run by hand, from the root of the repository, with the folder of the outputs:

    PYTHONPATH=. python tests/golden/make_detection_golden.py FOLDER

FOLDER has `ssd_xxs.safetensors` (weights by ml-cvnets' names) and `ssd_xxs.npz` (`conf`
`[2, 3232, 81]` and `loc` `[2, 3232, 4]`, for two images drawn by
`numpy.random.default_rng(7)`). The folder detection beside this script gets
`cvnets_mobilevit_xxs.json`, the shapes of the tensors by name, and
`cvnets_mobilevit_xxs.npz`, logits and offsets float32 of every 41st anchor.
"""

import json
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import load_file, save_file

from keras_mobilevit import SSDLite
from tests.golden.reference import ANCHOR_STEP, DETECTION_SIZE, images, random_state

STEM = Path(__file__).parent / "detection" / "cvnets_mobilevit_xxs"
TOLERANCE = 1e-4


def run(weights: Path, batch: np.ndarray) -> dict[str, np.ndarray]:
    model = SSDLite("mobilevit_xxs", weights=str(weights), include_preprocessing=False)
    outputs = model(batch)
    return {name: keras.ops.convert_to_numpy(x) for name, x in outputs.items()}


def check(folder: Path) -> None:
    """Ends the script if the model differs from ml-cvnets."""
    wanted = np.load(folder / "ssd_xxs.npz")
    rng = np.random.default_rng(7)
    found = run(
        folder / "ssd_xxs.safetensors", rng.random((2, 320, 320, 3), dtype=np.float32)
    )
    for name, theirs in (("logits", "conf"), ("offsets", "loc")):
        difference = np.abs(found[name] - wanted[theirs]).max()
        print(f"{name}: differ from ml-cvnets by {difference:.2g}")
        if not difference <= TOLERANCE:
            sys.exit("Nothing is written.")


def main() -> None:
    folder = Path(sys.argv[1])
    check(folder)
    tensors = load_file(folder / "ssd_xxs.safetensors")
    shapes = {
        name: tensor.shape
        for name, tensor in sorted(tensors.items())
        if not name.endswith("num_batches_tracked")
    }
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch, "ssd_xxs.safetensors")
        save_file(random_state(shapes), weights)
        outputs = run(weights, images(*DETECTION_SIZE))
    STEM.parent.mkdir(exist_ok=True)
    rows = (f"  {json.dumps(name)}: {list(shape)}" for name, shape in shapes.items())
    STEM.with_suffix(".json").write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
    thinned = {name: x[:, ::ANCHOR_STEP] for name, x in outputs.items()}
    np.savez_compressed(STEM.with_suffix(".npz"), **thinned)
    extremes = ", ".join(f"{k} {abs(v).max():.3g}" for k, v in thinned.items())
    print(f"{STEM.name}: largest {extremes}")


if __name__ == "__main__":
    main()
