"""The configuration of a training run, which a recipe fills in.

`keras_mobilevit` is imported where it is needed, since it loads Keras and `--help`
must not.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from absl import logging

from train.cli.networks import variant_names
from train.data.registry import describe_kinds, is_path_kind
from train.recipes import BY_MODEL, RECIPES, default_recipe
from train.tasks.registry import TASKS, describe_tasks

# Constants of `keras_mobilevit`, as a test asserts.
MIN_SIZE, CROP_FRACTION = 32, 256 / 288
MAX_SEED = 2**32 - 1  # the largest that keras.utils.set_random_seed takes
FILENAME = "config.json"
FREEZE = ("none", "backbone")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Fields of earlier versions: the default that they had, and what happened to them. A
# file that has one is still read. Whoever removes or renames a field adds it here.
RETIRED: dict[str, tuple[object, str]] = {
    "grow_epochs": (0, "every epoch uses all sizes"),
    "rotation": (0.0, "training images are not rotated"),
    "xla": (False, "XLA compiles the step on TPUs only"),
}
_CORE = {"data", "eval_size"}  # every configuration of this project has these keys
# Groups of fields in --help.
DATA, IMAGES = "data", "images"
OPTIMIZATION, COMPUTATION = "optimization", "computation"


def _field(default, group: str, help_text: str):
    metadata = {"group": group, "help": help_text}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that determines the result of a run; a field is a flag of main.py.

    The defaults are the published ImageNet recipe (paper, section 4.1 and appendix).
    Raises a ValueError if a value is out of range.
    """

    task: str = _field("classification", DATA, f"What to train: {describe_tasks()}.")
    data: str = _field("digits", DATA, f"What to train on. {describe_kinds()}")
    model: str = _field(
        "mobilevit_s",
        DATA,
        f"The backbone: one of {', '.join(variant_names())}.",
    )
    sizes: tuple[int, ...] = _field(
        (160, 192, 256, 288, 320),
        IMAGES,
        "Sides of the training images, in pixels. The size varies from step to step.",
    )
    base_size: int = _field(
        256, IMAGES, "The size at which a batch has --batch_size images."
    )
    batch_size: int = _field(
        1024,
        IMAGES,
        "Images per batch at --base_size, over all devices. At other sizes the number "
        "of pixels per batch stays the same.",
    )
    eval_size: int = _field(256, IMAGES, "Side of the images in evaluation, in pixels.")
    eval_crop: float = _field(
        CROP_FRACTION,
        IMAGES,
        "Fraction of the short side that the center crop of evaluation keeps, in "
        "(0, 1]. Classification only: detection and segmentation use the whole image.",
    )
    epochs: int = _field(300, OPTIMIZATION, "Passes over the training images.")
    accumulation_steps: int = _field(
        1,
        COMPUTATION,
        "Split each device's batch into this many parts, which run one after the "
        "other, to save memory. Batch normalization uses the statistics of each part.",
    )
    learning_rate: float = _field(0.002, OPTIMIZATION, "Peak of the learning rate.")
    min_learning_rate: float = _field(
        0.0002, OPTIMIZATION, "Learning rate at the end of the cosine schedule."
    )
    warmup_learning_rate: float | None = _field(
        None,
        OPTIMIZATION,
        "Learning rate at the start of the warm-up. None: the same as "
        "--min_learning_rate.",
    )
    learning_rate_batch: int = _field(
        0,
        OPTIMIZATION,
        "Batch size for which the learning rates are meant. For another --batch_size "
        "they are scaled in proportion. 0: not scaled.",
    )
    warmup_steps: int = _field(3000, OPTIMIZATION, "Steps of linear warm-up.")
    weight_decay: float = _field(0.01, OPTIMIZATION, "Weight decay of AdamW.")
    decay_norms: bool = _field(
        True,
        OPTIMIZATION,
        "Apply the weight decay to normalization and biases, too. They hardly overfit, "
        "so many recipes decay only the kernels.",
    )
    gradient_clip: float = _field(
        0.0,
        OPTIMIZATION,
        "Shorten gradients to this norm, all parameters together, so that a rare bad "
        "batch cannot spoil the weights. 0: leave them as they are.",
    )
    label_smoothing: float = _field(0.1, OPTIMIZATION, "Label smoothing, in [0, 1).")
    ema_momentum: float = _field(
        0.9995,
        OPTIMIZATION,
        "Momentum of the moving average of the weights, in [0, 1).",
    )
    crop_scale: float = _field(
        0.08,
        IMAGES,
        "Smallest fraction of an image's area that a random crop keeps, in (0, 1]. "
        "Segmentation also shrinks images down to this fraction, and pads them.",
    )
    flip: bool = _field(True, IMAGES, "Flip half of the training images horizontally.")
    color_jitter: bool = _field(
        False,
        IMAGES,
        "Change contrast, brightness, saturation and hue of training images at random. "
        "Detection and segmentation only.",
    )
    rand_augment: int = _field(
        0,
        IMAGES,
        "Number of operations of RandAugment for each training image, drawn from 14: "
        "shear, rotate, equalize, sharpen and others. 2 is usual; 0: none. "
        "Classification only.",
    )
    random_erasing: float = _field(
        0.0,
        IMAGES,
        "Probability that a rectangle of a training image turns black, so that the "
        "model looks at more than one part of an object. Classification only.",
    )
    mixup: float = _field(
        0.0,
        IMAGES,
        "MixUp blends each image of a batch, and its class, with another image. The "
        "shares come from a beta distribution with this parameter: 0.2 blends most "
        "images little, 1 by any share. 0: no MixUp. Half of the batches are mixed. "
        "Classification only.",
    )
    cutmix: float = _field(
        0.0,
        IMAGES,
        "CutMix pastes a rectangle of another image into each image of a batch; the "
        "classes count by their areas. The parameter is as for --mixup, and 1 is "
        "usual. With both, each mixed batch uses one of the two. Classification only.",
    )
    weights: str = _field(
        "",
        DATA,
        "Initial weights of the backbone: `imagenet` (as published), `imagenet22k` "
        "(as published, for one variant), a .keras, .safetensors or .pt file with any "
        "classes, or such a file on the Hugging Face Hub, `hf://owner/name`. Empty: "
        "random weights. With --mode=eval: the weights to evaluate.",
    )
    freeze: str = _field(
        "none",
        OPTIMIZATION,
        "backbone: train only the head. The backbone keeps the given --weights, and "
        "its batch normalization works as in inference. none: train everything.",
    )
    head_lr_multiplier: float = _field(
        1.0, OPTIMIZATION, "Multiplies the learning rate of the head."
    )
    output_stride: int = _field(
        16,
        DATA,
        "Image pixels per cell of the head's feature map, 8 or 16. Segmentation only.",
    )
    auxiliary_weight: float = _field(
        0.0,
        OPTIMIZATION,
        "Weight of the loss of an auxiliary head on stage 4. 0.4 is usual; 0: no "
        "auxiliary head. Segmentation only.",
    )
    precision: str = _field(
        "float32",
        COMPUTATION,
        "float32, mixed_bfloat16 (TPUs, recent GPUs) or mixed_float16 (older GPUs, "
        "with loss scaling). Weights, normalization, softmax, loss and evaluation "
        "always use float32.",
    )
    steps_per_execution: int = _field(
        1,
        COMPUTATION,
        "Training steps per call of the compiled function; they have one image size. "
        "More steps reduce the overhead on a TPU, but take longer to compile.",
    )
    seed: int = _field(
        0,
        COMPUTATION,
        "Seed of the initial weights, the order of the images, the sizes and the "
        "augmentation.",
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        object.__setattr__(self, "sizes", tuple(self.sizes))
        self._check_sizes()
        for name, (is_valid, expected) in _RANGES.items():
            if not is_valid(getattr(self, name)):
                raise ValueError(
                    f"`{name}` must be {expected}. Received: {getattr(self, name)!r}."
                )
        for name in ("min_learning_rate", "warmup_learning_rate"):
            if (getattr(self, name) or 0) > self.learning_rate:
                raise ValueError(
                    f"Expected `{name}` <= `learning_rate`. Received: "
                    f"{getattr(self, name)} and {self.learning_rate}."
                )
        _check_model(self.model)

    def _check_sizes(self) -> None:
        if not self.sizes:
            raise ValueError("`sizes` must name at least one size. Received none.")
        for size in (*self.sizes, self.base_size, self.eval_size):
            if not isinstance(size, int) or size < MIN_SIZE:
                raise ValueError(
                    "`sizes`, `base_size` and `eval_size` must be integers of at least "
                    f"{MIN_SIZE}. Received: {size!r}."
                )
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"`sizes` must differ. Received: {self.sizes}.")


