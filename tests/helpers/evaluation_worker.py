"""Evaluates random networks on scenes, in a process of its own, as one of some workers.

    python -m tests.helpers.evaluation_worker DEVICES

DEVICES is the number of logical CPUs; workers come from `TF_CONFIG`. Prints the metrics
of each task as JSON. Scenes have different sizes, and some cannot be read.
"""

import dataclasses
import json
import math
import sys
import threading
from pathlib import Path

import keras
import tensorflow as tf

from tests.helpers.networks import build_detector, build_segmenter
from tests.helpers.train_worker import make_devices
from train.config import make_config
from train.data.digits import box_scene_source, mask_scene_source
from train.loop import Run, validate
from train.run.progress import CheckpointManager, Progress
from train.step import make_eval_step
from train.tasks.detection.task import DETECTION
from train.tasks.segmentation.task import SEGMENTATION

SCENES = {"train": 1, "validation": 21}
TASKS = {
    "segmentation": (SEGMENTATION, mask_scene_source, build_segmenter),
    "detection": (DETECTION, box_scene_source, build_detector),
}


def with_damage(source):
    """Returns a source whose second, third and fourth images cannot be read."""

    columns = source.columns["validation"]
    encoded = tf.tensor_scatter_nd_update(
        columns["encoded"], [[1], [2], [3]], ["no image"] * 3
    )
    columns = {"validation": {**columns, "encoded": encoded}}
    return dataclasses.replace(source, columns=columns)


def metrics_of(name: str, strategy) -> dict:
    task, make_source, build = TASKS[name]
    source = with_damage(make_source(counts=SCENES))
    config = make_config(task=name, batch_size=4, eval_size=64)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = build(config, source)
    step = make_eval_step(task, model, strategy)
    manager = CheckpointManager(lambda progress: None, math.inf, threading.Event())
    run = Run(task, config, source, Path(), strategy)
    return validate(run, step, Progress(), manager)


if __name__ == "__main__":
    strategy = make_devices(int(sys.argv[1]))
    print(json.dumps({name: metrics_of(name, strategy) for name in TASKS}))
