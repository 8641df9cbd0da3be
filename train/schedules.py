"""Schedules of a run: the learning rate, and the momentum of the moving average."""

import math

from train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, epoch: int) -> float:
    """Returns the rate of a step: linear warm-up by step, then a cosine by epoch.

    The cosine spans the whole run, including the warm-up, as in the published recipe.
    """
    scale = config.batch_size / (config.learning_rate_batch or config.batch_size)
    low, high = scale * config.min_learning_rate, scale * config.learning_rate
    if step < config.warmup_steps:
        start = config.warmup_learning_rate
        start = low if start is None else scale * start
        return start + (high - start) * step / config.warmup_steps
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * epoch / config.epochs))


def ema_momentum(config: TrainConfig, step: int) -> float:
    """Returns the momentum of the moving average of the weights, which starts low.

    `(1 + step) / (10 + step)`, as in `tf.train.ExponentialMovingAverage`, forgets the
    random initialization within a short run. It reaches the recipe's 0.9995 after
    18,000 of 300,000 steps.
    """
    return min(config.ema_momentum, (1 + step) / (10 + step))
