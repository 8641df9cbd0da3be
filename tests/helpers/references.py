"""The outputs of other libraries in tests/golden, and the weights that gave them.

The weights are made again from a seed. Works on any backend of Keras.
"""

import json
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import load_file, save_file

import keras_mobilevit
from keras_mobilevit import DeepLabV3
from keras_mobilevit.configs import MOBILEVIT
from keras_mobilevit.weights.names import CheckpointFormat, find_format
from tests.golden import reference

GOLDEN = Path(reference.__file__).parent
SEGMENTER = GOLDEN / "segmentation" / "transformers_mobilevit_xxs"
DETECTOR = GOLDEN / "detection" / "cvnets_mobilevit_xxs"
TOLERANCE = 1e-4
MODELS = {
    "mobilevit_xxs": keras_mobilevit.MobileViT_XXS,
    "mobilevit_xs": keras_mobilevit.MobileViT_XS,
    "mobilevit_s": keras_mobilevit.MobileViT_S,
}


def run(model, images) -> np.ndarray:
    """Calls a model with one output and returns NumPy."""
    return keras.ops.convert_to_numpy(model(images))


def _write_weights(stem: Path, folder: Path) -> Path:
    """Writes the weights that gave the outputs `<stem>*.npz`."""
    shapes = json.loads(stem.with_suffix(".json").read_text("utf-8"))
    path = folder / f"{stem.name}.safetensors"
    save_file(reference.random_state(shapes), path)
    return path


def write_classifier(name: str, folder: Path) -> Path:
    """Writes a classifier's weights; `name` is a library and a variant."""
    return _write_weights(GOLDEN / name, folder)


def write_segmenter(folder: Path) -> Path:
    """Writes a segmenter's weights under transformers' names."""
    path = folder / "segmenter.safetensors"
    return _write_weights(SEGMENTER, folder).rename(path)


def write_detector(folder: Path) -> Path:
    """Writes a detector's weights under ml-cvnets' names."""
    return _write_weights(DETECTOR, folder)


def build_segmenter(weights, output_stride: int, **arguments) -> keras.Model:
    """Builds the model whose outputs are stored."""
    arguments = {
        "input_shape": (None, None, 3),
        "include_preprocessing": False,
        "upsample": False,
    } | arguments
    return DeepLabV3(
        "mobilevit_xxs", weights=str(weights), output_stride=output_stride, **arguments
    )


def check_segmenter(
    model, output_stride: int, sizes=reference.SEGMENTATION_SIZES
) -> None:
    """Compares a segmenter's logits with those of transformers."""
    golden = np.load(f"{SEGMENTER}_{output_stride}.npz")
    for size in sizes:
        logits = run(model, reference.images(*size))
        wanted = golden[reference.size_key(*size)]
        assert logits.shape[1:3] == tuple(-(-side // output_stride) for side in size)
        assert np.abs(wanted).max() > 1
        difference = np.abs(reference.subsampled(logits) - wanted).max()
        assert difference <= TOLERANCE, size


def check_classifier(model, name: str, sizes=reference.SIZES) -> None:
    """Compares a classifier's logits with those of a library and variant."""
    golden = np.load(GOLDEN / f"{name}.npz")
    for size in sizes:
        wanted = golden[reference.size_key(*size)]
        assert np.abs(wanted).max() > 0.1
        difference = np.abs(run(model, reference.images(*size)) - wanted).max()
        assert difference <= TOLERANCE, size


def rename_tensors(path: Path, target: CheckpointFormat) -> dict[str, np.ndarray]:
    """Reads a file with transformers' names and gives its tensors other names."""
    tensors, renamed = load_file(path), {}
    transformers = find_format("transformers", MOBILEVIT)
    for layer, module in target.modules.items():
        module, _, third = module.partition("#")
        source = transformers.modules.get(layer)
        for name in [name for name in tensors if name.rpartition(".")[0] == source]:
            parts = renamed.setdefault(f"{module}.{name.rpartition('.')[2]}", {})
            parts[int(third or 0)] = tensors[name]
    return {
        name: np.concatenate([parts[i] for i in sorted(parts)])
        for name, parts in renamed.items()
    }
