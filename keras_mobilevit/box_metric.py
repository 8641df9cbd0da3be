"""Average precision of boxes as a Keras metric, for `fit` and `evaluate`."""

import keras
from keras import ops

from keras_mobilevit import boxes as box_math
from keras_mobilevit.argument_checks import check_positive
from keras_mobilevit.backend import Tensor

# Scores are counted by their logit. Those of a good detector are close to 1, where
# equal steps of the score would not tell them apart.
SCORE_BINS = 2000
LARGEST_LOGIT = 16.0  # of the largest float32 below 1


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class BoxAveragePrecision(keras.metrics.Metric):
    """Average precision of detections at one overlap, averaged over the classes.

    An object is found by the detection of its class with the highest score that
    overlaps it enough. Scores are counted in 2,000 bins, so that the state has a fixed
    size: detections with scores in the same bin have no order. The result differs from
    COCO's AP50 by less than a hundredth.

    Args:
        classes: number of classes, without the background.
        iou_threshold: the lowest overlap (intersection over union), in (0, 1].
        name: name of the metric; the default is `"AP50"` at an overlap of 0.5.
        dtype: type of the result.

    Call arguments: `y_true` `[batch, objects, 5]`, boxes and labels, -1 for padding;
    `y_pred` `[batch, detections, 6]`, boxes, scores in descending order and classes, -1
    for unused entries. Boxes are corners. `Detector` makes both.

    Raises:
        ValueError: if an argument is outside of its range.

    Example:
    >>> model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=3, weights=None)
    >>> model.compile("adam", metrics=[keras_mobilevit.BoxAveragePrecision(classes=3)])
    >>> model.evaluate(images, {"boxes": boxes, "labels": labels}, return_dict=True)
    {'AP50': 0.0, 'loss': 14.7}
    """

    def __init__(
        self,
        classes: int,
        iou_threshold: float = 0.5,
        name: str | None = None,
        dtype: str | None = None,
    ):
        if not 0 < iou_threshold <= 1:
            raise ValueError(
                "`iou_threshold` must be above 0 and at most 1. "
                f"Received: iou_threshold={iou_threshold}."
            )
        check_positive(classes=classes)
        super().__init__(name=name or f"AP{round(100 * iou_threshold)}", dtype=dtype)
        self.classes = classes
        self.iou_threshold = iou_threshold
        # Detections by class, score, and whether they found an object.
        self.counts = self.add_variable(
            (classes, SCORE_BINS, 2), "zeros", "int32", name="counts"
        )
        self.objects = self.add_variable((classes,), "zeros", "int32", name="objects")

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> None:
        """Counts the objects and detections of a batch; weights are ignored."""
        y_true, y_pred = (ops.cast(x, "float32") for x in (y_true, y_pred))
        labels, classes = y_true[..., 4], y_pred[..., 5]
        is_right = ops.cast(self._find_objects(y_true, y_pred), "int32")
        bins = _score_bins(y_pred[..., 4])
        classes = ops.cast(classes, "int32")
        cells = (classes * SCORE_BINS + bins) * 2 + is_right
        # One cell more takes the unused entries.
        unused = self.classes * SCORE_BINS * 2
        cells = ops.where(classes >= 0, cells, unused)
        counts = _count(cells, unused + 1)[:-1]
        self.counts.assign_add(ops.reshape(counts, self.counts.shape))
        labels = ops.cast(ops.where(labels >= 0, labels, self.classes), "int32")
        self.objects.assign_add(_count(labels, self.classes + 1)[:-1])

    def _find_objects(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Tells which detections find an object, bool `[batch, detections]`."""
        overlaps = box_math.iou(y_pred[:, :, None, :4], y_true[:, None, :, :4])
        is_same = y_pred[:, :, None, 5] == y_true[:, None, :, 4]
        is_same &= y_true[:, None, :, 4] >= 0
        # [batch, detections, objects]
        overlaps = ops.where(is_same, overlaps, -1.0)
        detections = y_pred.shape[1]
        is_free = ops.ones_like(y_true[..., 4], dtype="bool")  # [batch, objects]
        is_right = ops.zeros_like(y_pred[..., 4], dtype="bool")  # [batch, detections]

        def take(step: Tensor, is_free: Tensor, is_right: Tensor) -> tuple:
            own = ops.take(overlaps, step, axis=1)  # [batch, objects]
            own = ops.where(is_free, own, -1.0)
            best = ops.argmax(own, axis=1)[:, None]
            fits = ops.max(own, axis=1, keepdims=True) >= self.iou_threshold
            objects = ops.arange(ops.shape(own)[1], dtype="int32")
            is_taken = (objects == ops.cast(best, "int32")) & fits
            is_step = ops.arange(detections, dtype="int32") == step
            return step + 1, is_free & ~is_taken, is_right | (is_step & fits)

        _, _, is_right = ops.while_loop(
            lambda step, *_: step < detections, take, (0, is_free, is_right)
        )
        return is_right

    def result(self) -> Tensor:
        """Returns the mean average precision, in [0, 1]; 0 without any object."""
        # The highest scores first.
        counts = ops.cast(ops.flip(self.counts, axis=1), "float32")
        objects = ops.cast(self.objects, "float32")
        found = ops.cumsum(counts, axis=1)  # [classes, bins, 2]
        precision = found[..., 1] / ops.maximum(ops.sum(found, axis=-1), 1.0)
        # The best precision at this recall or a higher one.
        precision = ops.flip(_running_maximum(ops.flip(precision, axis=1)), axis=1)
        areas = ops.sum(precision * counts[..., 1], axis=1) / ops.maximum(objects, 1.0)
        known = ops.cast(objects > 0, "float32")
        mean = ops.sum(areas * known) / ops.maximum(ops.sum(known), 1.0)
        return ops.cast(mean, self.dtype)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "classes": self.classes,
            "iou_threshold": self.iou_threshold,
        }


def _score_bins(scores: Tensor) -> Tensor:
    """Returns the bin of each score, int32, in the order of the scores."""
    tiny = 1e-7  # float32 has no number closer to 1
    scores = ops.clip(scores, tiny, 1.0 - tiny)
    position = ops.log(scores / (1.0 - scores)) / (2 * LARGEST_LOGIT) + 0.5
    return ops.clip(ops.cast(position * SCORE_BINS, "int32"), 0, SCORE_BINS - 1)


def _count(values: Tensor, length: int) -> Tensor:
    """Counts the integers in [0, length), int32 `[length]`."""
    values = ops.reshape(values, (-1,))
    return ops.segment_sum(ops.ones_like(values), values, num_segments=length)


def _running_maximum(x: Tensor) -> Tensor:
    """Returns the maximum of each row `[rows, columns]` up to each column."""
    step, columns = 1, x.shape[1]
    while step < columns:
        shifted = ops.pad(x[:, :-step], [[0, 0], [step, 0]])
        x, step = ops.maximum(x, shifted), 2 * step
    return x
