"""The flags of `train/main.py`: one for each field of `TrainConfig`, and a few more."""

import dataclasses
import os
from pathlib import Path

from absl import flags, logging

from keras_mobilevit.litert import read_card
from train import config as train_config
from train.tasks.registry import tasks_with_field

MODES = ("train", "eval")
_OWN_FILES = (".keras", ".tflite")  # of a training run, with its config.json


def _defaults(name: str) -> str:
    values = {key: getattr(c, name) for key, c in train_config.RECIPES.items()}
    if len(set(values.values())) == 1:
        return f"Default: {values['imagenet']!r}."
    return "By recipe: " + ", ".join(f"{k} {v!r}" for k, v in values.items()) + "."


def define_flags() -> None:
    """Defines a flag for each configuration field, and those of a run beside it."""
    flags.DEFINE_enum(
        "mode",
        "train",
        MODES,
        "train; or eval, which measures a file (--model=FILE.keras or FILE.tflite, or "
        "--weights) on the validation split and prints top-1 and top-5, a "
        "detector's AP or a segmenter's mean IoU, and a line for each class.",
    )
    flags.DEFINE_string("workdir", None, "Directory of the run; made if missing.")
    flags.DEFINE_float(
        "save_minutes",
        10.0,
        "Between two checkpoints within an epoch; each epoch ends with one.",
        lower_bound=0.0,
        upper_bound=1e6,
    )
    flags.DEFINE_boolean(
        "cache",
        False,
        "Read the files of folder:PATH once and keep them in memory, still encoded: "
        "for storage that is slow. A Linux machine does so by itself for local disks.",
    )
    flags.DEFINE_boolean(
        "deterministic",
        False,
        "In training: only operations that give the same bits each time, so that a "
        "run which was interrupted ends with the weights of one that was not. Slower.",
    )
    flags.DEFINE_enum(
        "recipe", None, list(train_config.RECIPES), "Values of the flags not given."
    )
    define = {
        bool: flags.DEFINE_boolean,
        float: flags.DEFINE_float,
        float | None: flags.DEFINE_float,
        int: flags.DEFINE_integer,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(train_config.TrainConfig):
        help_text = f"{field.metadata['help']} {_defaults(field.name)}"
        if field.name == "sizes":
            flags.DEFINE_list(field.name, None, help_text)
        else:
            define[field.type](field.name, None, help_text)


def trained_as(weights: str) -> dict:
    """Returns how a file was trained and evaluated, as what lies beside it tells.

    Args:
        weights: path of a `.keras` or a `.tflite` file.

    Returns:
        All fields of the `config.json` of its training; without one, what its card has
        of them.
    """
    beside = Path(weights).with_name(train_config.FILENAME)
    if train_config.is_config(beside):
        return dataclasses.asdict(train_config.load_config(beside, skip_unknown=True))
    card = read_card(weights)
    known = {"eval_crop": "crop", "task": "task"}
    return {name: card[key] for name, key in known.items() if key in card}


def _warn_of_defaults(weights: str, task: str, given: set[str]) -> None:
    """Warns where nothing but the recipe tells how a file is to be evaluated."""
    guessed = [
        f"--{name}"
        for name in ("eval_size", "eval_crop")
        if name not in given and task in tasks_with_field(name)
    ]
    if weights.endswith(".keras") and guessed:
        logging.warning(
            "There is no %s of a training beside %s. %s: as in the recipe, unless the "
            "model has a fixed size.",
            train_config.FILENAME,
            weights,
            " and ".join(guessed),
        )


def _with_rates_as_begun(
    config: train_config.TrainConfig, workdir: str, given: set[str]
) -> train_config.TrainConfig:
    """Keeps the low learning rates of a run that is older than the second of them.

    Recipes gave one for both then, and some have two now.
    """
    file = Path(workdir).expanduser() / train_config.FILENAME
    if not train_config.has_one_low_rate(file):
        return config
    begun = train_config.load_config(file)
    names = {"min_learning_rate", "warmup_learning_rate"} - given
    rates = {name: getattr(begun, name) for name in names}
    kept = dataclasses.replace(config, **rates)
    if kept != config:
        logging.info(
            "the warm-up starts and the cosine ends at %g, as when the run in %s began",
            begun.min_learning_rate,
            workdir,
        )
    return kept


def config_from_flags() -> train_config.TrainConfig:
    """Makes the configuration of the flags that were given.

    In the mode eval what is not given, --recipe neither, comes from the config.json
    that a training run left beside the file, or from its card, so that a model is
    evaluated as its training evaluated it.

    Raises:
        ValueError: if a value is not valid.
    """
    args = flags.FLAGS
    overrides = {
        field.name: args[field.name].value
        for field in dataclasses.fields(train_config.TrainConfig)
        if args[field.name].value is not None
    }
    if "sizes" in overrides:
        try:
            overrides["sizes"] = tuple(map(int, overrides["sizes"]))
        except ValueError as error:
            raise ValueError(
                f"--sizes takes integers, such as 128,160,192: {error}."
            ) from error
    if args.mode == "eval" and overrides.get("model", "").endswith(_OWN_FILES):
        if "weights" in overrides:
            raise ValueError(
                f"{overrides['model']} has its own weights; remove --weights."
            )
        overrides["weights"] = overrides.pop("model")
    given = set(overrides)
    weights = os.path.expanduser(overrides.get("weights", ""))
    if args.mode == "eval":
        _refuse_no_file(weights or overrides.get("model", ""))
    if args.mode == "eval" and not args.recipe and weights.endswith(_OWN_FILES):
        known = trained_as(weights)
        if "eval_size" not in known:
            task = overrides.get("task", "classification")
            _warn_of_defaults(weights, task, given)
        overrides = {**known, **overrides}
    config = train_config.make_config(args.recipe or "", **overrides)
    if args.mode == "train" and args.workdir:
        config = _with_rates_as_begun(config, args.workdir, given)
    _refuse_other_tasks(config.task, given)
    meant = train_config.RECIPES[args.recipe].task if args.recipe else config.task
    if meant != config.task:
        raise ValueError(
            f"--recipe={args.recipe} is for {meant}; this is {config.task}. Leave it "
            "away, or add --task."
        )
    return config


def _refuse_no_file(path: str) -> None:
    """Refuses files that cannot be evaluated, before the data is blamed for it."""
    if path.endswith(".mlpackage"):
        raise ValueError(
            f"{path} cannot be evaluated here: its card, the .json beside it, has what "
            "tflite/convert.py measured."
        )
    if path.endswith(_OWN_FILES) and not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")


def _refuse_other_tasks(task: str, given: set[str]) -> None:
    for field in dataclasses.fields(train_config.TrainConfig):
        tasks = tasks_with_field(field.name)
        if field.name in given and task not in tasks:
            raise ValueError(
                f"--{field.name} is for {' and '.join(tasks)}; this is {task}. Leave "
                "it away."
            )
