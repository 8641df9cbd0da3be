"""Images with boxes, as a detector is trained and evaluated on them."""

import tensorflow as tf

from train.config import TrainConfig
from train.data import augment as color
from train.data import images
from train.tasks.detection import augment


def train_example(example, size, seed, config: TrainConfig) -> dict[str, tf.Tensor]:
    """Crops, resizes and mirrors an image, and changes its colors.

    Crowds are not targets.
    """
    picture = images.open_picture(images.read(example))
    shape = tf.cast(picture.size, tf.float32)  # height, width
    seeds = tf.random.experimental.stateless_split(seed, 3)
    is_object = (example["classes"] >= 0) & ~example["is_crowd"]
    window = augment.random_crop(
        example["boxes"],
        is_object,
        shape[1] / shape[0],
        config.crop_scale**0.5,
        seeds[0],
    )
    # Rounded to whole pixels; the boxes follow.
    corners = tf.round(tf.reshape(window, [2, 2]) * shape[::-1])  # (x, y) twice
    left_top, sides = corners[0], tf.maximum(corners[1] - corners[0], 1.0)
    left_top = tf.minimum(left_top, shape[::-1] - sides)
    pixels = tf.cast(tf.concat([left_top[::-1], sides[::-1]], axis=0), tf.int32)
    image = images.crop_and_resize(picture, pixels, size, images.TRAINING_GAP)
    window = tf.concat([left_top, left_top + sides], axis=0) / tf.tile(shape[::-1], [2])
    boxes, is_object = augment.crop_boxes(example["boxes"], is_object, window)
    if config.flip:
        image, boxes = augment.random_flip(image, boxes, seeds[1])
    if config.color_jitter:
        image = color.random_colors(image, seeds[2])
    classes = tf.where(is_object, example["classes"], -1)
    return {"image": image, "boxes": boxes, "classes": classes}


def eval_example(example, size, crop_fraction: float) -> dict[str, tf.Tensor]:
    """Resizes the whole image, whatever its aspect; a crop would lose objects."""
    picture = images.open_picture(images.read(example))
    image = images.crop_and_resize(picture, images.whole(picture), size)
    targets = {key: example[key] for key in ("boxes", "classes", "is_crowd", "areas")}
    return {"image": image, "image_size": picture.size, **targets}
