"""Trains MobileViT on images of any source, at many resolutions at once.

Examples:

  python train/main.py --data=digits --workdir=runs/digits
  python train/main.py --data=folder:photos --model=mobilevit_xxs --workdir=runs/photos
  python train/main.py --data=folder:photos --weights=imagenet --workdir=runs/tuned
  python train/main.py --mode=eval --data=folder:photos --model=out/best_160_int8.tflite

A recipe sets every flag that is not given: `digits`, `small` (a few thousand photos) or
`imagenet` (the paper's), by the kind of the data or by --recipe. Run the same command
again to continue an interrupted run, within its epoch too; SIGTERM saves it and ends
with the exit code 75. --workdir then holds best.keras (the moving average of the
weights at its best epoch), checkpoint.safetensors, metrics.jsonl, curves.png,
tensorboard/, config.json and labels.txt.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
# Three times faster training on a CPU; read once, when TensorFlow is loaded.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# tf.data and the training step are TensorFlow's, whatever Keras runs on elsewhere.
os.environ["KERAS_BACKEND"] = "tensorflow"

from absl import app, flags, logging

from train import flags as train_flags
from train.evaluation import evaluate_classifier, format_report, load_predictor
from train.loop import train_and_evaluate
from train.progress import PREEMPTED, Preempted
from train.sources import load_source
from train.tasks import CLASSIFICATION


def train(config, source) -> None:
    if flags.FLAGS.workdir is None:
        raise ValueError("Training takes a --workdir, the directory of the run.")
    save_seconds = 60 * flags.FLAGS.save_minutes
    train_and_evaluate(
        CLASSIFICATION, config, source, flags.FLAGS.workdir, save_seconds
    )


def evaluate(config, source) -> None:
    predictor = load_predictor(config, source)
    print(format_report(evaluate_classifier(predictor, source, config)))


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    try:
        config = train_flags.config_from_flags()
        source = load_source(config.data)
        logging.info(
            "%s: %s classes, %s",
            source.name,
            len(source.class_names),
            source.num_examples,
        )
        {"train": train, "eval": evaluate}[flags.FLAGS.mode](config, source)
    except Preempted as error:
        logging.info("%s", error)
        sys.exit(PREEMPTED)
    except (ValueError, OSError, FloatingPointError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    train_flags.define_flags()
    flags.adopt_module_key_flags(train_flags)  # so that --help shows them
    app.run(main)
