"""What is trained, as a value: the loop knows nothing of classes, boxes or masks."""

import dataclasses
from collections.abc import Callable


def _nothing(batch, outputs) -> dict:
    return {}


def _as_they_are(examples: dict) -> dict:
    return examples


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data, its loss and its metrics.

    Attributes:
        name: of the task.
        build_model: from a `TrainConfig` and a `train.data.source.Source` to a model of
            random weights that takes images of any size, values in [0, 255]; what is frozen is so.
        load_pretrained: sets what a model has in common with a file of weights: from
            the two.
        train_example: from an example of the source, a (height, width), a seed of two
            integers and a `TrainConfig` to a dict of tensors without a batch axis:
            `image`, uint8 `[height, width, 3]`, augmented, and the targets.
        eval_example: from an example, a (height, width) and the part of the image to
            see to the same dict, without augmentation.
        loss: from a `TrainConfig`, a batch and the model's outputs to the loss of each
            example, `[batch]`.
        metrics: from a batch and the model's outputs to `{name: [batch]}`; an
            evaluation reports their means.
        predictions: from a batch and the outputs to `{name: [batch, ...]}`, which an
            evaluation collects for `score`.
        unpad: from targets, or targets and predictions, of some examples in NumPy,
            `{name: [examples, ...]}`, to the same without what fills up a batch: what
            differs in length is then an array of arrays.
        count: from the names of the classes and some examples in NumPy, predictions
            and those targets that are strings, to `{name: counts}`, of which an
            evaluation keeps the sum over all examples instead of predictions: exact,
            and no more for more examples; `None` where there is nothing to count.
        score: from the names of the classes and the predictions of all that counts,
            `{name: [examples, ...]}` in NumPy, or else the sums of `count`, to more
            metrics.
        pictures: from the names of the classes, a batch and the model's outputs for it,
            in NumPy, to a list of uint8 `[height, width, 3]`, on which a person sees
            how good the outputs are; `None` where there is nothing to draw.
        report: from a `TrainConfig`, whose `weights` name a file, and a source to what
            `--mode=eval` prints of it.
        is_head: tells by a variable's path whether it belongs to the head.
        best_metric: the one whose maximum decides which weights are kept as the best.
    """

    name: str
    build_model: Callable
    load_pretrained: Callable
    train_example: Callable
    eval_example: Callable
    loss: Callable
    metrics: Callable
    report: Callable
    is_head: Callable[[str], bool]
    best_metric: str
    predictions: Callable = _nothing
    unpad: Callable = _as_they_are
    count: Callable | None = None
    score: Callable = _nothing
    pictures: Callable | None = None
