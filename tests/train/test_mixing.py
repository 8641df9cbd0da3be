"""MixUp and CutMix: images, targets and losses of batches."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from keras_mobilevit.cross_entropy import smoothed_cross_entropy
from tests.helpers.runs import CLASSIFIER, TWO_EPOCHS_OF_DIGITS
from train import loop
from train.config import make_config
from train.data import pipeline as data
from train.data.digits import digits_source
from train.data.mixing import mix, next_real
from train.data.sampler import BatchShape
from train.data.source import evenly_spaced
from train.tasks.classification.task import CLASSIFICATION

MIXUP = types.SimpleNamespace(mixup=0.2, cutmix=0.0)
CUTMIX = types.SimpleNamespace(mixup=0.0, cutmix=1.0)
BOTH = types.SimpleNamespace(mixup=0.2, cutmix=1.0)
WEIGHTS = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
PARTNERS = [2, 1, 3, 4, 0, 5]
# Gray images that show what of each is in a mixture.
GRAYS = np.array([0, 50, 100, 150, 200, 250])
BATCH = {
    "image": np.uint8(np.broadcast_to(GRAYS[:, None, None, None], (6, 20, 30, 3))),
    "label": np.arange(6, dtype=np.int32),
    "weight": np.float32(WEIGHTS),
    "index": np.arange(6),
}


def mixtures(config, count: int) -> list[dict]:
    """Returns the mixtures that differ in the seed, as a pipeline makes them."""
    seeds = tf.data.Dataset.range(count, output_type=tf.int32)
    batch = {name: tf.constant(value) for name, value in BATCH.items()}
    mixed = seeds.map(lambda i: mix(batch, tf.stack([4, i]), config))
    return list(mixed.as_numpy_iterator())


def test_nothing_is_mixed_by_default():
    assert mix(BATCH, [0, 0], make_config("digits")) is BATCH


@pytest.mark.parametrize(
    ("weights", "partners"),
    [(WEIGHTS, PARTNERS), ([0, 0], [0, 1]), ([0, 1, 0], [0, 1, 2]), ([1], [0])],
)
def test_partners_have_a_weight(weights, partners):
    assert next_real(tf.constant(weights, tf.float32)).numpy().tolist() == partners


@pytest.mark.parametrize(
    "config", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"]
)
def test_images_contain_the_share_of_the_other_label(config):
    own, other = GRAYS, GRAYS[PARTNERS]
    for found in mixtures(config, 40):
        assert found.keys() == BATCH.keys() | {"other_label", "other_share"}
        np.testing.assert_array_equal(found["label"], BATCH["label"])
        np.testing.assert_array_equal(found["other_label"], PARTNERS)
        assert found["other_label"].dtype == np.int32
        share = found["other_share"]
        assert np.all(share == share[0]) and 0 <= share[0] <= 1
        assert found["image"].dtype == np.uint8
        means = found["image"].mean(axis=(1, 2, 3))
        # Rounded to whole values.
        np.testing.assert_allclose(means, own + share * (other - own), atol=0.51)
        # Where the weight is 0, nothing comes in; and nothing comes out of there.
        assert np.all(found["image"][1] == 50) and np.all(found["image"][5] == 250)


def test_half_of_the_batches_are_mixed_and_half_of_those_by_cutmix():
    kinds = []
    for found in mixtures(BOTH, 600):
        image = found["image"][0, ..., 0]  # 0, and 100 of the other
        if found["other_share"][0] == 0:
            kinds.append("none")
            np.testing.assert_array_equal(found["image"], BATCH["image"])
        else:
            is_pasted = len(np.unique(image)) == 2
            kinds.append("cutmix" if is_pasted or np.all(image == 100) else "mixup")
    counts = {kind: kinds.count(kind) for kind in ("none", "mixup", "cutmix")}
    # 300 and 150 each; a few shares are 0 or 1, or too small to be seen.
    assert 245 < counts["none"] < 360, counts
    assert 100 < counts["mixup"] < 195 and 100 < counts["cutmix"] < 195, counts


def test_cutmix_pastes_one_rectangle_of_any_size():
    shares = []
    for found in mixtures(CUTMIX, 300):
        pasted = found["image"][0, ..., 0] == 100
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns)
        for sides in (rows, columns):  # without gaps
            assert np.sum(np.diff(np.flatnonzero(sides)) > 1) == 0
        assert found["other_share"][0] == pytest.approx(pasted.mean(), abs=1e-6)
        shares.append(pasted.mean())
    drawn = np.array([share for share in shares if share > 0])
    # A uniform area, of which a part is cut off at the edges.
    assert 0.2 < drawn.mean() < 0.45 and drawn.max() > 0.7


def test_shares_of_mixup_are_of_the_beta_distribution():
    shares = np.array([m["other_share"][0] for m in mixtures(MIXUP, 1200)])
    drawn = shares[shares > 0]
    # Of beta(.2, .2): mean 1/2, variance .25/1.4; about two in five are in (.1, .9).
    assert 0.44 < drawn.mean() < 0.56
    assert drawn.var() == pytest.approx(0.25 / 1.4, rel=0.12)


def test_eager_is_as_in_a_pipeline():
    for i, expected in enumerate(mixtures(BOTH, 12)):
        found = mix(BATCH, [4, i], BOTH)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_the_loss_of_a_mixture_is_the_sum_of_two():
    logits = np.random.default_rng(0).normal(0, 3, (6, 10)).astype(np.float32)
    config = make_config("digits", mixup=0.2, label_smoothing=0.1)
    labels, others = BATCH["label"], np.int32(PARTNERS)
    share = np.linspace(0, 1, 6, dtype=np.float32)
    batch = {"label": labels, "other_label": others, "other_share": share}
    own, other = (
        smoothed_cross_entropy(x, logits, 0.1).numpy() for x in (labels, others)
    )
    loss = CLASSIFICATION.loss(config, batch, logits)
    np.testing.assert_allclose(loss, (1 - share) * own + share * other, rtol=1e-6)
    # It is also the cross-entropy with the mixed target.
    ones = (
        np.eye(10)[labels] * (1 - share)[:, None] + np.eye(10)[others] * share[:, None]
    )
    target = 0.9 * ones + 0.1 / 10
    expected = tf.nn.softmax_cross_entropy_with_logits(target, logits.astype(float))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    plain = CLASSIFICATION.loss(config, {"label": labels}, logits)
    np.testing.assert_array_equal(plain, own)


ALL = dict(rand_augment=2, random_erasing=0.25, mixup=0.2, cutmix=1.0)
CONFIG = dataclasses.replace(
    TWO_EPOCHS_OF_DIGITS, batch_size=64, sizes=(32,), gradient_clip=1.0, **ALL
)
SCHEDULE = [BatchShape(32, 32, 16)] * 13  # of 206 examples, so that 2 fill the last


def batches(first_step: int = 0, shard: data.Shard = data.WHOLE) -> list[dict]:
    source = evenly_spaced(digits_source(), "train", 200)
    dataset = data.train_batches(
        source, CONFIG, SCHEDULE, 1, first_step, shard, mix=CLASSIFICATION.mix
    )
    return list(dataset.as_numpy_iterator())


@pytest.fixture(scope="module")
def whole():
    return batches()


def assert_same_batches(found: list[dict], expected: list[dict]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
def test_the_rest_of_an_epoch_is_the_same(whole):
    assert_same_batches(batches(first_step=10), whole[10:])
    shares = {batch["other_share"][0] for batch in whole}
    assert 4 < len(shares) < 11  # 0 and about half of 13


def test_filling_is_not_mixed(whole):
    last, real = whole[-1], 14
    assert last["weight"].sum() == real
    labels, others = last["label"], last["other_label"]
    np.testing.assert_array_equal(others[real:], labels[real:])
    np.testing.assert_array_equal(others[:real], np.roll(labels[:real], -1))


@pytest.mark.slow
def test_the_batches_of_replicas_do_not_depend_on_the_pipelines():
    together = batches(10, data.Shard(replicas=2, first=0, count=2))
    alone = batches(10, data.Shard(replicas=2, first=1, count=1))
    assert_same_batches(alone, together[1::2])


@pytest.mark.slow
def test_a_run_with_all_of_it(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, decay_norms=False, batch_size=256)
    (record,) = loop.train_and_evaluate(CLASSIFIER, config, digits_source(), tmp_path)
    assert np.isfinite(record["train_loss"]) and record["traces"] == 1
    assert record["skipped_train"] == record["skipped_validation"] == 0
