"""SSD's loss of boxes and classes: https://arxiv.org/abs/1512.02325, section 2.2."""

import keras
from keras import ops

from keras_mobilevit.backend import Tensor
from keras_mobilevit.cross_entropy import smoothed_cross_entropy
from keras_mobilevit.matching import hard_negatives


def smooth_l1(differences: Tensor) -> Tensor:
    """Computes x² / 2 where |x| < 1, else |x| - 1/2 (arxiv.org/abs/1504.08083)."""
    absolute = ops.abs(differences)
    return ops.where(absolute < 1.0, 0.5 * differences**2, absolute - 0.5)


def multibox(
    offsets: Tensor,
    logits: Tensor,
    target_offsets: Tensor,
    labels: Tensor,
    weights: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Computes SSD's loss of each example, `[batch]`, from predictions and targets.

    Offsets are `[batch, anchors, 4]`, logits `[batch, anchors, classes + 1]`. `labels`
    are 0 for the background, else the class of a positive anchor plus 1.

    The sum over the positive anchors and hard negatives of an example is multiplied by
    the number of images with a weight, and divided by the number of their positive
    anchors. The mean over the examples is then the published loss, in which an image
    with more objects weighs more.
    """
    is_positive = labels > 0
    entropy = smoothed_cross_entropy(labels, logits, label_smoothing)
    # A label beyond the classes has no probability. Its loss is not a number, rather
    # than one that looks right.
    entropy = ops.where(labels < logits.shape[-1], entropy, float("nan"))
    background = -ops.log_softmax(logits)[..., 0]
    negatives = hard_negatives(ops.stop_gradient(background), is_positive)
    class_loss = ops.where(is_positive | negatives, entropy, 0.0)
    distance = ops.sum(smooth_l1(offsets - target_offsets), axis=-1)
    box_loss = ops.where(is_positive, distance, 0.0)
    total = ops.sum(class_loss + box_loss, axis=1)  # [batch]
    positives = ops.sum(ops.cast(is_positive, "float32"), axis=1) * weights
    return total * ops.sum(weights) / ops.maximum(ops.sum(positives), 1.0)


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class SSDLoss(keras.losses.Loss):
    """The loss of a `keras_mobilevit.Detector`, which matches objects to anchors.

    The cross-entropy of positive anchors and of three background anchors for each,
    those with the highest loss, plus the smooth L1 distance of the positive anchors'
    boxes. With the default reduction, the sum over a batch is divided by its number of
    positive anchors, so that an image with more objects weighs more. Images with a
    `sample_weight` of 0 count for nothing.

    Args:
        label_smoothing: fraction of the target that is spread over all classes and the
            background, in [0, 1).
        name: name of the loss.
        reduction: how Keras reduces the losses of the images, see `keras.losses.Loss`.
        dtype: type in which the loss is computed.

    Call arguments: `y_true` `[batch, anchors, 6]`, each anchor's box deltas, its label,
    0 for the background, and the weight of its image; `y_pred`
    `[batch, anchors, 4 + classes + 1]`, box deltas and logits. `Detector` makes both of
    its targets and its outputs.

    Raises:
        ValueError: if `label_smoothing` is outside of its range.

    Example:
    >>> model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=3, weights=None)
    >>> model.compile("adam", loss=keras_mobilevit.SSDLoss(label_smoothing=0.1))

    Source: section 2.2 of https://arxiv.org/abs/1512.02325.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        name: str = "ssd_loss",
        reduction: str | None = "sum_over_batch_size",
        dtype: str | None = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                "`label_smoothing` must be at least 0 and below 1. "
                f"Received: label_smoothing={label_smoothing}."
            )
        self.label_smoothing = label_smoothing

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the loss of each image, `[batch]`."""
        return multibox(
            y_pred[..., :4],
            y_pred[..., 4:],
            y_true[..., :4],
            ops.cast(y_true[..., 4], "int32"),
            y_true[:, 0, 5],
            self.label_smoothing,
        )

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
