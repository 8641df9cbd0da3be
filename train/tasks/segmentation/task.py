"""Segmentation as a task: the class of every pixel of an image.

Source: section 4.2 of MobileViT, https://arxiv.org/abs/2110.02178.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit.deeplab import DeepLabV3
from keras_mobilevit.weights.load import load_backbone
from train.data import augment, images
from train.data.masks import IGNORE_INDEX, decode_mask
from train.evaluation.predictor import load
from train.freezing import freeze_backbone
from train.tasks import losses, metrics
from train.tasks.segmentation import evaluation, mask_augment
from train.tasks.segmentation.pictures import draw_examples
from train.tasks.task import Task

HEAD = "deeplab"  # begins the names of its layers


def _build_segmenter(config, source) -> keras.Model:
    model = DeepLabV3(
        config.model,
        classes=len(source.class_names),
        weights=None,
        input_shape=(None, None, 3),
        output_stride=config.output_stride,
        auxiliary=config.auxiliary_weight > 0,
    )
    if config.freeze == "backbone":
        freeze_backbone(model, lambda name: name.startswith(HEAD))
    return model


def _train_example(example, size, seed, config) -> dict:
    """Scales, crops, turns, mirrors and colours an image, and its mask with it."""
    encoded = images.read(example)
    seeds = tf.random.experimental.stateless_split(seed, 4)
    placement = mask_augment.random_placement(
        images.image_size(encoded), size, config.crop_scale, seeds[0]
    )
    part = images.decode_window(encoded, placement.window)
    image = mask_augment.place_image(part, placement, size)
    mask = mask_augment.place_mask(decode_mask(example["mask"]), placement, size)
    if config.rotation:
        image, mask = mask_augment.random_rotation(
            image, mask, config.rotation, seeds[1]
        )
    if config.flip:
        image, mask = mask_augment.random_flip(image, mask, seeds[2])
    if config.color_jitter:
        image = augment.random_colors(image, seeds[3])
    return {"image": image, "mask": mask}


def _eval_example(example, size, crop_fraction: float) -> dict:
    """Resizes the whole image, whatever its aspect; the mask keeps its pixels.

    Nothing is cut off, and the network sees all of the image at its size, as on the
    phone. The score is of the pixels of the mask as it is: one that was resized would
    have lost what is thin. `full_mask` stays encoded, as in the source: so masks of all
    sizes go in one batch, and none takes more memory for another's size.
    """
    full_mask = decode_mask(example["mask"])
    mask, image_size = mask_augment.resize_mask(full_mask, size), tf.shape(full_mask)
    # One after the other: of a large photo both take much memory.
    with tf.control_dependencies([mask, image_size]):
        image = images.resize(images.decode(images.read(example)), size)
    return {
        "image": image,
        "mask": mask,
        "full_mask": example["mask"],
        "image_size": image_size,
    }


def _logits(outputs):
    """Returns the head's logits: alone, or those beside an auxiliary head's."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def _pixel_loss(batch, logits, label_smoothing: float):
    return losses.pixel_cross_entropy(
        tf.cast(batch["mask"], tf.int32),
        logits,
        batch["mask"] != IGNORE_INDEX,
        batch["weight"],
        label_smoothing,
    )


def _loss(config, batch, outputs):
    loss = _pixel_loss(batch, _logits(outputs), config.label_smoothing)
    if config.auxiliary_weight:
        auxiliary = _pixel_loss(batch, outputs["auxiliary"], config.label_smoothing)
        loss += config.auxiliary_weight * auxiliary
    return loss


def _metrics(batch, outputs) -> dict:
    return {"loss": _pixel_loss(batch, _logits(outputs), 0.0)}


def _predictions(batch, outputs) -> dict:
    class_maps = tf.argmax(_logits(outputs), axis=-1, output_type=tf.int32)
    return {"class_map": tf.cast(class_maps, tf.uint8)}  # as masks have them


def _count(class_names, examples: dict) -> dict:
    """Counts the pixels of masks as they are by class, one image after the other."""
    counts = [
        metrics.count_pixels(decode_mask(mask).numpy(), class_map, len(class_names))
        for mask, class_map in zip(examples["full_mask"], examples["class_map"])
    ]
    shape = len(class_names), len(class_names)
    return {"confusion": sum(counts, np.zeros(shape, np.int64))}


def _score(class_names, predictions: dict) -> dict:
    return metrics.segmentation_metrics(predictions["confusion"], class_names)


def _report(config, source) -> str:
    segmenter = load(evaluation.SEGMENTER, config, source)
    found = evaluation.evaluate_segmenter(segmenter, source, SEGMENTATION)
    return evaluation.format_metrics(*found, source.class_names, segmenter.size)


SEGMENTATION = Task(
    name="segmentation",
    build_model=_build_segmenter,
    load_pretrained=load_backbone,
    train_example=_train_example,
    eval_example=_eval_example,
    loss=_loss,
    metrics=_metrics,
    predictions=_predictions,
    count=_count,
    score=_score,
    pictures=draw_examples,
    report=_report,
    is_head=lambda path: path.startswith(HEAD),
    best_metric="mIoU",
)
