"""The detector as a Keras model that `compile` and `fit` train."""

from typing import Any

import keras
from keras import ops

from keras_mobilevit.anchors import anchors_of_count
from keras_mobilevit.backend import Tensor
from keras_mobilevit.detection import decode_outputs, non_max_suppression
from keras_mobilevit.matching import anchor_targets
from keras_mobilevit.ssd_loss import SSDLoss

# Detections that a metric counts. COCO counts 100 of each image.
METRIC_DETECTIONS = 100
TARGETS = ("boxes", "labels")


def _image_size(inputs: Any) -> tuple[int, int]:
    """Returns the height and width of a batch of images, which anchors depend on."""
    found = [x for x in keras.tree.flatten(inputs) if len(x.shape) == 4]
    if len(found) != 1:
        shapes = [tuple(x.shape) for x in keras.tree.flatten(inputs)]
        raise ValueError(
            "A detector is trained on one batch of images [batch, height, width, "
            f"channels]. Received inputs of the shapes {shapes}."
        )
    (images,) = found
    height, width = images.shape[1:3]
    if height is None or width is None:
        raise ValueError(
            "`fit` trains a detector on images of one size, which it must know before "
            f"the first step. Received images of shape {tuple(images.shape)}. Resize "
            "all images to one size, and call `set_shape` in a tf.data pipeline that "
            "loses it. For several sizes, use train/main.py."
        )
    return height, width


def _check_targets(y: Any) -> dict[str, Tensor]:
    """Returns the targets as tensors, or raises a ValueError that says what is wrong.

    A wrong dict would otherwise fail deep inside of the loss.
    """
    keys = sorted(y) if isinstance(y, dict) else None
    if keys is None or not set(TARGETS) <= set(keys):
        found = f"a dict with {keys}" if keys is not None else type(y).__name__
        raise ValueError(
            "The targets of a detector are a dict of `boxes` [batch, objects, 4] and "
            f"`labels` [batch, objects]. Received: {found}. See "
            "`keras_mobilevit.detection_targets`."
        )
    if any(hasattr(y[name], "row_lengths") for name in TARGETS):
        raise ValueError(
            "The targets of a detector are dense, but ragged tensors were given. Pad "
            "them in the tf.data pipeline: `padded_batch(..., padding_values=(0.0, "
            '{"boxes": 0.0, "labels": -1}))`.'
        )
    targets = {
        "boxes": ops.cast(y["boxes"], "float32"),
        "labels": ops.cast(y["labels"], "int32"),
    }
    boxes, labels = (tuple(targets[name].shape) for name in TARGETS)
    numbers = {boxes[1:2], labels[1:2]} - {(None,)}
    if len(boxes) != 3 or boxes[-1] != 4 or len(labels) != 2 or len(numbers) > 1:
        raise ValueError(
            "The targets of a detector are `boxes` [batch, objects, 4] and `labels` "
            f"[batch, objects]. Received: boxes {boxes} and labels {labels}."
        )
    # One more object, which is padding: a batch may have none.
    return {
        "boxes": ops.pad(targets["boxes"], [[0, 0], [0, 1], [0, 0]]),
        "labels": ops.pad(targets["labels"], [[0, 0], [0, 1]], constant_values=-1),
    }


def _image_weights(sample_weight: Any) -> Tensor | None:
    """Returns the weights of the images, which `fit` repeats for each target."""
    return next(iter(keras.tree.flatten(sample_weight)), None)


