"""Batches on their way to the devices."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.batches import CONFIG
from tests.helpers.runs import DETECTION_CONFIG, DETECTOR, SMALL
from train.data import pipeline as data
from train.data.digits import box_scene_source, digits_source, mask_scene_source
from train.data.sampler import BatchShape
from train.distribution import inputs
from train.loop import train_and_evaluate
from train.tasks.segmentation.task import SEGMENTATION

BATCH = {
    "image": np.zeros((4, 8, 8, 3), np.uint8),
    "label": np.arange(4, dtype=np.int32),
    "weight": np.ones(4, np.float32),
    "index": np.arange(4),
}


def dataset_of(batch: dict) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(batch).repeat(3)


def with_gpu(monkeypatch) -> list:
    """Lets `inputs` find a GPU; the batches go to the CPU all the same."""
    devices, prefetched = [], inputs._prefetched

    def to_cpu(dataset, device: str) -> tf.data.Dataset:
        devices.append(device)
        return prefetched(dataset, "/CPU:0")

    found = [tf.config.LogicalDevice("/device:GPU:0", "GPU")]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: found)
    monkeypatch.setattr(inputs, "_prefetched", to_cpu)
    return devices


def test_a_cpu_gets_the_data_set_as_it_is():
    dataset = dataset_of(BATCH)
    found = inputs.distribute(tf.distribute.get_strategy(), lambda shard: dataset)
    assert found is dataset


def test_a_gpu_gets_batches_before_it_asks_and_no_int32(monkeypatch):
    """TensorFlow would copy int32 back to the host, in each step."""
    devices = with_gpu(monkeypatch)
    strategy = tf.distribute.get_strategy()
    found = list(inputs.distribute(strategy, lambda shard: dataset_of(BATCH)))
    assert devices == ["/GPU:0"] and len(found) == 3
    for batch in found:
        assert all(value.dtype != tf.int32 for value in batch.values())
        received = inputs.receive(batch)
        assert received.keys() == BATCH.keys()
        for name, value in BATCH.items():
            assert received[name].dtype == value.dtype
            np.testing.assert_array_equal(received[name], value)


@pytest.mark.parametrize(
    ("strings", "to_devices"),
    [({"name": np.array([b"a", b"b", b"c", b"d"])}, True), ({}, False)],
    ids=["strings", "batches that Python reads"],
)
def test_what_stays_on_the_host(strings, to_devices, monkeypatch):
    devices = with_gpu(monkeypatch)
    dataset = dataset_of(BATCH | strings)
    strategy = tf.distribute.get_strategy()
    found = inputs.distribute(strategy, lambda shard: dataset, to_devices)
    assert found is dataset and not devices


def test_a_shard_is_made_once(monkeypatch):
    made = []

    def make(shard: data.Shard) -> tf.data.Dataset:
        made.append(shard)
        return dataset_of(BATCH)

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    found = list(inputs.distribute(strategy, make))
    assert len(made) == 1 and len(found) == 3
    np.testing.assert_array_equal(found[0]["label"], BATCH["label"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "config", "source"),
    [
        (SMALL, dataclasses.replace(CONFIG, eval_size=32), digits_source),
        pytest.param(
            DETECTOR,
            DETECTION_CONFIG,
            lambda: box_scene_source(counts={"train": 16, "validation": 8}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["classification", "detection"],
)
def test_a_run_with_sent_batches_is_the_same(
    task, config, source, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, epochs=1, sizes=config.sizes[:1])
    found = []
    for name in ("plain", "sent"):
        if name == "sent":
            devices = with_gpu(monkeypatch)
        keras.utils.set_random_seed(1)
        found += train_and_evaluate(task, config, source(), tmp_path / name)
    assert devices == ["/GPU:0"] * 2  # to train and to evaluate
    plain, sent = found
    for name in plain.keys() - {"images_per_second", "epoch_seconds"}:
        assert sent[name] == pytest.approx(plain[name], rel=1e-4), name


def test_batches_of_training_have_no_strings():
    """So they can be sent to devices; masks of their own sizes in evaluation cannot."""
    schedule = [BatchShape(32, 32, 8)]
    batches = data.train_batches(digits_source(), CONFIG, schedule, 0)
    assert not inputs._has_strings(batches)
    scenes = mask_scene_source(counts={"train": 2, "validation": 2})
    config = dataclasses.replace(CONFIG, task="segmentation")
    load = SEGMENTATION.train_example
    batches = data.train_batches(scenes, config, schedule, 0, load=load)
    assert not inputs._has_strings(batches)
    load = SEGMENTATION.eval_example
    assert inputs._has_strings(
        data.eval_batches(scenes, "validation", 32, 2, 1.0, load=load)
    )
