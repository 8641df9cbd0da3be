"""Trains MobileViT on any images, at several sizes at once, and evaluates it.

Examples:
  python train/main.py --data=digits --workdir=runs/digits
  python train/main.py --data=folder:photos --model=mobilevit_xxs --workdir=runs/photos
  python train/main.py --data=folder:photos --weights=imagenet --workdir=runs/tuned
  python train/main.py --mode=eval --data=folder:photos --model=out/best_160_int8.tflite
  python train/main.py --task=detection --workdir=runs/scenes
  python train/main.py --task=detection --data=voc:cells --workdir=runs/cells
  python train/main.py --task=segmentation --data=voc:roads --workdir=runs/roads
  python train/main.py --tpu --data=tfds:imagenet2012 --workdir=/shared/run

A recipe sets every flag that is not given. Without --recipe, the task and the kind of
data choose one:

  classification  digits, folder_small (a few thousand photos), imagenet (the paper)
  detection       digits_detection, voc_detection_small (a few thousand photos), coco
                  (the paper)
  segmentation    digits_segmentation, voc_segmentation_small (a few hundred photos),
                  voc2012 (the paper)

Run the same command again to continue an interrupted run, also within an epoch. SIGTERM
saves the run and ends it with the exit code 75. --workdir then holds:

  best.keras              moving average of the weights, at its best epoch
  metrics.jsonl           metrics of each epoch; curves.png and tensorboard/ show them
  predictions.png         predictions on eight images beside the truth (detection and
                          segmentation)
  checkpoint.safetensors  where the run continues
  config.json, labels.txt values of all flags, and names of the classes
"""

import math
import os
import re
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
from absl import flags, logging

from train.cli.command import INTERRUPTED, run_command
from train.cli.console import quiet_libraries
from train.config import TrainConfig
from train.data.registry import load_source
from train.distribution.devices import Devices, devices_from_flags
from train.flags import config_from_flags, flag_groups
from train.run.progress import PREEMPTED, Preempted, end_on_sigterm
from train.tasks.registry import load_task

# How libraries say so that TensorFlow calls: CUDA, cuDNN, XLA and C++ itself.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|\boom\b|bad_alloc|failed to allocate|alloc_failed", re.IGNORECASE
)


def check_flags(args: flags.FlagValues, devices: Devices) -> None:
    """Refuses flags that do not go together, before TensorFlow is loaded."""
    if args.mode == "eval":
        if devices != Devices():
            raise ValueError(
                "--tpu, --gpus and --cluster are for training. --mode=eval runs on "
                "one device: remove them."
            )
        return
    if args.workdir is None:
        raise ValueError(
            "Training needs --workdir, the folder of the run, such as "
            "--workdir=runs/digits. --help explains all flags."
        )
    if not math.isfinite(args.save_minutes):
        raise ValueError(
            f"--save_minutes must be a number. Received: {args.save_minutes}."
        )


def load(args: flags.FlagValues) -> TrainConfig:
    """Makes the configuration, and loads TensorFlow with the settings for training."""
    # Three times faster training on a CPU.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # tf.data and the training step are TensorFlow's, whatever Keras uses elsewhere.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with quiet_libraries():
        config = config_from_flags(args)
        import tensorflow as tf

        load_task(config.task)
    tf.get_logger().setLevel("WARNING")  # INFO reports each sum over the workers
    return config


def train(args: flags.FlagValues, config: TrainConfig, devices: Devices) -> None:
    """Trains a model in --workdir."""
    import tensorflow as tf

    from train.distribution.strategies import make_strategy
    from train.loop import train_and_evaluate

    if args.deterministic:
        tf.config.experimental.enable_op_determinism()
    # Before anything else: TensorFlow joins a cluster only at its start.
    strategy = make_strategy(devices)
    source = _load_source(args, config)
    train_and_evaluate(
        load_task(config.task),
        config,
        source,
        args.workdir,
        60 * args.save_minutes,
        strategy,
    )


def evaluate(args: flags.FlagValues, config: TrainConfig) -> None:
    """Measures a model on the validation split, and prints the metrics."""
    from train.evaluation.report import evaluation_report

    source = _load_source(args, config)
    print(evaluation_report(load_task(config.task), config, source))


def _load_source(args: flags.FlagValues, config: TrainConfig):
    source = load_source(config.task, config.data, args.cache)
    logging.info(
        "%s: %d classes, %s",
        source.name,
        len(source.class_names),
        ", ".join(
            f"{count} {split} images" for split, count in source.num_examples.items()
        ),
    )
    return source


def _run(args: flags.FlagValues) -> None:
    devices = devices_from_flags(args)
    check_flags(args, devices)
    if args.mode == "train":  # an evaluation has nothing to continue
        end_on_sigterm()  # also while TensorFlow is loaded, which takes seconds
    config = load(args)
    import tensorflow as tf

    try:
        if args.mode == "eval":
            evaluate(args, config)
        else:
            train(args, config, devices)
    except tf.errors.OpError as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {_explain(error, devices)}")


def _explain(error, devices: Devices) -> str:
    """Says in one line why TensorFlow ended a training."""
    import tensorflow as tf

    from train.distribution.cluster import find_cluster

    lines = (line.strip() for line in error.message.splitlines())
    noise = ("File ", "Detected at", "Graph execution error", "[[", "<stack")
    relevant = [line for line in lines if line and not line.startswith(noise)]
    reason = " ".join(relevant[-2:]) if relevant else type(error).__name__
    is_memory = isinstance(error, tf.errors.ResourceExhaustedError)
    if is_memory or _OUT_OF_MEMORY.search(error.message):
        return (
            "The device has too little memory. Use a smaller --batch_size or more "
            f"--accumulation_steps. TensorFlow said: {reason}"
        )
    has_workers = devices.cluster == "auto" and find_cluster(os.environ)
    return (
        f"TensorFlow ended the training: {reason} "
        + "One of the workers may have stopped or restarted; its own output says why. "
        * bool(has_workers)
        + "Run the same command again to continue."
    )


def main(argv: list[str]) -> None:
    """Trains or evaluates, and ends with one line if that fails."""
    del argv
    try:
        _run(flags.FLAGS)
    except Preempted as error:
        logging.info("%s", error)
        sys.exit(PREEMPTED)
    except KeyboardInterrupt:
        print(
            "interrupted; the same command continues from the last checkpoint, or from "
            "the start if there is none yet"
        )
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, FloatingPointError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    run_command(main, __doc__, flag_groups())
