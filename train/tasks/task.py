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
    """The models of a task, as `--mode=eval` reads them from files.

    Attributes:
        noun: the word for such a model.
        published: name of the published weights.
        batch_size: images that are evaluated at once; they must fit in memory.
        is_one: tells whether a Keras model is of this kind.
        num_classes: from a Keras model to its number of classes.
        build: from a `TrainConfig` and a number of classes to a Keras model for images
            of any size, with the weights that `config.weights` names.
        file_classes: from LiteRT's details of a file's outputs, by name, to the number
            of classes, or `None` where only the file's card knows it; raises a
            ValueError if the outputs are not those of such a model.
        file_predictions: from a file's outputs, `{name: [batch, ...]}`, and the side of
            the images to the predictions, as `Task.predictions` returns them.
        keras_predictions: from a Keras model to the function that is used in place of
            `Task.predictions`, for models that end otherwise than the trained ones.
        check: raises a ValueError if the predictions, in NumPy, cannot be scored on
            the source.
    """

    noun: str
    published: str
    batch_size: int
    is_one: Callable[[keras.Model], bool]
    num_classes: Callable[[keras.Model], int]
    build: Callable[[TrainConfig, int], keras.Model]
    file_classes: Callable[[dict], int | None]
    file_predictions: Callable[[dict[str, np.ndarray], int], dict]
    keras_predictions: Callable[[keras.Model], Callable] | None = None
    check: Callable[[dict[str, np.ndarray], Source], None] = _accept


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its examples, its loss and its score.

    Attributes:
        name: key of the task in `train.tasks.registry.TASKS`.
        build_model: from a `TrainConfig` and a `Source` to a model with random weights
            that takes images of any size, values in [0, 255].
        load_pretrained: from a model and a weights file; sets the weights that both
            have in common.
        is_head: from a path, `layer/...`, to whether that layer belongs to the head.
        train_example: from an example of the source, a (height, width), a seed of two
            integers and a `TrainConfig` to a dict of tensors without a batch axis:
            `image`, uint8 `[height, width, 3]`, augmented, and the targets.
        eval_example: from an example, a (height, width) and the fraction of the image
            to keep to the same dict, without augmentation.
        loss: from a `TrainConfig`, a batch and the model's outputs to the training
            loss of each example, `[batch]`.
        validation_loss: from a batch and the outputs to the loss that an evaluation
            reports, `[batch]`.
        predictions: from the outputs and the side of the images to tensors with what
            the model found, `{name: [batch, ...]}`.
        statistics: from the class names, the predictions and the targets of some
            examples, both `{name: [examples, ...]}` in NumPy, to the arrays that
            `score` needs. Targets that are strings are included.
        summable: whether the statistics of all batches and workers are summed. If
            not, they are concatenated, and no target may be a string.
        score: from the class names and the statistics to `{metric: value}`.
        best_metric: the metric whose maximum decides which weights are the best.
        report: from the class names, the metrics, the statistics and the side of the
            images to the text that `--mode=eval` prints.
        model_kind: the models of this task, as `--mode=eval` reads them.
        pictures: from the class names, a batch and the model's outputs for it, in
            NumPy, to a list of uint8 `[height, width, 3]` that show targets and
            predictions; `None` if the task has no pictures.
    """

    name: str
    build_model: Callable[[TrainConfig, Source], keras.Model]
    load_pretrained: Callable
    is_head: Callable[[str], bool]
    train_example: Callable
    eval_example: Callable
    loss: Callable
    validation_loss: Callable
    predictions: Callable
    statistics: Callable[[Sequence[str], dict, dict], dict[str, np.ndarray]]
    summable: bool
    score: Callable[[Sequence[str], dict], dict[str, float]]
    best_metric: str
    report: Callable[[Sequence[str], dict, dict, int], str]
    model_kind: ModelKind
    pictures: Callable | None = None
