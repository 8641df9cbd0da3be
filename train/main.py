"""Trains MobileViT on images of any source, at many resolutions at once.

Examples:
  python train/main.py --data=digits --workdir=runs/digits
  python train/main.py --data=folder:photos --model=mobilevit_xxs --workdir=runs/photos
  python train/main.py --data=folder:photos --weights=imagenet --workdir=runs/tuned
  python train/main.py --mode=eval --data=folder:photos --model=out/best_160_int8.tflite
  python train/main.py --task=detection --workdir=runs/scenes
  python train/main.py --task=detection --data=voc:cells --workdir=runs/cells
  python train/main.py --task=segmentation --data=voc:roads --workdir=runs/roads
  python train/main.py --tpu --data=tfds:imagenet2012 --workdir=/shared/run

A recipe sets every flag that is not given, by the task and the kind of the data or by
--recipe: `digits`, `small` (a few thousand photos), `imagenet` (the paper's); for
detection `scenes` (of digits), `boxes` (a few thousand photos), `coco` (the paper's);
for segmentation `mask_scenes`, `masks` (a few hundred photos), `voc2012` (the paper's).
Run the same command again to continue an interrupted run, within its epoch too; SIGTERM
saves it and ends with the exit code 75, as before the first step. --workdir then holds
best.keras (the moving average of the weights at its best epoch),
checkpoint.safetensors, metrics.jsonl, curves.png, predictions.png (of detection and
segmentation: what the last epoch finds on eight images, beside the truth),
tensorboard/, config.json and labels.txt.
"""

import math
import os
import signal
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
from train.run.progress import PREEMPTED, Preempted, sigterm_ends

if __name__ == "__main__":
    sigterm_ends()  # from now on: loading TensorFlow takes seconds
# Three times faster training on a CPU; read once, when TensorFlow is loaded.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# tf.data and the training step are TensorFlow's, whatever Keras runs on elsewhere.
if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"

import tensorflow as tf
from absl import app, flags, logging

from train import flags as train_flags
from train.data.registry import load_source
from train.distribution import data_service, strategies
from train.evaluation.report import evaluation_report
from train.loop import train_and_evaluate
from train.run.console import print_any_name
from train.tasks.registry import load_task

INTERRUPTED = 130  # exit code, as of a shell


def train(config) -> None:
    args = flags.FLAGS
    if args.workdir is None:
        raise ValueError("Training takes a --workdir, the directory of the run.")
    if not math.isfinite(args.save_minutes):
        raise ValueError(f"--save_minutes is a number. Received: {args.save_minutes}.")
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()
    servers = data_service.servers_from_flags()
    if servers and args.cache:
        raise ValueError(
            "--cache keeps the files on this machine, but --data_servers read them on "
            "theirs. Leave one of both away."
        )
    devices = strategies.devices_from_flags()
    # Before anything else: TensorFlow joins a cluster only at its start.
    strategy = strategies.make_strategy(devices)
    source = _load_source(config)
    task, seconds = load_task(config.task), 60 * args.save_minutes
    train_and_evaluate(task, config, source, args.workdir, seconds, strategy)


def evaluate(config) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing to continue
    is_one_device = strategies.devices_from_flags() == strategies.Devices()
    if not is_one_device or data_service.servers_from_flags():
        raise ValueError(
            "--tpu, --gpus, --cluster and --data_servers are for training; --mode=eval "
            "runs on one device. Leave them away."
        )
    source = _load_source(config)
    print(evaluation_report(load_task(config.task), config, source))


def _load_source(config):
    source = load_source(config.task, config.data, flags.FLAGS.cache)
    classes = len(source.class_names)
    logging.info("%s: %s classes, %s", source.name, classes, source.num_examples)
    return source


def _explain(error: tf.errors.OpError) -> str:
    """Says what ended a training within TensorFlow."""
    lines = (line.strip() for line in error.message.splitlines())
    noise = ("File ", "Detected at", "Graph execution error", "[[", "<stack")
    told = [line for line in lines if line and not line.startswith(noise)]
    reason = " ".join(told[-2:]) if told else type(error).__name__
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return (
            "The device has too little memory. A smaller --batch_size or more "
            f"--accumulation_steps take less. TensorFlow said: {reason}"
        )
    return (
        f"TensorFlow ended the training: {reason} Where several workers train or data "
        "servers decode, one of them may have gone or started anew: its own output "
        "tells why. The same command continues."
    )


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    try:
        config = train_flags.config_from_flags()
        {"train": train, "eval": evaluate}[flags.FLAGS.mode](config)
    except Preempted as error:
        logging.info("%s", error)
        sys.exit(PREEMPTED)
    except KeyboardInterrupt:
        print(
            "interrupted; the same command continues from the last checkpoint, or from "
            "the start if there is none yet"
        )
        sys.exit(INTERRUPTED)
    except tf.errors.OpError as error:
        logging.debug("where it happened:", exc_info=True)
        sys.exit(f"error: {_explain(error)}")
    except (ValueError, OSError, FloatingPointError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    print_any_name()
    logging.set_verbosity(logging.INFO)
    tf.get_logger().setLevel("WARNING")  # it tells of every sum over workers
    for module in (train_flags, strategies, data_service):
        module.define_flags()
        flags.adopt_module_key_flags(module)  # so that --help shows them
    app.run(main)
