"""The value that describes a task; the loop knows no classes, boxes or masks."""

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
    # Takes a number of classes; returns a model for images of any size, with the
    # weights that `config.weights` names.
    build: Callable[[TrainConfig, int], keras.Model]
    # Takes LiteRT's details of a file's outputs, by name; returns the number of
    # classes, or `None` if only the file's card knows it. Raises a ValueError if the
    # outputs are not those of such a model.
    file_classes: Callable[[dict], int | None]
    # Takes a file's outputs, the side of the images and the file's card; returns
    # predictions as `Task.predictions` does.
    file_predictions: Callable[[dict[str, np.ndarray], int, dict], dict]
    # Takes a model; returns the function that replaces `Task.predictions`, for models
    # that end otherwise than the trained ones.
    keras_predictions: Callable[[keras.Model], Callable] | None = None
    # Raises a ValueError if the predictions cannot be scored on the source.
    check: Callable[[dict[str, np.ndarray], Source], None] = _accept


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its examples, its loss and its score.

    A batch is `{name: [batch, ...]}`: `image`, `weight` and the targets.
    """

    name: str  # key of the task in `train.tasks.registry.TASKS`
    # Returns a model with random weights for images of any size, values in [0, 255].
    build_model: Callable[[TrainConfig, Source], keras.Model]
    # Takes a model and a weights file; sets the weights that both have in common.
    load_pretrained: Callable
    # Takes a path, `layer/...`; tells whether that layer belongs to the head.
    is_head: Callable[[str], bool]
    # Takes an example of the source, a (height, width), a seed of two integers and a
    # `TrainConfig`; returns a dict of tensors without a batch axis: the augmented
    # `image`, uint8 `[height, width, 3]`, and the targets.
    train_example: Callable
    # Takes an example, a (height, width) and the fraction of the image to keep; returns
    # the same dict, without augmentation.
    eval_example: Callable
    # Takes a `TrainConfig`, a batch and the model's outputs; returns the loss of each
    # example, `[batch]`.
    loss: Callable
    # Takes a batch and the outputs; returns the loss that an evaluation reports,
    # `[batch]`.
    validation_loss: Callable
    # Takes the outputs and the side of the images; returns tensors
    # `{name: [batch, ...]}`.
    predictions: Callable
    # Takes class names, and predictions and targets of some examples, both
    # `{name: [examples, ...]}`, also targets of strings; returns what `score` needs.
    statistics: Callable[[Sequence[str], dict, dict], dict[str, np.ndarray]]
    # Whether the statistics of all batches and workers are summed. If not, they are
    # concatenated, and no target may be a string.
    summable: bool
    # Takes the class names and the statistics; returns `{metric: value}`.
    score: Callable[[Sequence[str], dict], dict[str, float]]
    best_metric: str  # the weights with its highest value are the best
    # Takes class names, metrics, statistics and the side of the images; returns the
    # text that `--mode=eval` prints.
    report: Callable[[Sequence[str], dict, dict, int], str]
    model_kind: ModelKind
    # Takes a training batch of one replica, a seed of two integers and a `TrainConfig`;
    # returns the batch with images that are mixed with each other, and the targets that
    # `loss` needs for them.
    mix: Callable | None = None
    # Takes class names, a batch and its outputs; returns a list of pictures, uint8
    # `[height, width, 3]`, that show targets and predictions.
    pictures: Callable | None = None
