"""Seeded weights and images that the golden files and the tests re-create.

The golden files hold logits only. Weights come from each tensor's name and shape, so
that megabytes of them need not be stored; NumPy alone makes both.
"""

import zlib

import numpy as np

SEED = 0
SIZES = ((256, 256), (224, 224), (192, 192), (288, 320))
# Of segmenters; the last has maps of an odd side at every output stride.
SEGMENTATION_SIZES = ((512, 512), (256, 256), (240, 200))
DETECTION_SIZE = (320, 320)
ANCHOR_STEP = 41  # a prime: the anchors kept are of all maps, places and aspects

# A little above 1, so that activations keep their size through the network.
_GAIN = 1.2


def _random_tensor(name: str, shape: tuple, seed: int) -> np.ndarray:
    # NumPy promises to keep the streams of RandomState, unlike those of Generator.
    rng = np.random.RandomState([seed, zlib.crc32(name.encode())])
    if name.endswith((".bias", ".running_mean")):
        return rng.normal(0, 0.1, shape)
    if name.endswith(".running_var") or len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape)
    fan_in = np.prod(shape[1:])
    return rng.normal(0, _GAIN / np.sqrt(fan_in), shape)


def random_state(shapes: dict[str, tuple], seed: int = SEED) -> dict[str, np.ndarray]:
    """Makes weights and BatchNorm statistics in which no part of a model is inert.

    Freshly built models have BatchNorm layers and biases that do nothing, and so
    cannot show that these were loaded.

    Args:
        shapes: shapes of the tensors by PyTorch name.
        seed: another seed gives other weights.

    Returns:
        Float32 tensors by name, each independent of which others are asked for.
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


def thinned(maps: np.ndarray) -> np.ndarray:
    """Keeps so many rows and columns of logits that the golden files stay small.

    Args:
        maps: `[batch, rows, columns, classes]`.

    Returns:
        At most 11 of the rows and columns each, evenly spaced.
    """
    rows, columns = (-(-side // 11) for side in maps.shape[1:3])
    return maps[:, ::rows, ::columns]
