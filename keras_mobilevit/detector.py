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


def _image_size(images: Any) -> tuple[int, int]:
    """Returns the height and width of a batch of images, which anchors depend on."""
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
    if keys != sorted(TARGETS):
        found = f"a dict with {keys}" if keys is not None else type(y).__name__
        raise ValueError(
            "The targets of a detector are a dict of `boxes` [batch, objects, 4] and "
            f"`labels` [batch, objects]. Received: {found}. See "
            "`keras_mobilevit.detection_targets`."
        )
    targets = {
        "boxes": ops.cast(y["boxes"], "float32"),
        "labels": ops.cast(y["labels"], "int32"),
    }
    boxes, labels = (tuple(targets[name].shape) for name in TARGETS)
    if len(boxes) != 3 or boxes[-1] != 4 or len(labels) != 2:
        raise ValueError(
            "The targets of a detector are `boxes` [batch, objects, 4] and `labels` "
            f"[batch, objects]. Received: boxes {boxes} and labels {labels}."
        )
    return targets


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
        **kwargs: Any,
    ) -> None:
        """Configures the training; the same as `keras.Model.compile`.

        Args:
            optimizer: an optimizer of Keras or its name.
            loss: a loss whose arguments are those of `SSDLoss`, which is the default.
            **kwargs: the other arguments of `keras.Model.compile`. `metrics` are
                metrics of boxes, such as `keras_mobilevit.BoxAveragePrecision`. They
                take non-maximum suppression at each step, also of training.
        """
        super().compile(optimizer=optimizer, loss=loss or SSDLoss(), **kwargs)

    def compile_from_config(self, config: dict) -> None:
        """Compiles a model that was saved compiled."""
        # Keras does this only for models that do not override `compile`.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

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
        return super().compute_loss(
            x,
            ops.concatenate([matched["offsets"], labels], axis=-1),
            ops.concatenate([y_pred["offsets"], y_pred["logits"]], axis=-1),
            sample_weight,
            training,
        )

    def compute_metrics(
        self, x: Tensor, y: Any, y_pred: Any, sample_weight: Tensor = None
    ) -> dict[str, Any]:
        """Updates the metrics of `compile` with the objects that are found."""
        if self._compile_metrics is None:
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
            sample_weight,
        )
