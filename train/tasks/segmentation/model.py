"""The segmenter: how it is built, and how segmenters in files are read."""

import keras
import numpy as np

from keras_mobilevit.deeplab import CLASSIFIER, DeepLabV3, is_segmenter
from train.config import TrainConfig
from train.data.source import Source
from train.tasks.segmentation.postprocess import class_maps
from train.tasks.task import ModelKind

HEAD = "deeplab"  # prefix of the names of its layers


def build(config: TrainConfig, source: Source) -> keras.Model:
    """Builds the segmenter to train; see `train.tasks.task.Task.build_model`."""
    return DeepLabV3(
        config.model,
        classes=len(source.class_names),
        weights=None,
        input_shape=(None, None, 3),
        output_stride=config.output_stride,
        auxiliary=config.auxiliary_weight > 0,
    )


def _build_with_weights(config: TrainConfig, classes: int) -> keras.Model:
    return DeepLabV3(
        config.model,
        classes=classes,
        weights=config.weights,
        input_shape=(None, None, 3),
        output_stride=config.output_stride,
    )


def _file_classes(outputs: dict) -> int | None:
    ranks = {name: len(output["shape"]) for name, output in outputs.items()}
    if ranks not in ({"logits": 4}, {"classes": 3}):
        raise ValueError(
            f"it returns {', '.join(outputs)}. Expected logits or classes, as "
            "tflite/convert.py writes them."
        )
    if "classes" in ranks:
        return None
    return int(outputs["logits"]["shape"][-1])


def _file_predictions(outputs: dict[str, np.ndarray], size: int, card: dict) -> dict:
    if "logits" in outputs:
        align_corners = card.get("align_corners", False)
        return {"class_map": class_maps(outputs["logits"], size, align_corners)}
    return {"class_map": outputs["classes"].astype(np.int32)}


def _check(predictions: dict[str, np.ndarray], source: Source) -> None:
    largest, classes = predictions["class_map"].max(), len(source.class_names)
    if largest >= classes:
        raise ValueError(
            f"The model finds the class {largest}, but {source.name} has {classes}: "
            f"0 to {classes - 1}."
        )


SEGMENTER = ModelKind(
    noun="segmenter",
    published="voc",
    batch_size=8,  # logits of 21 classes at 512x512 take 22 MB an image
    is_one=is_segmenter,
    num_classes=lambda model: model.get_layer(CLASSIFIER).output.shape[-1],
    build=_build_with_weights,
    file_classes=_file_classes,
    file_predictions=_file_predictions,
    check=_check,
)
