"""The configuration of a training run, and the recipes that fill it in."""

import dataclasses
import json
import math
import os
from pathlib import Path

from keras_mobilevit.configs import get_config

MIN_SIZE = 32
MAX_SEED = 2**32 - 1  # what keras.utils.set_random_seed takes
FREEZE = ("none", "backbone")


def _field(default, help_text: str):
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run. Each field is a flag of `train/main.py`.

    The defaults are the published ImageNet recipe (paper, section 4.1 and appendix).

    Raises:
        ValueError: on construction, if a value is out of range; the message names the
            field, what was expected and what came.
    """

    data: str = _field(
        "digits",
        "What to train on: `digits` (scikit-learn's handwritten digits, no download), "
        "`folder:PATH` (PATH/train/<class>/* and PATH/validation/<class>/*), or "
        "`tfds:NAME` (TensorFlow Datasets).",
    )
    model: str = _field("mobilevit_s", "mobilevit_xxs, mobilevit_xs or mobilevit_s.")
    sizes: tuple[int, ...] = _field(
        (160, 192, 256, 288, 320),
        "Image sides in pixels, drawn in turn from step to step.",
    )
    base_size: int = _field(256, "Side at which the batch has `batch_size` images.")
    batch_size: int = _field(
        1024,
        "Images in a batch at `base_size`; at another size as many as have the same "
        "number of pixels.",
    )
    eval_size: int = _field(256, "Side of the images at evaluation.")
    eval_crop: float = _field(
        256 / 288, "Part of the image's short side that evaluation sees, in (0, 1]."
    )
    grow_epochs: int = _field(
        0, "Start with the smallest size and let the range grow over so many epochs."
    )
    epochs: int = _field(300, "Passes over the training images.")
    learning_rate: float = _field(0.002, "Peak of the learning rate.")
    min_learning_rate: float = _field(0.0002, "Where warm-up starts and cosine ends.")
    warmup_steps: int = _field(3000, "Steps of linear warm-up.")
    weight_decay: float = _field(0.01, "AdamW's weight decay, of every parameter.")
    label_smoothing: float = _field(0.1, "Label smoothing, in [0, 1).")
    ema_momentum: float = _field(
        0.9995, "Momentum of the moving average of the weights, in [0, 1)."
    )
    crop_scale: float = _field(
        0.08, "Smallest part of an image's area that a random crop keeps, in (0, 1]."
    )
    flip: bool = _field(True, "Mirror half of the training images.")
    weights: str = _field(
        "",
        "Start from the backbone of this .keras or .safetensors file.",
    )
    freeze: str = _field(
        "none", "`backbone` trains the classifier alone; `none` trains everything."
    )
    seed: int = _field(0, "Of initialization, order, sizes and augmentation.")

    def __post_init__(self):
        self._check_types()
        object.__setattr__(self, "sizes", tuple(self.sizes))
        get_config(self.model)
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
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1. Received: {getattr(self, name)}."
                )
        for name in ("grow_epochs", "warmup_steps", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"`{name}` must not be negative. Received: {getattr(self, name)}."
                )
        for name in ("label_smoothing", "ema_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be in [0, 1). Received: {getattr(self, name)}."
                )
        for name in ("eval_crop", "crop_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"`{name}` must be in (0, 1]. Received: {getattr(self, name)}."
                )
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                "Expected 0 <= `min_learning_rate` <= `learning_rate`. Received: "
                f"{self.min_learning_rate} and {self.learning_rate}."
            )
        if self.freeze not in FREEZE:
            raise ValueError(
                f"`freeze` must be one of: {', '.join(FREEZE)}. "
                f"Received: {self.freeze!r}."
            )
        if self.seed > MAX_SEED:
            raise ValueError(
                f"`seed` must be at most {MAX_SEED}. Received: {self.seed}."
            )
        if self.weights and not os.path.isfile(self.weights):
            raise ValueError(
                f"`weights` must be an existing file. Received: {self.weights!r}."
            )

    def _check_types(self) -> None:
        """Refuses values of another type, and numbers that are not finite."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "sizes":
                is_valid = isinstance(value, (tuple, list))
            elif field.type is float:
                is_valid = type(value) in (int, float) and math.isfinite(value)
            else:
                is_valid = type(value) is field.type
            if not is_valid:
                kind = getattr(field.type, "__name__", str(field.type))
                raise ValueError(
                    f"`{field.name}` must be of type {kind}, and finite. "
                    f"Received: {value!r}."
                )


