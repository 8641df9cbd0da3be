"""Classification as a task: which of the classes an image shows."""

import functools

import tensorflow as tf

from keras_mobilevit.cross_entropy import smoothed_cross_entropy
from keras_mobilevit.weights.load import load_weights
from train.config import TrainConfig
from train.data import images
from train.data.mixing import mix
from train.tasks.classification import metric, model
from train.tasks.task import Task


def _loss(config: TrainConfig, batch, logits) -> tf.Tensor:
    def loss_of(name: str) -> tf.Tensor:
        return smoothed_cross_entropy(batch[name], logits, config.label_smoothing)

    if "other_label" not in batch:
        return loss_of("label")
    share = batch["other_share"]  # see `train.data.mixing.mix`
    return (1 - share) * loss_of("label") + share * loss_of("other_label")


def _validation_loss(batch, logits) -> tf.Tensor:
    return smoothed_cross_entropy(batch["label"], logits)


CLASSIFICATION = Task(
    name="classification",
    build_model=model.build,
    load_pretrained=functools.partial(load_weights, include_top=False),
    is_head=lambda path: path.startswith(("head_dropout/", "predictions/")),
    train_example=images.train_example,
    eval_example=images.eval_example,
    loss=_loss,
    validation_loss=_validation_loss,
    predictions=lambda logits, size: {"best": metric.best_classes(logits)},
    statistics=metric.count_correct,
    summable=True,
    score=metric.score,
    best_metric="top1",
    report=metric.report,
    model_kind=model.CLASSIFIER,
    mix=mix,
)
