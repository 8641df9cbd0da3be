"""The detector: how it is built, and how detectors in files are read."""

import keras

from keras_mobilevit.ssdlite import SSDLite, is_detector
from train.config import TrainConfig
from train.data.source import Source
from train.tasks.detection.postprocess import suppress_file_outputs
from train.tasks.task import ModelKind

HEAD = "ssd"  # prefix of the names of its layers


def build(config: TrainConfig, source: Source) -> keras.Model:
    """Builds the detector to train; see `train.tasks.task.Task.build_model`."""
    return SSDLite(
        config.model,
        classes=len(source.class_names),
        weights=None,
        input_shape=(None, None, 3),
    )


def _build_with_weights(config: TrainConfig, classes: int) -> keras.Model:
    shape = (None, None, 3)
    return SSDLite(
        config.model, classes=classes, weights=config.weights, input_shape=shape
    )


def _file_classes(outputs: dict) -> int | None:
    if not {"boxes", "scores"} <= set(outputs):
        raise ValueError(
            f"it returns {', '.join(outputs)}. Expected boxes and scores, as "
            "tflite/convert.py writes them."
        )
    if "classes" in outputs:  # the file contains non-maximum suppression
        return None
    return int(outputs["scores"]["shape"][-1])


DETECTOR = ModelKind(
    noun="detector",
    published="coco",
    batch_size=16,
    is_one=is_detector,
    num_classes=lambda model: model.output["logits"].shape[-1] - 1,
    build=_build_with_weights,
    file_classes=_file_classes,
    file_predictions=lambda outputs, size, card: suppress_file_outputs(outputs),
)