# The defaults above for ImageNet; what is different for less data.
RECIPES = {
    "imagenet": TrainConfig(data="tfds:imagenet2012"),
    # A few thousand photographs. Measured: 72.4 % top-1 on 10 classes of clothing (3068
    # images) from scratch with mobilevit_xxs; see README.md.
    "small": TrainConfig(
        data="folder:",
        model="mobilevit_xxs",
        sizes=(128, 160, 192),
        base_size=160,
        batch_size=64,
        eval_size=160,
        epochs=30,
        warmup_steps=240,
    ),
    # 1,437 scans of 8x8 pixels. They are centred, fill the frame and must not be
    # mirrored.
    "digits": TrainConfig(
        data="digits",
        model="mobilevit_xxs",
        sizes=(32, 48, 64),
        base_size=48,
        batch_size=64,
        eval_size=48,
        eval_crop=1.0,
        epochs=30,
        warmup_steps=100,
        crop_scale=0.5,
        flip=False,
    ),
}


def default_recipe(data: str) -> str:
    """Names the recipe for a data source: by its kind.

    Raises:
        ValueError: if there is no such kind; the message lists the valid ones.
    """
    recipes = {"digits": "digits", "folder": "small", "tfds": "imagenet"}
    kind = data.partition(":")[0]
    if kind not in recipes:
        raise ValueError(
            f"Unknown data {data!r}. Expected `digits`, `folder:PATH` or `tfds:NAME`."
        )
    return recipes[kind]


def make_config(recipe: str = "", **overrides) -> TrainConfig:
    """Makes a configuration from a recipe and what is to be different.

    Args:
        recipe: a key of `RECIPES`; by default the one for `data`.
        **overrides: fields of `TrainConfig`.

    Returns:
        The `TrainConfig`.

    Raises:
        ValueError: for an unknown recipe or field (the message lists the valid ones),
            or a value that is out of range.

    Example:

    >>> make_config(data="folder:photos", epochs=10).sizes
    (128, 160, 192)
    """
    recipe = recipe or default_recipe(overrides.get("data", "digits"))
    if recipe not in RECIPES:
        raise ValueError(
            f"Unknown recipe {recipe!r}. Expected one of: {', '.join(RECIPES)}."
        )
    _refuse_unknown(overrides, "the overrides")
    return dataclasses.replace(RECIPES[recipe], **overrides)


def _refuse_unknown(values: dict, where: str) -> None:
    valid = [field.name for field in dataclasses.fields(TrainConfig)]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise ValueError(
            f"Unknown keys in {where}: {', '.join(unknown)}. "
            f"Valid keys: {', '.join(valid)}."
        )


def load_config(path) -> TrainConfig:
    """Reads a configuration that `save_config` wrote.

    Raises:
        ValueError: if the file is no JSON object, or has unknown or missing keys.
        FileNotFoundError: if there is no file.
    """
    try:
        values = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    _refuse_unknown(values, str(path))
    valid = [field.name for field in dataclasses.fields(TrainConfig)]
    missing = [name for name in valid if name not in values]
    if missing:
        raise ValueError(f"{path} lacks the keys: {', '.join(missing)}.")
    return TrainConfig(**values)


def save_config(config: TrainConfig, path) -> None:
    """Writes a configuration as JSON, whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    os.replace(temporary, path)
