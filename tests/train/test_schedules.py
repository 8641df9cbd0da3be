"""Learning rate and momentum against numbers worked out by hand."""

import dataclasses

import pytest

from train.config import make_config
from train.schedules import ema_momentum, learning_rate

CONFIG = make_config(
    learning_rate=0.01,
    min_learning_rate=0.002,
    warmup_steps=100,
    epochs=4,
    ema_momentum=0.99,
)


@pytest.mark.parametrize(
    "step, epoch, expected",
    [
        (0, 0, 0.002),  # warm-up starts at the minimum
        (50, 0, 0.006),
        (99, 0, 0.00992),
        (99, 3, 0.00992),  # warm-up goes by step alone
        (100, 0, 0.01),  # and ends at the peak
        (100, 1, 0.006 + 0.004 * 0.5**0.5),
        (10_000, 2, 0.006),
        (10_000, 3, 0.006 - 0.004 * 0.5**0.5),
        (10_000, 4, 0.002),
    ],
)
def test_learning_rate(step, epoch, expected):
    assert learning_rate(CONFIG, step, epoch) == pytest.approx(expected, rel=1e-12)


def test_learning_rate_without_warmup():
    config = make_config(learning_rate=0.01, warmup_steps=0)
    assert learning_rate(config, 0, 0) == 0.01


@pytest.mark.parametrize("recipe", ["coco", "voc2012"])
def test_the_published_warmup_starts_above_the_end_of_the_cosine(recipe):
    """From 9e-5 to 9e-4 in 500 steps, then towards 1e-6; of a batch of 128."""
    config = make_config(recipe)
    rates = [learning_rate(config, step, 0) for step in (0, 250, 500)]
    assert rates == pytest.approx([9e-5, 4.95e-4, 9e-4])
    assert learning_rate(config, 10**6, config.epochs) == pytest.approx(1e-6)
    half = make_config(recipe, batch_size=64)
    assert learning_rate(half, 0, 0) == pytest.approx(4.5e-5)


@pytest.mark.parametrize("start, expected", [(None, 0.002), (0.0, 0.0), (0.01, 0.01)])
def test_where_the_warmup_starts(start, expected):
    config = dataclasses.replace(CONFIG, warmup_learning_rate=start)
    assert learning_rate(config, 0, 0) == expected
    assert learning_rate(config, 100, 0) == 0.01
    assert learning_rate(config, 10_000, 4) == pytest.approx(0.002)


@pytest.mark.parametrize(
    "step, expected", [(0, 0.1), (8, 0.5), (889, 890 / 899), (891, 0.99), (10**6, 0.99)]
)
def test_ema_momentum(step, expected):
    assert ema_momentum(CONFIG, step) == pytest.approx(expected, rel=1e-12)
