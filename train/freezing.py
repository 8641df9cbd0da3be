"""Freezes a backbone, so that only a head is trained."""

import keras


def freeze_backbone(model: keras.Model, is_head) -> None:
    """Leaves a model's head alone trainable.

    Frozen batch normalization keeps its statistics too, and what is frozen is not
    noisy: the backbone's dropout is off. The moving average, which is saved, is built
    without this, so that it can be trained further as any other model.

    Args:
        model: of a task.
        is_head: tells by a layer's name whether it belongs to the head.
    """
    for layer in model.layers:
        layer.trainable = is_head(layer.name)
        if isinstance(layer, keras.layers.Dropout) and not is_head(layer.name):
            layer.rate = 0.0
