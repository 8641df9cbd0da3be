"""Prints the dropout masks of two devices for the same example, as JSON.

    python -m tests.helpers.train_masks FOLDER

Two steps, then a checkpoint and one more step; then the checkpoint is loaded, as by a
run that continues, and the last step is done again.
"""

import json
import sys
from pathlib import Path

import keras
import tensorflow as tf

from tests.helpers.train_worker import make_devices
from train.models import separate_seeds
from train.run.checkpoint import load_checkpoint, save_checkpoint


def main(folder: str) -> None:
    strategy, file = make_devices(2), Path(folder) / "checkpoint.safetensors"
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dropout(0.5, name="one"),
                keras.layers.Dropout(0.1, name="two"),
            ]
        )
    step = tf.function(
        lambda: strategy.run(lambda: model(tf.ones([1, 64]), training=True)),
        autograph=False,
    )

    def masks() -> list:
        found = strategy.experimental_local_results(step())
        return [(value.numpy() > 0).astype(int).tolist() for value in found]

    separate_seeds(model, strategy)
    steps = [masks(), masks()]
    save_checkpoint(file, {"model": model}, {})
    steps.append(masks())
    load_checkpoint(file, {"model": model})
    separate_seeds(model, strategy)
    print(json.dumps([*steps, masks()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
