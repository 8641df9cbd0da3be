"""MixUp and CutMix: each image of a batch gets a part of another one.

Sources: [mixup](https://arxiv.org/abs/1710.09412),
[CutMix](https://arxiv.org/abs/1905.04899).
"""

import tensorflow as tf

from train.data import augment

PROBABILITY = 0.5  # that a batch is mixed
PURPOSE = 2  # sets the seed apart from those of the batch's first example


def mix(batch: dict, seed, config) -> dict:
    """Mixes the images of a batch with MixUp or CutMix, or leaves them as they are.

    Half of the batches are mixed, each with one of the two if both are on. All images
    of a batch get the same share of the next one: with MixUp all over, with CutMix in
    one rectangle. Examples of weight 0 neither get nor give anything.

    Args:
        batch: `image`, uint8 `[batch, height, width, 3]`, `label` and `weight`.
        seed: two integers, which determine all that is random.
        config: a `TrainConfig`, of which `mixup` and `cutmix` are used: the parameters
            of the beta distributions of the shares, 0 for none.

    Returns:
        The batch with other images, and with `other_label`, int32 `[batch]`, and
        `other_share`, float32 `[batch]`: the part of the image that has it.
    """
    if not config.mixup and not config.cutmix:
        return batch
    seed = tf.random.experimental.stateless_fold_in(seed, PURPOSE)
    seeds = tf.random.experimental.stateless_split(seed, 4)
    is_mixed, is_cutmix = tf.unstack(
        tf.random.stateless_uniform([2], seeds[0]) < [PROBABILITY, _cutmix_part(config)]
    )
    images, partners = batch["image"], next_real(batch["weight"])
    shape = tf.shape(images)[1:]
    cover = tf.cond(
        is_cutmix,
        lambda: _cutmix_cover(shape, config.cutmix, seeds[1], seeds[2]),
        lambda: tf.fill(shape, _beta(config.mixup, seeds[3])),
    )
    share = tf.where(is_mixed, tf.reduce_mean(cover), 0.0)
    mixed = tf.cond(
        is_mixed, lambda: _mix_images(images, partners, cover), lambda: images
    )
    return {
        **batch,
        "image": tf.ensure_shape(mixed, images.shape),
        "other_label": tf.gather(batch["label"], partners),
        "other_share": tf.fill(tf.shape(partners), share),
    }


def _cutmix_part(config) -> float:
    """Returns the part of the mixed batches for which CutMix is drawn."""
    return bool(config.cutmix) / (bool(config.cutmix) + bool(config.mixup))


def next_real(weights) -> tf.Tensor:
    """Returns, for each example, the next one whose weight is not 0, int64 `[batch]`.

    The last one is followed by the first. An example of weight 0 gets itself.
    """
    real = tf.where(weights > 0)  # [examples, 1]
    own = tf.range(tf.size(weights, tf.int64))
    return tf.tensor_scatter_nd_update(own, real, tf.roll(real[:, 0], -1, axis=0))


def _beta(alpha: float, seed) -> tf.Tensor:
    """Draws from the beta distribution with both parameters alpha, float32 `[]`."""
    one, other = tf.unstack(tf.random.stateless_gamma([2], seed, alpha or 1.0))
    return tf.math.divide_no_nan(one, one + other)


def _cutmix_cover(shape, alpha: float, share_seed, center_seed) -> tf.Tensor:
    """Draws the rectangle of CutMix: 1 inside and 0 outside, float32 `shape`.

    Its center may be anywhere; what is outside the image is cut off.
    """
    sides = tf.cast(shape[:2], tf.float32)
    half = tf.floor(0.5 * tf.sqrt(_beta(alpha, share_seed)) * sides)
    center = tf.floor(tf.random.stateless_uniform([2], center_seed) * sides)
    return tf.cast(augment.inside(shape, center - half, center + half), tf.float32)


def _mix_images(images, partners, cover) -> tf.Tensor:
    """Mixes all images, one after the other: their float32 values need much memory."""

    def mix_one(pair) -> tf.Tensor:
        image, partner = pair
        own = tf.cast(image, tf.float32)
        other = tf.cast(images[partner], tf.float32)
        return tf.cast(tf.round(own + cover * (other - own)), tf.uint8)

    return tf.map_fn(mix_one, (images, partners), fn_output_signature=tf.uint8)
