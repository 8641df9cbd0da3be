"""The configuration of a training run, which a recipe fills in.

`keras_mobilevit` is imported where it is needed, since it loads Keras and `--help`
must not.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

from absl import logging

from train.data.registry import describe_kinds, is_path_kind
from train.recipes import RECIPES, default_recipe
from train.tasks.registry import TASKS, describe_tasks

# Those of `keras_mobilevit`, as a test asserts.
MIN_SIZE, CROP_FRACTION = 32, 256 / 288
MAX_SEED = 2**32 - 1  # what keras.utils.set_random_seed takes
FILENAME = "config.json"
FREEZE = ("none", "backbone")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Keys of earlier versions, and what became of them: a configuration that has one is
# still read. Whoever removes or renames a field adds it here.
RETIRED: dict[str, str] = {}
_CORE = {"data", "eval_size"}  # by which a configuration of this project's is known


# Groups of fields, as `--help` shows them.
DATA, IMAGES, OPTIMIZATION, COMPUTATION = (
    "data",
    "images",
    "optimization",
    "computation",
)


def _field(default, group: str, help_text: str):
    metadata = {"group": group, "help": help_text}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run. Each field is a flag of `train/main.py`.

    The defaults are the published ImageNet recipe (paper, section 4.1 and appendix).

    Raises:
        ValueError: on construction, if a value is out of range; the message names the
            field, what was expected and what came.
    """

    task: str = _field("classification", DATA, f"What to train: {describe_tasks()}.")
    data: str = _field("digits", DATA, f"What to train on. {describe_kinds()}")
    model: str = _field(
        "mobilevit_s", DATA, "mobilevit_xxs, mobilevit_xs or mobilevit_s; the backbone."
    )
    sizes: tuple[int, ...] = _field(
        (160, 192, 256, 288, 320),
        IMAGES,
        "Image sides in pixels, drawn in turn from step to step.",
    )
    base_size: int = _field(
        256, IMAGES, "Side at which the batch has `batch_size` images."
    )
    batch_size: int = _field(
        1024,
        IMAGES,
        "Images in a batch at `base_size`, over all devices; at another size as many "
        "as have the same number of pixels.",
    )
    eval_size: int = _field(256, IMAGES, "Side of the images at evaluation.")
    eval_crop: float = _field(
        CROP_FRACTION,
        IMAGES,
        "Part of the image's short side that evaluation sees, in (0, 1]; detection and "
        "segmentation always see the whole image.",
    )
    grow_epochs: int = _field(
        0,
        IMAGES,
        "Start with the smallest size and let the range grow over so many epochs.",
    )
    epochs: int = _field(300, OPTIMIZATION, "Passes over the training images.")
    accumulation_steps: int = _field(
        1,
        COMPUTATION,
        "Parts in which one device passes through a batch, to need less memory; batch "
        "normalization takes its statistics from each part.",
    )
    learning_rate: float = _field(0.002, OPTIMIZATION, "Peak of the learning rate.")
    min_learning_rate: float = _field(0.0002, OPTIMIZATION, "Where the cosine ends.")
    warmup_learning_rate: float | None = _field(
        None, OPTIMIZATION, "Where the warm-up starts; None is where the cosine ends."
    )
    learning_rate_batch: int = _field(
        0,
        OPTIMIZATION,
        "The batch, over all devices, that the learning rates are meant for: for "
        "another --batch_size they are scaled in proportion. 0 takes them as they are.",
    )
    warmup_steps: int = _field(3000, OPTIMIZATION, "Steps of linear warm-up.")
    weight_decay: float = _field(
        0.01, OPTIMIZATION, "AdamW's weight decay, of every parameter."
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
        "Smallest part of an image's area that a random crop keeps, in (0, 1]. "
        "Segmentation also shrinks the image by as much, and fills up what is missing.",
    )
    flip: bool = _field(True, IMAGES, "Mirror half of the training images.")
    color_jitter: bool = _field(
        False,
        IMAGES,
        "Change contrast, brightness, saturation and hue of training images at random; "
        "not in classification.",
    )
    rotation: float = _field(
        0.0,
        IMAGES,
        "Largest angle, in degrees, by which a training image is turned at random, in "
        "[0, 180]; segmentation only.",
    )
    weights: str = _field(
        "",
        DATA,
        "Start from the backbone of `imagenet` (the published weights) or of this "
        ".keras, .safetensors or .pt file, whatever its classes. With --mode=eval: "
        "what to evaluate.",
    )
    freeze: str = _field(
        "none",
        OPTIMIZATION,
        "`backbone` trains the head alone, with the backbone's batch normalization as "
        "in inference, and takes --weights; `none` trains everything.",
    )
    head_lr_multiplier: float = _field(
        1.0, OPTIMIZATION, "Learning rate of the head, as a multiple of the others'."
    )
    output_stride: int = _field(
        16,
        DATA,
        "Pixels of the image to one of the head's map, 8 or 16; segmentation only.",
    )
    auxiliary_weight: float = _field(
        0.0,
        OPTIMIZATION,
        "Weight of the loss of a second head, on stage 4, that helps training; 0.4 is "
        "usual, 0 is without. Segmentation only.",
    )
    precision: str = _field(
        "float32",
        COMPUTATION,
        "What layers compute in: float32, mixed_bfloat16 (TPUs, recent GPUs) or "
        "mixed_float16 (older GPUs, with a loss scale). Weights, norms, softmax and "
        "loss stay float32, and so does the evaluation.",
    )
    xla: bool = _field(
        False,
        COMPUTATION,
        "Compile the step of one device with XLA, once for each size. TPUs always do. "
        "On a CPU it is slower; on GPUs it was not measured.",
    )
    steps_per_execution: int = _field(
        1,
        COMPUTATION,
        "Steps of one size that follow each other in one call; more hide the time "
        "between calls on a TPU, and take longer to compile.",
    )
    seed: int = _field(
        0, COMPUTATION, "Of initialization, order, sizes and augmentation."
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


_AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
_NOT_NEGATIVE = (lambda value: value is None or value >= 0, "at least 0")
_PART = (lambda value: 0 < value <= 1, "in (0, 1]")
_BELOW_1 = (lambda value: 0 <= value < 1, "in [0, 1)")
_RANGES = {
    "batch_size": _AT_LEAST_1,
    "accumulation_steps": _AT_LEAST_1,
    "steps_per_execution": _AT_LEAST_1,
    "epochs": _AT_LEAST_1,
    "grow_epochs": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "learning_rate_batch": _NOT_NEGATIVE,
    "min_learning_rate": _NOT_NEGATIVE,
    "warmup_learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "head_lr_multiplier": (lambda value: value > 0, "positive"),
    "auxiliary_weight": _NOT_NEGATIVE,
    "output_stride": (lambda value: value in (8, 16), "8 or 16"),
    "rotation": (lambda value: 0 <= value <= 180, "in [0, 180]"),
    "label_smoothing": _BELOW_1,
    "ema_momentum": _BELOW_1,
    "eval_crop": _PART,
    "crop_scale": _PART,
    "task": (lambda value: value in TASKS, f"one of: {', '.join(TASKS)}"),
    "freeze": (lambda value: value in FREEZE, f"one of: {', '.join(FREEZE)}"),
    "precision": (
        lambda value: value in PRECISIONS,
        f"one of: {', '.join(PRECISIONS)}",
    ),
    "seed": (lambda value: 0 <= value <= MAX_SEED, f"in [0, {MAX_SEED}]"),
}


def _check_model(name: str) -> None:
    from keras_mobilevit.configs import get_variant  # loads Keras: comes last

    get_variant(name)


def _check_type(field, value) -> None:
    """Refuses a value of another type, or a number that is not finite."""
    if field.name == "sizes":
        expected, is_valid = "a list of integers", isinstance(value, (tuple, list))
    elif field.default is None and value is None:
        return
    elif field.type in (float, float | None):
        is_valid = type(value) in (int, float) and math.isfinite(value)
        expected = "a finite number"
    else:
        expected, is_valid = f"of type {field.type.__name__}", type(value) is field.type
    if not is_valid:
        raise ValueError(f"`{field.name}` must be {expected}. Received: {value!r}.")


def make_config(recipe: str = "", **overrides) -> TrainConfig:
    """Makes a configuration from a recipe and what is to be different.

    Args:
        recipe: a key of `train.recipes.RECIPES`; by default the one for `data`.
        **overrides: fields of `TrainConfig`; relative paths are made absolute.

    Returns:
        The `TrainConfig`.

    Raises:
        ValueError: for an unknown recipe or field (the message lists the valid ones),
            or a value that is out of range.

    Example:
    >>> make_config(data="folder:photos", epochs=10).sizes
    (128, 160, 192)
    """
    if not recipe:
        task = overrides.get("task", "classification")
        recipe = default_recipe(overrides.get("data", "digits"), task)
    if recipe not in RECIPES:
        raise ValueError(
            f"Unknown recipe {recipe!r}. Expected one of: {', '.join(RECIPES)}."
        )
    _refuse_unknown(overrides, "the overrides")
    # A run is continued, and its data found again, from any folder.
    kind, _, path = overrides.get("data", "").partition(":")
    if is_path_kind(kind) and path:
        overrides["data"] = f"{kind}:{_absolute(path)}"
    if overrides.get("weights") not in (None, "", "imagenet", "coco", "voc"):
        overrides["weights"] = _absolute(overrides["weights"])
    return TrainConfig(**{**RECIPES[recipe], **overrides})


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _refuse_unknown(values: dict, where: str) -> None:
    valid = [field.name for field in dataclasses.fields(TrainConfig)]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise ValueError(
            f"Unknown keys in {where}: {', '.join(unknown)}. "
            f"Valid keys: {', '.join(valid)}."
        )


def load_config(path, skip_unknown: bool = False) -> TrainConfig:
    """Reads a configuration that `save_config` wrote, in this version or another.

    Args:
        path: of the file.
        skip_unknown: whether the others are used where this version does not know some
            keys, which a warning names.

    Returns:
        The `TrainConfig`.

    Raises:
        ValueError: if the file is no configuration of a training, or a value is not
            valid, or keys are unknown and not skipped; the message names the file.
        FileNotFoundError: if there is no file.
    """
    values = _read_values(path)
    missing = sorted(_CORE - set(values))
    if missing:
        raise ValueError(
            f"{path} is no configuration of a training: it has no "
            f"{' and no '.join(missing)}. Move it away, or restore what "
            "train/main.py wrote."
        )
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for name in sorted(set(values) & set(RETIRED)):
        logging.info("%s: %s is not used any more: %s", path, name, RETIRED[name])
    unknown = sorted(set(values) - known - set(RETIRED))
    if unknown and not skip_unknown:
        raise ValueError(
            f"Unknown keys in {path}: {', '.join(unknown)}. Valid keys: "
            f"{', '.join(sorted(known))}. Another version of train/ wrote it, or "
            "somebody changed it: use that version, or remove the keys if they mean "
            "nothing."
        )
    if unknown:
        logging.warning(
            "%s has keys that this version does not know: %s. They are not used; all "
            "others are.",
            path,
            ", ".join(unknown),
        )
    try:
        # A key that is missing came later, with a default that changes nothing.
        return TrainConfig(**{key: values[key] for key in values if key in known})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_values(path) -> dict:
    from keras_mobilevit.files import read_text

    try:
        values = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return values


def is_config(path) -> bool:
    """Tells whether there is a configuration of this project's, and no other's.

    Raises:
        ValueError: if the file is no JSON object, so that nobody can tell.
    """
    return Path(path).is_file() and set(_read_values(path)) >= _CORE


def has_one_low_rate(path) -> bool:
    """Tells whether the warm-up of a run starts at its `min_learning_rate`.

    So it is in runs that are older than `warmup_learning_rate`.
    """
    return is_config(path) and _read_values(path).get("warmup_learning_rate") is None


def save_config(config: TrainConfig, path) -> None:
    """Writes a configuration as JSON, whole or not at all."""
    from keras_mobilevit.files import atomic_write

    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
