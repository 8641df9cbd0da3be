"""Images with masks, as a segmenter is trained and evaluated on them."""

import tensorflow as tf

from train.config import TrainConfig
from train.data import augment as color
from train.data import images
from train.data.masks import decode_mask
from train.tasks.segmentation import augment


def train_example(example, size, seed, config: TrainConfig) -> dict[str, tf.Tensor]:
    """Scales, crops and mirrors an image and its mask, and changes the colors."""
    picture = images.open_picture(images.read(example))
    # The second seed is unused, so that runs of earlier versions draw the same crops.
    seeds = tf.random.experimental.stateless_split(seed, 4)
    placement = augment.random_placement(
        picture.size, size, config.crop_scale, seeds[0]
    )
    image = augment.place_image(picture, placement, size)
    mask = augment.place_mask(decode_mask(example["mask"]), placement, size)
    if config.flip:
        image, mask = augment.random_flip(image, mask, seeds[2])
    if config.color_jitter:
        image = color.random_colors(image, seeds[3])
    return {"image": image, "mask": mask}


def eval_example(example, size, crop_fraction: float) -> dict[str, tf.Tensor]:
    """Resizes the whole image, whatever its aspect; the mask keeps its pixels.

    Nothing is cropped: the network sees the whole image, as on a phone. The score
    counts the pixels of the original mask, since resizing would lose thin objects.
    `full_mask` stays encoded, so that masks of different sizes go into one batch
    without padding.
    """
    full_mask = decode_mask(example["mask"])
    mask, image_size = augment.resize_mask(full_mask, size), tf.shape(full_mask)
    # One after the other: together, a large photo and its mask take much memory.
    with tf.control_dependencies([mask, image_size]):
        picture = images.open_picture(images.read(example))
        image = images.crop_and_resize(picture, images.whole(picture), size)
    return {
        "image": image,
        "mask": mask,
        "full_mask": example["mask"],
        "image_size": image_size,
    }
