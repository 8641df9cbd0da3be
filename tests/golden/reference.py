"""Seeded weights and images, from which golden files and tests make the same numbers.

The golden files hold only outputs. The weights depend on each tensor's name and shape,
so they need not be stored. All functions use only NumPy.
"""

import json
import zlib
from pathlib import Path

import numpy as np

SEED = 0
SIZES = ((256, 256), (224, 224), (192, 192), (288, 320))
# Sizes for segmenters. The last one has feature maps with odd sides at all strides.
SEGMENTATION_SIZES = ((512, 512), (256, 256), (240, 200))
DETECTION_SIZE = (320, 320)
ANCHOR_STEP = 41  # a prime, so that all maps, cells and aspect ratios are included
# Sizes for backbones with dilations. The last one has odd sides at strides 8 and 16.
DILATED_SIZES = ((256, 256), (240, 200))
CHANNEL_STEP = 20

# A little above 1, so that the activations do not vanish in deep layers.
_GAIN = 1.2


def _random_tensor(name: str, shape: tuple, seed: int) -> np.ndarray:
    # NumPy guarantees the numbers of RandomState, but not those of Generator.
    rng = np.random.RandomState([seed, zlib.crc32(name.encode())])
    if name.endswith((".bias", ".running_mean")):
        return rng.normal(0, 0.1, shape)
    if name.endswith(".running_var") or len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape)
    fan_in = np.prod(shape[1:])
    return rng.normal(0, _GAIN / np.sqrt(fan_in), shape)


def random_state(shapes: dict[str, tuple], seed: int = SEED) -> dict[str, np.ndarray]:
    """Makes weights and statistics that all influence the outputs.

    In a new model, batch normalization and biases do nothing. So a test with them could
    not show that they were loaded.

    Args:
        shapes: shapes of the tensors by PyTorch name.
        seed: another seed gives other weights.

    Returns:
        Float32 tensors by name. A tensor does not depend on the other names.
    """
    return {
        name: _random_tensor(name, tuple(shape), seed).astype("float32")
        for name, shape in shapes.items()
    }


def images(height: int, width: int) -> np.ndarray:
    """Returns two RGB images `[2, height, width, 3]`, float32 in [0, 1]."""
    rng = np.random.RandomState([SEED, height, width])
    return rng.uniform(0, 1, (2, height, width, 3)).astype("float32")


def size_key(height: int, width: int) -> str:
    """Returns the name of a size's logits in the golden files."""
    return f"y{height}x{width}"


def feature_key(height: int, width: int) -> str:
    """Returns the name of a size's feature map in the golden files."""
    return f"f{height}x{width}"


def resized_key(height: int, width: int) -> str:
    """Returns the name of the logits that were resized to the size of the image."""
    return f"resized{height}x{width}"


def subsampled(maps: np.ndarray) -> np.ndarray:
    """Keeps a part of the logits, so that the golden files stay small.

    Args:
        maps: `[batch, rows, columns, classes]`.

    Returns:
        At most 11 rows and 11 columns, evenly spaced.
    """
    rows, columns = (-(-side // 11) for side in maps.shape[1:3])
    return maps[:, ::rows, ::columns]


def subsampled_features(maps: np.ndarray) -> np.ndarray:
    """Keeps a part of a feature map: as `subsampled`, and each 20th channel."""
    return subsampled(maps)[..., ::CHANNEL_STEP]


def write_shapes(stem: Path, shapes: dict[str, tuple]) -> None:
    """Writes `<stem>.json`: the shapes of the weights by name."""
    stem.parent.mkdir(exist_ok=True)
    rows = (f"  {json.dumps(name)}: {list(shapes[name])}" for name in sorted(shapes))
    stem.with_suffix(".json").write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")


def write_outputs(stem: Path, outputs: dict[str, np.ndarray]) -> None:
    """Writes `<stem>.npz`: the outputs by name."""
    np.savez_compressed(stem.with_suffix(".npz"), **outputs)
    extremes = ", ".join(f"{name} {abs(x).max():.3g}" for name, x in outputs.items())
    print(f"{stem.name}: largest {extremes}")
