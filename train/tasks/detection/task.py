"""Detection as a task: where objects are on an image, and what they are.

Source: section 4.2 of MobileViT, https://arxiv.org/abs/2110.02178.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_mobilevit import boxes as box_math
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.detection import detect
from keras_mobilevit.ssdlite import SSDLite
from keras_mobilevit.weights.load import load_backbone
from train.data import augment, images
from train.evaluation.predictor import load
from train.freezing import freeze_backbone
from train.tasks import losses
from train.tasks.detection import box_augment
from train.tasks.detection import evaluation as detection_evaluation
from train.tasks.detection.average_precision import average_precision
from train.tasks.detection.matching import match
from train.tasks.detection.pictures import draw_examples
from train.tasks.task import Task


def _build_detector(config, source) -> keras.Model:
    model = SSDLite(
        config.model,
        classes=len(source.class_names),
        weights=None,
        input_shape=(None, None, 3),
    )
    if config.freeze == "backbone":
        freeze_backbone(model, lambda name: name.startswith("ssd"))
    return model


def _train_example(example, size, seed, config) -> dict:
    """Crops, resizes, mirrors and colours an image; crowds are not learned."""
    encoded = images.read(example)
    shape = tf.cast(images.image_size(encoded), tf.float32)  # height, width
    seeds = tf.random.experimental.stateless_split(seed, 3)
    is_object = (example["classes"] >= 0) & ~example["is_crowd"]
    window = box_augment.random_crop(
        example["boxes"],
        is_object,
        shape[1] / shape[0],
        config.crop_scale**0.5,
        seeds[0],
    )
    # To whole pixels, which the boxes follow.
    corners = tf.round(tf.reshape(window, [2, 2]) * shape[::-1])  # (x, y) twice
    left_top, sides = corners[0], tf.maximum(corners[1] - corners[0], 1.0)
    left_top = tf.minimum(left_top, shape[::-1] - sides)
    pixels = tf.cast(tf.concat([left_top[::-1], sides[::-1]], axis=0), tf.int32)
    image = images.resize(images.decode_window(encoded, pixels), size)
    window = tf.concat([left_top, left_top + sides], axis=0) / tf.tile(shape[::-1], [2])
    boxes, is_object = box_augment.crop_boxes(example["boxes"], is_object, window)
    if config.flip:
        image, boxes = box_augment.random_flip(image, boxes, seeds[1])
    if config.color_jitter:
        image = augment.random_colors(image, seeds[2])
    classes = tf.where(is_object, example["classes"], -1)
    return {"image": image, "boxes": boxes, "classes": classes}


def _eval_example(example, size, crop_fraction: float) -> dict:
    """Resizes the whole image, whatever its aspect: a crop would lose objects."""
    image = images.decode(images.read(example))
    shape = tf.shape(image)[:2]
    targets = {key: example[key] for key in ("boxes", "classes", "is_crowd", "areas")}
    return {"image": images.resize(image, size), "image_size": shape, **targets}


def _anchors(batch):
    """Returns the anchors of a batch, whose size is known when it is traced."""
    return tf.constant(anchor_boxes(*batch["image"].shape[1:3]))


def _multibox(batch, is_object, outputs, label_smoothing: float):
    anchors = _anchors(batch)
    nearest, is_positive = match(batch["boxes"], is_object, anchors)
    boxes = tf.gather(batch["boxes"], nearest, batch_dims=1)  # [batch, anchors, 4]
    classes = tf.gather(batch["classes"], nearest, batch_dims=1)
    # Of an anchor without an object the box may be padding, without a logarithm.
    boxes = tf.where(is_positive[..., None], boxes, box_math.to_corners(anchors))
    return losses.multibox(
        outputs["offsets"],
        outputs["logits"],
        box_math.encode(boxes, anchors),
        tf.where(is_positive, classes + 1, 0),
        batch["weight"],
        label_smoothing,
    )


def _loss(config, batch, outputs):
    is_object = batch["classes"] >= 0
    return _multibox(batch, is_object, outputs, config.label_smoothing)


def _metrics(batch, outputs) -> dict:
    is_object = (batch["classes"] >= 0) & ~batch["is_crowd"]
    return {"loss": _multibox(batch, is_object, outputs, 0.0)}


def _predictions(batch, outputs) -> dict:
    found = detect(outputs, _anchors(batch))
    targets = ("image_size", "boxes", "classes", "is_crowd", "areas")
    # Several devices exchange numbers only.
    batch = batch | {"is_crowd": tf.cast(batch["is_crowd"], tf.int32)}
    return found | {f"true_{name}": batch[name] for name in targets}


def _unpad(examples: dict) -> dict:
    """Gives each image its own objects, as many as it has."""
    prefix = "true_" if "true_classes" in examples else ""
    names = [f"{prefix}{name}" for name in ("boxes", "classes", "is_crowd", "areas")]
    is_object = examples[f"{prefix}classes"] >= 0
    found = dict(examples)
    for name in names:
        found[name] = np.empty(len(is_object), object)
        for index, own in enumerate(is_object):
            found[name][index] = examples[name][index][own]
    return found


def _score(class_names, predictions: dict) -> dict:
    """Measures by COCO's rules, in the pixels of the images as they are."""
    rows = [dict(zip(predictions, values)) for values in zip(*predictions.values())]
    return average_precision([_in_pixels(row) for row in rows], class_names)


def _in_pixels(row: dict) -> dict:
    """Takes the padding away, and measures one image's boxes in its pixels."""
    height, width = row["true_image_size"]
    found, real = row["classes"] >= 0, row["true_classes"] >= 0
    scale = np.array([width, height, width, height], np.float64)
    return {
        "boxes": row["boxes"][found] * scale,
        "scores": row["scores"][found],
        "classes": row["classes"][found],
        # Annotations have hundredths of pixels, which float32 blurs by 4e-5 of one: too
        # little to see, but an overlap of just 0.95 may fall below it.
        "true_boxes": np.round(row["true_boxes"][real] * scale, 2),
        "true_classes": row["true_classes"][real],
        "true_areas": row["true_areas"][real] * (height * width),
        "is_crowd": row["true_is_crowd"][real],
    }


def _report(config, source) -> str:
    detector = load(detection_evaluation.DETECTOR, config, source)
    found = detection_evaluation.evaluate_detector(detector, source, DETECTION)
    names = source.class_names
    return detection_evaluation.format_metrics(*found, names, detector.size)


DETECTION = Task(
    name="detection",
    build_model=_build_detector,
    load_pretrained=load_backbone,
    train_example=_train_example,
    eval_example=_eval_example,
    loss=_loss,
    metrics=_metrics,
    predictions=_predictions,
    unpad=_unpad,
    score=_score,
    pictures=draw_examples,
    report=_report,
    is_head=lambda path: path.startswith("ssd"),
    best_metric="AP",
)
