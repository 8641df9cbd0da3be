"""Classification as a task: which of the classes an image shows."""

import functools

import keras

from keras_mobilevit.classifier import build_classifier
from keras_mobilevit.configs import get_config
from keras_mobilevit.weights.load import load_weights
from train.data import images
from train.evaluation.predictor import load
from train.freezing import freeze_backbone
from train.tasks import losses, metrics
from train.tasks.classification import evaluation
from train.tasks.task import Task


def _build_classifier(config, source) -> keras.Model:
    model = build_classifier(
        get_config(config.model),
        input_shape=(None, None, 3),
        classes=len(source.class_names),
        classifier_activation=None,
    )
    if config.freeze == "backbone":
        freeze_backbone(model, lambda name: name in ("head_dropout", "predictions"))
    return model


def _classification_loss(config, batch, logits):
    return losses.smoothed_cross_entropy(batch["label"], logits, config.label_smoothing)


def _classification_metrics(batch, logits) -> dict:
    return {
        "loss": losses.smoothed_cross_entropy(batch["label"], logits),
        "top1": metrics.top_k_correct(batch["label"], logits, 1),
        "top5": metrics.top_k_correct(batch["label"], logits, 5),
    }


def _report(config, source) -> str:
    classifier = load(evaluation.CLASSIFIER, config, source)
    found = evaluation.evaluate_classifier(classifier, source, config)
    return evaluation.format_report(found)


CLASSIFICATION = Task(
    name="classification",
    build_model=_build_classifier,
    load_pretrained=functools.partial(load_weights, include_top=False),
    train_example=images.train_example,
    eval_example=images.eval_example,
    loss=_classification_loss,
    metrics=_classification_metrics,
    report=_report,
    is_head=lambda path: path.startswith("predictions/"),
    best_metric="top1",
)
