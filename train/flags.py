"""The flags of `train/main.py`: one per field of `TrainConfig`, and those of a run."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging

from train import config as train_config
from train.config import COMPUTATION, DATA, IMAGES, OPTIMIZATION, TrainConfig
from train.distribution import devices
from train.recipes import BY_MODEL, RECIPES
from train.tasks.registry import tasks_with_field

_OWN_FILES = (".keras", ".tflite")  # of a training run, with its config.json
_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
_DEFINE: dict[object, Callable] = {
    bool: flags.DEFINE_boolean,
    float: flags.DEFINE_float,
    float | None: flags.DEFINE_float,
    int: flags.DEFINE_integer,
    str: flags.DEFINE_string,
    tuple[int, ...]: flags.DEFINE_list,
}


def flag_groups(
    flag_values: flags.FlagValues = flags.FLAGS,
) -> dict[str, Callable[[], None]]:
    """Returns, by heading, the functions that define the flags of `--help`."""
    groups: dict[str, Callable[..., None]] = {
        "Data and model": _define_data_flags,
        "Image sizes and augmentation": functools.partial(_define_fields, IMAGES),
        "Optimization": functools.partial(_define_fields, OPTIMIZATION),
        "Run": _define_run_flags,
        "Devices": devices.define_flags,
    }
    return {
        heading: functools.partial(define, flag_values=flag_values)
        for heading, define in groups.items()
    }


def _define_data_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "mode",
        "train",
        ("train", "eval"),
        "train: train a model. eval: measure a file (--model=FILE.keras or "
        "FILE.tflite, or --weights) on the validation split, and print the metrics of "
        "the task, in total and per class.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "recipe",
        None,
        list(RECIPES),
        "Named set of values for all flags that are not given. By default, --task and "
        "the kind of --data choose it.",
        flag_values=flag_values,
    )
    _define_fields(DATA, flag_values)
    flags.DEFINE_boolean(
        "cache",
        False,
        "Read the files of folder:PATH once and keep them in memory, without decoding "
        "them. Helps with slow storage; Linux already caches local files.",
        flag_values=flag_values,
    )


def _define_run_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run, created if missing. Training needs it.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "save_minutes",
        10.0,
        "Minutes between checkpoints within an epoch. Each epoch ends with a "
        "checkpoint, too.",
        lower_bound=0.0,
        upper_bound=1e6,
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "deterministic",
        False,
        "Train with deterministic operations only, which are slower. A run that was "
        "interrupted then ends with the same weights as one that was not, bit for bit.",
        flag_values=flag_values,
    )
    _define_fields(COMPUTATION, flag_values)


def _define_fields(group: str, flag_values: flags.FlagValues) -> None:
    """Defines a flag for each field of a group."""
    for field in _FIELDS.values():
        if field.metadata["group"] == group:
            help_text = f"{field.metadata['help']} {_describe_default(field)}"
            define = _DEFINE[field.type]
            define(field.name, None, help_text, flag_values=flag_values)


def _describe_default(field: dataclasses.Field) -> str:
    """Describes the default of a field, and which recipes have another one."""
    by_value: dict[str, list[str]] = {}
    for recipe, values in RECIPES.items():
        value = values.get(field.name, field.default)
        if any(field.name in own for own in BY_MODEL.get(recipe, {}).values()):
            by_value.setdefault("by --model", []).append(recipe)
        elif value != field.default:
            by_value.setdefault(_as_text(value), []).append(recipe)
    others = [f"; {value} ({', '.join(names)})" for value, names in by_value.items()]
    return f"Default: {_as_text(field.default)}{''.join(others)}."


def _as_text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value or repr(value))


def read_training(path: str) -> dict:
    """Reads the `config.json` beside a model file, or else what its card says of it."""
    from keras_mobilevit.litert import read_card

    beside = Path(path).with_name(train_config.FILENAME)
    if train_config.is_config(beside):
        return dataclasses.asdict(train_config.load_config(beside, skip_unknown=True))
    card = read_card(path)
    known = {"eval_crop": "crop", "task": "task"}
    return {name: card[key] for name, key in known.items() if key in card}


def _warn_of_defaults(path: str, task: str, given: set[str]) -> None:
    """Warns if only the recipe says how a file is evaluated."""
    guessed = [
        f"--{name}"
        for name in ("eval_size", "eval_crop")
        if name not in given and task in tasks_with_field(name)
    ]
    if path.endswith(".keras") and guessed:
        logging.warning(
            "Training writes %s beside a model, but there is none beside %s, so the "
            "recipe sets %s. A model with a fixed input size keeps that size.",
            train_config.FILENAME,
            path,
            " and ".join(guessed),
        )


def _with_initial_rates(
    config: TrainConfig, workdir: str, given: set[str]
) -> TrainConfig:
    """Keeps the low learning rates of a run that is older than `warmup_learning_rate`.

    Recipes gave one rate for both ends then, and some give two now.
    """
    file = Path(workdir).expanduser() / train_config.FILENAME
    if not train_config.is_config(file):
        return config
    initial = train_config.load_config(file)
    if initial.warmup_learning_rate is not None:
        return config
    names = {"min_learning_rate", "warmup_learning_rate"} - given
    rates = {name: getattr(initial, name) for name in names}
    kept = dataclasses.replace(config, **rates)
    if kept != config:
        logging.info(
            "the warm-up starts and the cosine ends at %g, as when the run in %s began",
            initial.min_learning_rate,
            workdir,
        )
    return kept


def _given_fields(args: flags.FlagValues) -> dict:
    """Returns the fields of the configuration that the command line gives."""
    given = {name: args[name].value for name in _FIELDS if args[name].value is not None}
    if "sizes" in given:
        try:
            given["sizes"] = tuple(map(int, given["sizes"]))
        except ValueError as error:
            raise ValueError(
                f"--sizes takes integers, such as 128,160,192: {error}."
            ) from error
    model = given.get("model", "")
    is_file = model.endswith(_OWN_FILES) or model.startswith("hf://")
    if args.mode == "eval" and is_file:
        if "weights" in given:
            raise ValueError(f"{given['model']} has its own weights. Remove --weights.")
        given["weights"] = given.pop("model")
    return given


def config_from_flags(args: flags.FlagValues = flags.FLAGS) -> TrainConfig:
    """Makes the configuration that the flags describe.

    A model is evaluated as its training evaluated it: with --mode=eval, and without
    --recipe, the values of other flags come from the config.json beside the file, or
    from the file's card.
    """
    overrides = _given_fields(args)
    given = set(overrides)
    if args.mode == "eval":
        if overrides.get("weights"):
            overrides["weights"] = _local_file(overrides["weights"])
        weights = os.path.expanduser(overrides.get("weights", ""))
        _check_file(weights or overrides.get("model", ""))
        if not args.recipe and weights.endswith(_OWN_FILES):
            known = read_training(weights)
            if "eval_size" not in known:
                task = overrides.get("task", "classification")
                _warn_of_defaults(weights, task, given)
            overrides = {**known, **overrides}
    config = train_config.make_config(args.recipe or "", **overrides)
    if args.mode == "train" and args.workdir:
        config = _with_initial_rates(config, args.workdir, given)
    _refuse_other_tasks(config.task, given)
    _check_recipe(args.recipe, config.task)
    return config


def _local_file(weights: str) -> str:
    """Returns a path; of an address on the Hub, that of its cached copy."""
    from keras_mobilevit.weights.hub_repository import (  # loads Keras
        fetch_model,
        is_address,
    )

    return str(fetch_model(weights)) if is_address(weights) else weights


def _check_file(path: str) -> None:
    """Refuses files that cannot be evaluated, before the data is read."""
    if path.endswith(".mlpackage"):
        raise ValueError(
            f"{path} cannot be evaluated here. The card beside it, a .json file, has "
            "the metrics that tflite/convert.py measured."
        )
    if path.endswith(_OWN_FILES) and not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")


def _refuse_other_tasks(task: str, given: set[str]) -> None:
    for name in sorted(given):
        tasks = tasks_with_field(name)
        if task not in tasks:
            raise ValueError(
                f"--{name} is for {' and '.join(tasks)}, but the task is {task}. "
                f"Remove --{name}."
            )


def _check_recipe(recipe: str | None, task: str) -> None:
    if recipe is None:
        return
    expected = RECIPES[recipe].get("task", "classification")
    if expected != task:
        raise ValueError(
            f"--recipe={recipe} is for {expected}, but the task is {task}. Remove "
            f"--recipe, or give --task={expected}."
        )