def _one_of(names: Collection[str]) -> tuple[Callable[[str], bool], str]:
    return names.__contains__, f"one of: {', '.join(names)}"


_AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
_NOT_NEGATIVE = (lambda value: value is None or value >= 0, "at least 0")
_PART = (lambda value: 0 < value <= 1, "in (0, 1]")
_BELOW_1 = (lambda value: 0 <= value < 1, "in [0, 1)")
_RANGES = {
    "batch_size": _AT_LEAST_1,
    "accumulation_steps": _AT_LEAST_1,
    "steps_per_execution": _AT_LEAST_1,
    "epochs": _AT_LEAST_1,
    "warmup_steps": _NOT_NEGATIVE,
    "learning_rate_batch": _NOT_NEGATIVE,
    "min_learning_rate": _NOT_NEGATIVE,
    "warmup_learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "gradient_clip": _NOT_NEGATIVE,
    "rand_augment": _NOT_NEGATIVE,
    "random_erasing": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "mixup": _NOT_NEGATIVE,
    "cutmix": _NOT_NEGATIVE,
    "head_lr_multiplier": (lambda value: value > 0, "positive"),
    "auxiliary_weight": _NOT_NEGATIVE,
    "output_stride": (lambda value: value in (8, 16), "8 or 16"),
    "label_smoothing": _BELOW_1,
    "ema_momentum": _BELOW_1,
    "eval_crop": _PART,
    "crop_scale": _PART,
    "task": _one_of(TASKS),
    "freeze": _one_of(FREEZE),
    "precision": _one_of(PRECISIONS),
    "seed": (lambda value: 0 <= value <= MAX_SEED, f"in [0, {MAX_SEED}]"),
}


