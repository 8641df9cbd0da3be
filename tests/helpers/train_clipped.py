"""Trains two steps with clipped gradients, on two devices and on one.

    python -m tests.helpers.train_clipped PRECISION

Prints a line of JSON: the trained weights, of two devices and of one. The optimizer is
SGD, since AdamW undoes most of a clip.
"""

import dataclasses
import json
import sys

import keras
import numpy as np
import tensorflow as tf

from tests.helpers.networks import build_network
from tests.helpers.train_worker import make_devices
from train.config import make_config
from train.data.source import Source
from train.models import build_state
from train.step import make_train_step
from train.tasks.classification.task import CLASSIFICATION

CONFIG = make_config("digits", gradient_clip=0.05, accumulation_steps=2)
SOURCE = Source("random", tuple("0123456789"), {"train": 8, "validation": 8}, None)


def build_linear(config, source) -> keras.Model:
    return build_network(config, source, dropout=0.0)


def random_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "label": rng.integers(0, 10, 8, np.int32),
        "weight": np.float32(np.arange(8) > 0),
    }


def train(precision: str, strategy: tf.distribute.Strategy) -> list[float]:
    config = dataclasses.replace(CONFIG, precision=precision)
    task = dataclasses.replace(CLASSIFICATION, build_model=build_linear)
    with strategy.scope():
        state = build_state(task, config, SOURCE, is_fresh=True)
        optimizer = keras.optimizers.SGD(1.0)
        if precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(state.model.trainable_variables)
    state = dataclasses.replace(state, optimizer=optimizer)
    step = make_train_step(task, config, state, strategy)
    replicas, batch = strategy.num_replicas_in_sync, random_batch()
    shared = strategy.experimental_distribute_values_from_function(
        lambda context: {
            name: tf.constant(value[context.replica_id_in_sync_group :: replicas])
            for name, value in batch.items()
        }
    )
    for _ in range(2):
        step((shared,), tf.fill([1], 1.0), tf.fill([1], 0.9), tf.constant(0.0))
    weights = [variable.numpy().ravel() for variable in state.model.trainable_variables]
    return np.concatenate(weights).tolist()


if __name__ == "__main__":
    strategies = make_devices(2), tf.distribute.get_strategy()
    (precision,) = sys.argv[1:]
    print(json.dumps([train(precision, strategy) for strategy in strategies]))
