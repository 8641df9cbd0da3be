"""Trains a detector or a segmenter with plain Keras's `compile` and `fit`.

Examples:
  python benchmarks/keras_fit.py --task=detection
  python benchmarks/keras_fit.py --task=segmentation --epochs=2

The smallest MobileViT starts from random weights and learns the scenes of digits of
`train/data/digits.py`. Nothing else of the training in `train/` is used: no crops, no
moving average, one size. The script prints a line for each epoch, and the minutes at
the end.
"""

import os
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

if TYPE_CHECKING:
    import keras

from train.cli.command import run_command
from train.cli.console import quiet_libraries

SIZES = {"detection": 160, "segmentation": 192}
SCENES = {"detection": 4800, "segmentation": 1600}  # for training
EPOCHS = {"detection": 4, "segmentation": 6}
HELD_OUT = 200
LEARNING_RATE, BATCH = 2e-3, 16


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_enum("task", "detection", list(SIZES), "What is trained.")
    flags.DEFINE_integer(
        "epochs",
        None,
        "Number of epochs. Default: "
        + ", ".join(f"{count} ({task})" for task, count in EPOCHS.items()),
        lower_bound=1,
    )


def load_scenes(split: str, count: int, size: int) -> tuple:
    """Returns images `[count, size, size, 3]`, boxes and masks of a split."""
    import keras
    import tensorflow as tf

    import keras_mobilevit
    from train.data.digits import make_scenes

    scenes = make_scenes(split, count)
    images = np.stack([tf.io.decode_png(scene.encoded) for scene in scenes])
    images = keras.ops.image.resize(images, (size, size))  # uint8 in, uint8 out
    boxes = keras_mobilevit.detection_targets(
        [scene.objects.boxes for scene in scenes],
        [scene.objects.classes for scene in scenes],
        bounding_box_format="rel_xyxy",
    )
    masks = np.stack([scene.mask for scene in scenes])[..., None]
    masks = keras.ops.image.resize(masks, (size, size), interpolation="nearest")
    return np.asarray(images), boxes, np.asarray(masks)[..., 0].astype(np.int32)


def compiled_model(task: str, steps: int) -> "keras.Model":
    """Returns the model with its loss, its metric and a schedule of `steps`."""
    import keras

    import keras_mobilevit

    size = SIZES[task]
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=LEARNING_RATE, warmup_steps=100
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01)
    options: dict[str, Any] = {"weights": None, "input_shape": (size, size, 3)}
    if task == "detection":
        model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=10, **options)
        metric = keras_mobilevit.BoxAveragePrecision(classes=10)
        model.compile(optimizer, metrics=[metric], jit_compile=False)
        return model
    model = keras_mobilevit.DeepLabV3("mobilevit_xxs", classes=11, **options)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255),
        metrics=[keras.metrics.MeanIoU(11, sparse_y_pred=False, ignore_class=255)],
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)  # else the step is traced twice
    return model


def main(argv: list[str]) -> None:
    """Trains, and prints the time."""
    del argv
    with quiet_libraries():
        import keras

    keras.utils.set_random_seed(0)
    task = flags.FLAGS.task
    epochs = flags.FLAGS.epochs or EPOCHS[task]
    images, boxes, masks = load_scenes("train", SCENES[task], SIZES[task])
    held_out = load_scenes("validation", HELD_OUT, SIZES[task])
    target = {"detection": 1, "segmentation": 2}[task]
    model = compiled_model(task, epochs * len(images) // BATCH)
    start = time.monotonic()
    model.fit(
        images,
        (images, boxes, masks)[target],
        batch_size=BATCH,
        epochs=epochs,
        validation_data=(held_out[0], held_out[target]),
        verbose=2,
    )
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    run_command(main, __doc__, {"Flags": define_flags})
