"""What is trained, as a value: the loop knows nothing of classes, boxes or masks."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

from train.config import TrainConfig
from train.data.source import Source


def _accept(predictions: dict[str, np.ndarray], source: Source) -> None:
    """Accepts any predictions."""


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """The models of a task, as `--mode=eval` reads them from files."""

    noun: str  # the word for such a model
    published: str  # name of the published weights
    batch_size: int  # images that are evaluated at once; they must fit in memory
    is_one: Callable[[keras.Model], bool]
    num_classes: Callable[[keras.Model], int]
    # From a number of classes to a model for images of any size, with the weights that
    # `config.weights` names.
    build: Callable[[TrainConfig, int], keras.Model]
    # From LiteRT's details of a file's outputs, by name, to the number of classes, or
    # `None` where only the file's card knows it. Raises a ValueError if the outputs are
    # not those of such a model.
    file_classes: Callable[[dict], int | None]
    # From a file's outputs and the side of the images to `Task.predictions`.
    file_predictions: Callable[[dict[str, np.ndarray], int], dict]
    # Makes the function that is used in place of `Task.predictions`, for models that
    # end otherwise than the trained ones.
    keras_predictions: Callable[[keras.Model], Callable] | None = None
    # Raises a ValueError if the predictions cannot be scored on the source.
    check: Callable[[dict[str, np.ndarray], Source], None] = _accept


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its examples, its loss and its score.

    A batch is `{name: [batch, ...]}`: `image`, `weight` and the targets.
    """

    name: str  # key of the task in `train.tasks.registry.TASKS`
    # Random weights; takes images of any size, values in [0, 255].
    build_model: Callable[[TrainConfig, Source], keras.Model]
    # From a model and a weights file; sets the weights that both have in common.
    load_pretrained: Callable
    # From a path, `layer/...`, to whether that layer belongs to the head.
    is_head: Callable[[str], bool]
    # From an example of the source, a (height, width), a seed of two integers and a
    # `TrainConfig` to a dict of tensors without a batch axis: `image`, uint8
    # `[height, width, 3]`, augmented, and the targets.
    train_example: Callable
    # From an example, a (height, width) and the fraction of the image to keep to the
    # same dict, without augmentation.
    eval_example: Callable
    # From a `TrainConfig`, a batch and the model's outputs to the loss of each example.
    loss: Callable
    # From a batch and the outputs to the loss that an evaluation reports, `[batch]`.
    validation_loss: Callable
    # From the outputs and the side of the images to tensors `{name: [batch, ...]}`.
    predictions: Callable
    # From class names, predictions and targets of some examples, both
    # `{name: [examples, ...]}`, to what `score` needs. Includes targets of strings.
    statistics: Callable[[Sequence[str], dict, dict], dict[str, np.ndarray]]
    # Whether the statistics of all batches and workers are summed. If not, they are
    # concatenated, and no target may be a string.
    summable: bool
    # From the class names and the statistics to `{metric: value}`.
    score: Callable[[Sequence[str], dict], dict[str, float]]
    best_metric: str  # the one whose maximum decides which weights are the best
    # From class names, metrics, statistics and side of the images to the text that
    # `--mode=eval` prints.
    report: Callable[[Sequence[str], dict, dict, int], str]
    model_kind: ModelKind
    # From class names, a batch and the outputs for it to a list of uint8
    # `[height, width, 3]` that show targets and predictions.
    pictures: Callable | None = None