def _check_model(name: str) -> None:
    from keras_mobilevit.configs import get_variant  # loads Keras: comes last

    get_variant(name)


def _check_type(field: dataclasses.Field, value: object) -> None:
    """Refuses a value of another type, and a number that is not finite."""
    if field.name == "sizes":
        expected, is_valid = "a list of integers", isinstance(value, (tuple, list))
    elif field.default is None and value is None:
        return
    elif field.type in (float, float | None):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_valid = is_number and math.isfinite(float(str(value)))
        expected = "a finite number"
    else:
        is_valid = type(value) is field.type
        expected = f"of type {getattr(field.type, '__name__', field.type)}"
    if not is_valid:
        raise ValueError(f"`{field.name}` must be {expected}. Received: {value!r}.")


def make_config(recipe: str = "", **overrides) -> TrainConfig:
    """Makes a configuration from a recipe, by default the data's, and overrides.

    The overrides come before the values for the model, and these before the recipe's.
    """
    if not recipe:
        task = overrides.get("task", "classification")
        recipe = default_recipe(overrides.get("data", "digits"), task)
    if recipe not in RECIPES:
        raise ValueError(
            f"Unknown recipe {recipe!r}. Expected one of: {', '.join(RECIPES)}."
        )
    valid = [field.name for field in dataclasses.fields(TrainConfig)]
    if unknown := sorted(set(overrides) - set(valid)):
        raise ValueError(
            f"Unknown keys in the overrides: {', '.join(unknown)}. Valid: "
            f"{', '.join(valid)}."
        )
    # Absolute, so that the run continues from any working directory.
    kind, _, path = overrides.get("data", "").partition(":")
    if is_path_kind(kind) and path:
        overrides["data"] = f"{kind}:{_absolute(path)}"
    if overrides.get("weights") and _is_path(overrides["weights"]):
        overrides["weights"] = _absolute(overrides["weights"])
    if isinstance(overrides.get("model"), str):
        overrides["model"] = overrides["model"].lower()  # as `get_variant` takes it
    values = {**RECIPES[recipe], **overrides}
    by_model = BY_MODEL.get(recipe, {}).get(values.get("model", TrainConfig.model), {})
    return TrainConfig(**{**values, **by_model, **overrides})


def _is_path(weights: str) -> bool:
    from keras_mobilevit.weights.hub import PUBLISHED  # loads Keras
    from keras_mobilevit.weights.hub_repository import is_address

    return weights not in PUBLISHED and not is_address(weights)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def load_config(path: Path | str, skip_unknown: bool = False) -> TrainConfig:
    """Reads a file that this or an earlier version of `save_config` wrote.

    With `skip_unknown` only a warning names the keys that this version does not know.
    """
    values = _read_values(path)
    missing = sorted(_CORE - set(values))
    if missing:
        raise ValueError(
            f"{path} is not a training configuration: it has no "
            f"{' and no '.join(missing)}. Move it away, or restore what "
            "train/main.py wrote."
        )
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for name in sorted(set(values) & set(RETIRED)):
        default, reason = RETIRED[name]
        if values[name] != default:
            what = f"{path} sets {name} to {values[name]}"
            logging.warning("%s, which is no longer used: %s", what, reason)
    unknown = sorted(set(values) - known - set(RETIRED))
    if unknown and not skip_unknown:
        raise ValueError(
            f"Unknown keys in {path}: {', '.join(unknown)}. Valid keys: "
            f"{', '.join(sorted(known))}. If another version of train/ wrote the file, "
            "use that version; otherwise remove the keys."
        )
    if unknown:
        logging.warning(
            "%s has keys that this version does not know: %s. They are ignored.",
            path,
            ", ".join(unknown),
        )
    try:
        # Keys that later versions added have defaults that change nothing.
        return TrainConfig(**{key: values[key] for key in values if key in known})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def retired_value(path: Path | str, name: str) -> Any:
    """Returns the value of a field of `RETIRED` in a file."""
    return _read_values(path).get(name, RETIRED[name][0])


def _read_values(path: Path | str) -> dict:
    from keras_mobilevit.files import read_json

    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return values


def is_config(path: Path | str) -> bool:
    """Tells whether a file exists and is a training configuration of this project."""
    return Path(path).is_file() and set(_read_values(path)) >= _CORE


def save_config(config: TrainConfig, path: Path | str) -> None:
    """Writes a configuration as JSON, atomically."""
    from keras_mobilevit.files import atomic_write

    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
