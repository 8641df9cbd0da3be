"""A few steps of plain Keras's `fit`, the same on every backend."""

from pathlib import Path

import keras
import numpy as np

import keras_mobilevit

SIZE, CLASSES, STEPS = 64, 3, 3


def write_models(folder: Path) -> None:
    """Writes an untrained detector and an untrained segmenter without dropout."""
    keras.utils.set_random_seed(0)
    options = {"classes": CLASSES, "weights": None, "input_shape": (SIZE, SIZE, 3)}
    detector = keras_mobilevit.SSDLite("mobilevit_xxs", **options)
    segmenter = keras_mobilevit.DeepLabV3("mobilevit_xxs", **options)
    for kind, model in (("detector", detector), ("segmenter", segmenter)):
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0  # its masks differ between backends
        model.save(folder / f"untrained_{kind}.keras")


def batch() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Returns four images, their boxes and labels, and their masks."""
    rng = np.random.default_rng(0)
    images = np.float32(rng.uniform(0, 255, (4, SIZE, SIZE, 3)))
    corners = rng.uniform(0, 0.5, (4, 2, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.5, (4, 2, 2))], -1)
    labels = rng.integers(0, CLASSES, (4, 2))
    labels[0] = -1  # an image without objects
    masks = rng.integers(0, CLASSES, (4, SIZE, SIZE))
    masks[:, :9] = 255
    return images, {"boxes": np.float32(boxes), "labels": labels}, masks


def fit_losses(folder: Path) -> dict[str, list[float]]:
    """Trains the models of `write_models`; returns the losses of the steps."""
    images, objects, masks = batch()
    losses = {}
    entropy = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    precision = keras_mobilevit.BoxAveragePrecision(CLASSES)
    for kind, targets, loss, metrics in (
        ("detector", objects, keras_mobilevit.SSDLoss(), [precision]),
        ("segmenter", masks, entropy, []),
    ):
        model = keras.saving.load_model(f"{folder}/untrained_{kind}.keras")
        optimizer = keras.optimizers.SGD(1e-4)
        model.compile(optimizer, loss, metrics=metrics, jit_compile=False)
        history = model.fit(images, targets, 4, epochs=STEPS, shuffle=False, verbose=0)
        losses[kind] = history.history["loss"]
    return losses