def _check_compiled(loss: Any, metrics: Any, classes: int) -> None:
    """Refuses what `compile` takes for other models."""
    for value in (loss, *(metrics or ())):
        if isinstance(value, str):
            raise ValueError(
                "A detector takes the loss `keras_mobilevit.SSDLoss` and metrics of "
                "boxes, such as `keras_mobilevit.BoxAveragePrecision`. "
                f"Received: {value!r}."
            )
    for metric in metrics or ():
        own = getattr(metric, "classes", classes)
        if own != classes:
            raise ValueError(
                f"The metric {metric.name} is for {own} classes, but the detector has "
                f"{classes}."
            )


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class Detector(keras.Model):
    """A detector, as `SSDLite` makes it, that trains on boxes with `fit`.

    Targets are a dict, the same as `bounding_boxes` of Keras's layers for images:
    `boxes`, float `[batch, objects, 4]`, corners `(x1, y1, x2, y2)` as fractions of the
    image (`"rel_xyxy"`), and `labels`, int `[batch, objects]`, from 0, with -1 for
    padding. `keras_mobilevit.detection_targets` makes them from lists and from other
    formats. All images of a training have one size.

    Example:
    >>> model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=3)
    >>> metric = keras_mobilevit.BoxAveragePrecision(classes=3)
    >>> model.compile(keras.optimizers.AdamW(1e-3), metrics=[metric])
    >>> model.fit(images, {"boxes": boxes, "labels": labels}, epochs=10)
    """

    def compile(
        self,
        optimizer: str | keras.Optimizer = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures the training; the same as `keras.Model.compile`.

        Args:
            optimizer: an optimizer of Keras or its name.
            loss: a loss whose arguments are those of `SSDLoss`, which is the default.
            loss_weights: see `keras.Model.compile`.
            metrics: metrics of boxes, such as `keras_mobilevit.BoxAveragePrecision`.
                They take non-maximum suppression at each step, also of training.
            **kwargs: the other arguments of `keras.Model.compile`.

        Raises:
            ValueError: if the loss or a metric is not for this detector.
        """
        _check_compiled(loss, metrics, self.output["logits"].shape[-1] - 1)
        self._has_metrics = bool(metrics or kwargs.get("weighted_metrics"))
        super().compile(
            optimizer, loss or SSDLoss(), loss_weights, metrics=metrics, **kwargs
        )

    def compile_from_config(self, config: dict) -> None:
        """Compiles a model that was saved compiled."""
        # Keras does this only for models that do not override `compile`.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function of one training step; Keras calls this method."""
        # If the first step creates the optimizer's variables, TensorFlow traces it
        # twice, which takes as long again.
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def compute_loss(
        self,
        x: Tensor = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Matches the objects to anchors and computes the loss of a batch."""
        targets = _check_targets(y)
        anchors = anchors_of_count(*_image_size(x), y_pred["offsets"].shape[1])
        matched = anchor_targets(targets["boxes"], targets["labels"], anchors)
        labels = ops.cast(matched["labels"], "float32")[..., None]
        weights = ops.ones_like(labels)  # of the images, for each anchor
        image_weights = _image_weights(sample_weight)
        if image_weights is not None:
            weights *= ops.reshape(ops.cast(image_weights, "float32"), (-1, 1, 1))
        return super().compute_loss(
            x,
            ops.concatenate([matched["offsets"], labels, weights], axis=-1),
            ops.concatenate([y_pred["offsets"], y_pred["logits"]], axis=-1),
            image_weights,
            training,
        )

    def compute_metrics(
        self, x: Tensor, y: Any, y_pred: Any, sample_weight: Tensor = None
    ) -> dict[str, Any]:
        """Updates the metrics of `compile` with the objects that are found."""
        if not self._has_metrics:
            return self.get_metrics_result()
        targets = _check_targets(y)
        anchors = anchors_of_count(*_image_size(x), y_pred["offsets"].shape[1])
        found = non_max_suppression(
            *decode_outputs(y_pred, anchors), max_detections=METRIC_DETECTIONS
        )
        labels, classes = (
            ops.cast(labels, "float32")[..., None]
            for labels in (targets["labels"], found["classes"])
        )
        return super().compute_metrics(
            x,
            ops.concatenate([targets["boxes"], labels], axis=-1),
            ops.concatenate([found["boxes"], found["scores"][..., None], classes], -1),
            _image_weights(sample_weight),
        )
