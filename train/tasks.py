"""What is trained, as a value: the loop knows nothing of classes, boxes or masks."""

import dataclasses
from collections.abc import Callable

import keras

from keras_mobilevit.classifier import build_classifier
from keras_mobilevit.configs import get_config
from train import losses, metrics


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its loss and its metrics.

    Attributes:
        name: of the task.
        build_model: from a `TrainConfig` and a `Source` to a model of random weights
            that takes images of any size, values in [0, 255]; what is frozen is so.
        loss: from a `TrainConfig`, a batch and the model's outputs to the loss of each
            example, `[batch]`.
        metrics: from a batch and the model's outputs to `{name: [batch]}`; an
            evaluation reports their means.
        is_head: tells by a variable's path whether it belongs to the head.
        best_metric: the one whose maximum decides which weights are kept as the best.
    """

    name: str
    build_model: Callable
    loss: Callable
    metrics: Callable
    is_head: Callable[[str], bool]
    best_metric: str


def _build_classifier(config, source) -> keras.Model:
    model = build_classifier(
        get_config(config.model),
        input_shape=(None, None, 3),
        classes=len(source.class_names),
        classifier_activation=None,
    )
    if config.freeze == "backbone":
        # Frozen batch normalization also keeps its statistics.
        for layer in model.layers:
            layer.trainable = layer.name == "predictions"
            if isinstance(layer, keras.layers.Dropout) and "_vit_" in layer.name:
                layer.rate = 0.0  # what is frozen shall not be noisy
    return model


def _classification_loss(config, batch, logits):
    return losses.smoothed_cross_entropy(batch["label"], logits, config.label_smoothing)


def _classification_metrics(batch, logits) -> dict:
    return {
        "loss": losses.smoothed_cross_entropy(batch["label"], logits),
        "top1": metrics.top_k_correct(batch["label"], logits, 1),
        "top5": metrics.top_k_correct(batch["label"], logits, 5),
    }


CLASSIFICATION = Task(
    name="classification",
    build_model=_build_classifier,
    loss=_classification_loss,
    metrics=_classification_metrics,
    is_head=lambda path: path.startswith("predictions/"),
    best_metric="top1",
)
