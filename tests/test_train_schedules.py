"""Learning rate and momentum against numbers worked out by hand."""

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


@pytest.mark.parametrize(
    "step, expected", [(0, 0.1), (8, 0.5), (889, 890 / 899), (891, 0.99), (10**6, 0.99)]
)
def test_ema_momentum(step, expected):
    assert ema_momentum(CONFIG, step) == pytest.approx(expected, rel=1e-12)
