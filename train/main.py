"""Trains MobileViT on images of any source, at many resolutions at once.

Examples:

  python train/main.py --data=digits --workdir=runs/digits
  python train/main.py --data=folder:photos --model=mobilevit_xxs --workdir=runs/photos
  python train/main.py --data=tfds:imagenet2012 --model=mobilevit_s --workdir=runs/s

A recipe sets every flag that is not given: `digits`, `small` (a few thousand photos) or
`imagenet` (the paper's), by the kind of the data or by --recipe. Run the same command
again to continue an interrupted run. --workdir then holds best.keras (the moving
average of the weights at its best epoch), checkpoint.safetensors, metrics.jsonl,
curves.png, tensorboard/, config.json and labels.txt.
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

import dataclasses

from absl import app, flags, logging

from train import config as train_config
from train.loop import train_and_evaluate
from train.sources import load_source
from train.tasks import CLASSIFICATION


def _defaults(name: str) -> str:
    values = {key: getattr(c, name) for key, c in train_config.RECIPES.items()}
    if len(set(values.values())) == 1:
        return f"Default: {values['imagenet']!r}."
    return "By recipe: " + ", ".join(f"{k} {v!r}" for k, v in values.items()) + "."


def define_flags() -> None:
    """Defines --workdir, --recipe, and a flag for each field of `TrainConfig`."""
    flags.DEFINE_string("workdir", None, "Directory of the run; made if missing.")
    flags.DEFINE_enum(
        "recipe", None, list(train_config.RECIPES), "Values of the flags not given."
    )
    define = {
        bool: flags.DEFINE_boolean,
        float: flags.DEFINE_float,
        int: flags.DEFINE_integer,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(train_config.TrainConfig):
        help_text = f"{field.metadata['help']} {_defaults(field.name)}"
        if field.name == "sizes":
            flags.DEFINE_list(field.name, None, help_text)
        else:
            define[field.type](field.name, None, help_text)
    flags.mark_flag_as_required("workdir")


def config_from_flags() -> train_config.TrainConfig:
    """Makes the configuration of the flags that were given."""
    overrides = {
        field.name: flags.FLAGS[field.name].value
        for field in dataclasses.fields(train_config.TrainConfig)
        if flags.FLAGS[field.name].value is not None
    }
    if "sizes" in overrides:
        try:
            overrides["sizes"] = tuple(map(int, overrides["sizes"]))
        except ValueError as error:
            raise ValueError(
                f"--sizes takes integers, such as 128,160,192: {error}."
            ) from error
    return train_config.make_config(flags.FLAGS.recipe or "", **overrides)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    try:
        config = config_from_flags()
        source = load_source(config.data)
        logging.info(
            "%s: %s classes, %s",
            source.name,
            len(source.class_names),
            source.num_examples,
        )
        train_and_evaluate(CLASSIFICATION, config, source, flags.FLAGS.workdir)
    except (ValueError, OSError, FloatingPointError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    define_flags()
    app.run(main)
