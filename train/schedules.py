"""What changes over a run: the learning rate, and the momentum of the average."""

import math


def learning_rate(config, step: int, epoch: int) -> float:
    """Linear warm-up by step, then a cosine that moves once an epoch.

    The cosine's period is the whole run and is not shortened by the warm-up, as in
    the published recipe.

    Args:
        config: a `TrainConfig`.
        step: steps done since the start of the run.
        epoch: epochs done since the start of the run.

    Returns:
        The learning rate of the next step.
    """
    scale = config.batch_size / (config.learning_rate_batch or config.batch_size)
    low, high = scale * config.min_learning_rate, scale * config.learning_rate
    if step < config.warmup_steps:
        start = config.warmup_learning_rate
        start = low if start is None else scale * start
        return start + (high - start) * step / config.warmup_steps
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * epoch / config.epochs))


def ema_momentum(config, step: int) -> float:
    """Momentum of the weights' moving average, which starts low and settles.

    `(1 + step) / (10 + step)` forgets the random initialization within a short run
    (`tf.train.ExponentialMovingAverage` does the same); it passes the recipe's 0.9995
    after 18,000 of 300,000 steps.
    """
    return min(config.ema_momentum, (1 + step) / (10 + step))
