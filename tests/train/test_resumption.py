"""A run that is stopped anywhere continues as if nothing had happened."""

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from tests.helpers.runs import TWO_EPOCHS_OF_DIGITS
from train import loop
from train.data import pipeline as data
from train.data import sampler
from train.data.digits import digits_source
from train.in_flight import InFlight
from train.run.progress import (
    SAVE,
    STOP,
    CheckpointManager,
    Preempted,
    Progress,
    stop_on_sigterm,
)
from train.run.workdir import CHECKPOINT
from train.tasks.classification.task import CLASSIFICATION

CONFIG = dataclasses.replace(TWO_EPOCHS_OF_DIGITS, epochs=1)


def checkpoint(workdir) -> dict:
    return load_file(Path(workdir) / CHECKPOINT)


@pytest.mark.slow
def test_the_rest_of_an_epoch_is_the_same():
    source = digits_source()
    shapes = sampler.batch_shapes(CONFIG.sizes, CONFIG.base_size, CONFIG.batch_size)
    schedule = sampler.epoch_schedule(shapes, source.num_examples["train"], 3, 0)
    whole = list(data.train_batches(source, CONFIG, schedule, 3))
    assert len(whole) == len(schedule) > 3
    for first in (3, len(schedule)):
        rest = list(data.train_batches(source, CONFIG, schedule, 3, first))
        assert len(rest) == len(schedule) - first
        for one, other in zip(whole[first:], rest):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def test_the_manager_asks_to_save_when_it_is_time_and_to_stop():
    saved, stop = [], threading.Event()
    manager = CheckpointManager(saved.append, 3600.0, stop)
    assert manager.request() == 0.0
    manager.saved -= 3600
    assert 0 < 1000 * manager.request() == 1000 * SAVE < STOP
    manager.checkpoint(Progress(step=2), False)
    assert [progress.step for progress in saved] == [2]
    assert manager.request() == 0.0
    stop.set()
    assert manager.request() == STOP
    with pytest.raises(Preempted, match="SIGTERM after step 4, and saved; the same"):
        manager.checkpoint(Progress(step=4), True)
    assert [progress.step for progress in saved] == [2, 4]


def test_only_the_main_thread_is_asked_to_stop():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
    assert signal.getsignal(signal.SIGTERM) is before
    entered = []

    def elsewhere():
        with stop_on_sigterm() as event:
            entered.append(event.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert entered == [False]


def test_an_epoch_that_was_stopped_counts_every_image_once():
    """With a step that adds up labels in place of a network."""
    source, strategy = digits_source(), tf.distribute.get_strategy()

    def step(batches, rates, ema_momentums, request):
        (batch,) = batches
        labels = tf.cast(batch["label"], tf.float32)
        return {
            "loss": tf.reduce_sum(batch["weight"] * labels),
            "count": tf.reduce_sum(batch["weight"]),
            "not_finite": 0.0,
            "request": request,
        }

    def epoch(progress: Progress, stop_after: int = 10**6) -> dict:
        stop = threading.Event()

        def save(progress):
            if progress.epoch_step == stop_after:
                raise Preempted

        manager = CheckpointManager(save, 0.0, stop)
        run = loop.Run(CLASSIFICATION, CONFIG, source, Path(), strategy)
        return loop.train_epoch(run, step, progress, manager)

    whole = epoch(Progress())
    progress = Progress()
    with pytest.raises(Preempted):
        epoch(progress, stop_after=2)
    saved = json.loads(json.dumps(dataclasses.asdict(progress)))
    assert saved["step"] == saved["epoch_step"] == 2
    rest = epoch(Progress(**saved))
    for key in ("step", "train_loss", "learning_rate", "skipped_train"):
        assert rest[key] == whole[key], key
    assert rest["epoch_seconds"] > saved["seconds"] > 0
    done = Progress(**saved | {"epoch_step": whole["step"], "step": whole["step"]})
    again = epoch(done, stop_after=2)
    assert again["step"] == whole["step"]  # nothing is left, as after an evaluation


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["after two steps", "during the evaluation"])
def test_a_stopped_run_continues_within_the_epoch(stopped, tmp_path, monkeypatch):
    source, calls = digits_source(), []
    shapes = sampler.batch_shapes(CONFIG.sizes, CONFIG.base_size, CONFIG.batch_size)
    count = source.num_examples["train"]
    schedule = sampler.epoch_schedule(shapes, count, 0, CONFIG.seed)
    is_early = stopped == "after two steps"
    stopped_at = 2 if is_early else len(schedule) + 1  # the first batch that evaluates
    push = InFlight.push

    def stopping(self, call):
        calls.append(call)
        if len(calls) == stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # until Python handles it
        push(self, call)

    with monkeypatch.context() as patch:
        patch.setattr(InFlight, "push", stopping)
        with pytest.raises(Preempted):
            loop.train_and_evaluate(CLASSIFICATION, CONFIG, source, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    groups_before = checkpoint(tmp_path)

    (record,) = loop.train_and_evaluate(CLASSIFICATION, CONFIG, source, tmp_path)
    assert record["step"] == len(schedule)
    assert record["epoch"] == 1 and record["skipped_train"] == 0
    assert record["images_per_second"] * record["epoch_seconds"] == pytest.approx(count)
    weights = next(name for name in groups_before if name.startswith("model/"))
    changed = not np.array_equal(groups_before[weights], checkpoint(tmp_path)[weights])
    assert changed == (is_early)
