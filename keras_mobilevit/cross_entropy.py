"""Cross-entropy with label smoothing, for one label of each logit vector."""

from keras import ops

from keras_mobilevit.backend import Tensor


def smoothed_cross_entropy(
    labels: Tensor, logits: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Computes the cross-entropy of logits `[..., classes]` and labels `[...]`."""
    classes = logits.shape[-1]
    off = label_smoothing / classes
    is_label = ops.one_hot(labels, classes, dtype="bool")
    targets = ops.where(is_label, 1.0 - label_smoothing + off, off)
    return ops.categorical_crossentropy(
        ops.cast(targets, logits.dtype), logits, from_logits=True
    )
