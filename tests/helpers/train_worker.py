"""Trains on the digits in a process of its own, as one of several workers or devices.

    python -m tests.helpers.train_worker WORKDIR NETWORK DEVICES STEPS [SAVE_SECONDS]

NETWORK is `small` or a variant, without dropout, which no two numbers of devices draw
alike, or `augmented`: small, with all that the recipe of MobileViTv2 adds. DEVICES is
the number of logical CPUs. Workers come from `TF_CONFIG`. The chief writes
`losses.json`, the loss of each step, into WORKDIR. With SAVE_SECONDS between two
checkpoints the run is deterministic.
"""

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import tensorflow as tf

from tests.helpers.networks import build_network, build_without_dropout
from train import checks, loop
from train.config import make_config
from train.data.digits import digits_source
from train.data.source import indexed_source
from train.distribution.strategies import Devices, is_chief, make_strategy
from train.tasks.classification.task import CLASSIFICATION

CONFIG = make_config(
    data="digits",
    sizes=(32, 48),
    base_size=48,
    batch_size=16,
    epochs=1,
    warmup_steps=20,
    eval_size=32,
)
AUGMENTED = dict(
    rand_augment=2,
    random_erasing=0.25,
    mixup=0.2,
    cutmix=1.0,
    gradient_clip=1.0,
    decay_norms=False,
)


def make_devices(count: int) -> tf.distribute.Strategy:
    if count == 1:
        return make_strategy(Devices(cluster_timeout=60.0))
    (cpu,) = tf.config.list_physical_devices("CPU")
    logical = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(cpu, logical)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def digits_for(steps: int):
    """The first digits, as many as make `steps` batches of both sizes."""
    source = digits_source()
    batches = [
        shape.batch
        for shape in checks.shared_shapes(CONFIG, tf.distribute.get_strategy())
    ]
    count = steps // 2 * sum(batches)
    columns = {
        split: {key: values[:kept] for key, values in column.items()}
        for kept, (split, column) in zip((count, 360), source.columns.items())
    }
    return indexed_source(source.name, source.class_names, columns)


def main(
    workdir: str, network: str, devices: str, steps: str, save_seconds: str = ""
) -> None:
    if save_seconds:
        keras.utils.set_random_seed(0)
        tf.config.experimental.enable_op_determinism()
    seconds = float(save_seconds or loop.SAVE_SECONDS)
    strategy = make_devices(int(devices))
    small = functools.partial(build_network, dropout=0.0)
    is_small = network in ("small", "augmented")
    build = small if is_small else build_without_dropout
    model = "mobilevit_xxs" if is_small else network
    task = dataclasses.replace(CLASSIFICATION, build_model=build)
    changes = AUGMENTED if network == "augmented" else {}
    config = dataclasses.replace(CONFIG, model=model, **changes)
    losses, as_numbers = [], loop.as_numbers

    def recorded(sums):
        numbers = as_numbers(sums)
        if "not_finite" in numbers:
            losses.append(numbers["loss"] / numbers["count"])
        return numbers

    loop.as_numbers = recorded
    source = digits_for(int(steps))
    loop.train_and_evaluate(task, config, source, workdir, seconds, strategy)
    if is_chief(strategy):
        (Path(workdir) / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
