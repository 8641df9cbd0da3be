"""A device never waits for Python: sums are read after later steps were queued."""

import dataclasses
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.image_files import make_folder, pil_file
from tests.helpers.runs import TWO_EPOCHS_OF_DIGITS
from train import loop
from train.data.digits import digits_source
from train.data.registry import load_source
from train.data.source import indexed_source
from train.evaluation import evaluate
from train.in_flight import InFlight
from train.run.progress import STOP, CheckpointManager, Preempted, Progress
from train.step import EvalResult
from train.tasks.classification.task import CLASSIFICATION

BATCH, IMAGES = 8, {"train": 94, "validation": 36}
CONFIG = dataclasses.replace(TWO_EPOCHS_OF_DIGITS, sizes=(32,), batch_size=BATCH)
STEPS = 12
LAST = range(STEPS - loop.LAG, STEPS)


@pytest.fixture(scope="module")
def digits():
    """Some of the digits."""
    source = digits_source()
    columns = {
        split: {key: values[:count] for key, values in source.columns[split].items()}
        for split, count in IMAGES.items()
    }
    return indexed_source(source.name, source.class_names, columns)


def undecoded(run, schedule, progress) -> list[dict]:
    """Makes the batches of an epoch without a pipeline, of black images."""
    batches = []
    left = run.source.num_examples["train"]
    for shape in schedule[progress.epoch_step :]:
        weight = np.float32(np.arange(shape.batch) < left)
        image = np.zeros((shape.batch, shape.height, shape.width, 3), np.uint8)
        batch = {"image": image, "weight": weight, "index": np.arange(shape.batch)}
        batch["index"] = np.where(weight, batch["index"], -1)
        batches.append({name: tf.constant(value) for name, value in batch.items()})
        left -= shape.batch
    return batches


@dataclasses.dataclass
class FakeStep:
    """A training step; `events` tells what happened in which order.

    The loss of the step `diverges_at` is NaN. This worker is asked to stop during the
    step `asked_at`, another one before the step `stops_at`; steps count from 0.
    """

    diverges_at: int = -1
    asked_at: int = -1
    stops_at: int = -1
    asked: threading.Event = dataclasses.field(default_factory=threading.Event)
    events: list = dataclasses.field(default_factory=list)
    count: int = 0

    def __call__(self, batches, rates, ema_momentums, request) -> dict:
        step, self.count = self.count, self.count + 1
        self.events.append(("queue", step))
        if step == self.asked_at:
            self.asked.set()
        return {
            "loss": math.nan if step == self.diverges_at else 1.0,
            "count": sum(tf.reduce_sum(batch["weight"]) for batch in batches),
            "not_finite": 0.0,
            "request": STOP * (step == self.stops_at) + float(request),
        }

    def save(self, progress: Progress) -> None:
        self.events.append(("save", progress.step))

    @property
    def saved(self) -> list[int]:
        return [step for what, step in self.events if what == "save"]


def train(
    source,
    step,
    manager=None,
    progress=None,
    make_batches=undecoded,
    lag: int = loop.LAG,
) -> dict:
    """Trains one epoch, and returns its record."""
    run = loop.Run(CLASSIFICATION, CONFIG, source, Path(), tf.distribute.get_strategy())
    manager = manager or saving(step, math.inf)
    read = loop._CallReader.read

    def noting_read(self, call):
        step.events.append(("read", call.steps[0]))
        read(self, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_train_batches", make_batches)
        patch.setattr(loop._CallReader, "read", noting_read)
        return loop.train_epoch(run, step, progress or Progress(), manager, lag)


def saving(step: FakeStep, seconds: float, stop=None) -> CheckpointManager:
    """Saves a run of a step after each `seconds`."""
    return CheckpointManager(step.save, seconds, stop or threading.Event(), saved=0.0)


class Clock:
    """A time of as many seconds as steps were queued."""

    def __init__(self, step: FakeStep):
        self.step = step

    def monotonic(self) -> float:
        return float(self.step.count)


def test_items_are_read_in_order_some_items_later():
    found: list[int] = []
    with InFlight(lambda item: 10 * item, found.append, lag=2) as in_flight:
        for item in range(5):
            in_flight.push(item)
            assert found == [10 * before for before in range(item - 1)]
        in_flight.drain()
        in_flight.drain()
        assert found == [0, 10, 20, 30, 40]
    with InFlight(int, found.append, lag=0) as at_once:
        at_once.push(5)
        assert found[-1] == 5


def test_an_item_is_copied_before_it_is_read_and_an_error_is_raised_when_it_is():
    copied = [threading.Event() for _ in range(3)]

    def copy(item: int) -> int:
        copied[item].set()
        if item == 1:
            raise ValueError("a broken item")
        return item

    found: list[int] = []
    with InFlight(copy, found.append, lag=2) as in_flight:
        for item in range(3):
            in_flight.push(item)
            assert copied[item].wait(10)
        assert found == [0]
        with pytest.raises(ValueError, match="a broken item"):
            in_flight.drain()


def test_the_sums_of_a_step_are_read_after_later_steps_were_queued(digits):
    step = FakeStep()
    record = train(digits, step)
    expected = []
    for number in range(STEPS):
        expected.append(("queue", number))
        if number >= loop.LAG:
            expected.append(("read", number - loop.LAG))
    assert step.events == expected + [("read", number) for number in LAST]
    assert record["step"] == STEPS and record["skipped_train"] == 0
    assert record["train_loss"] == pytest.approx(STEPS / IMAGES["train"])


def test_a_checkpoint_has_the_progress_of_all_queued_steps(digits, monkeypatch):
    """And those after it are in flight again."""
    step, progress, saved = FakeStep(), Progress(), []
    monkeypatch.setattr("train.run.progress.time", Clock(step))
    manager = CheckpointManager(
        lambda now: saved.append((now.step, now.epoch_step, now.seen, now.loss)),
        seconds=5.0,
        stop=threading.Event(),
        saved=0.0,
    )
    train(digits, step, manager, progress)
    assert saved == [(5, 5, 5 * BATCH, 5.0), (10, 10, 10 * BATCH, 10.0)]
    assert step.events.index(("read", 4)) < step.events.index(("queue", 5))
    assert step.events.index(("read", 5)) > step.events.index(("queue", 7))
    assert progress.seen == IMAGES["train"]


@pytest.mark.parametrize("seconds", [0.0, math.inf])
@pytest.mark.parametrize("at", [0, 4, STEPS - 1])
def test_a_diverged_step_is_named_and_never_saved(digits, at, seconds):
    step = FakeStep(diverges_at=at)
    with pytest.raises(
        FloatingPointError, match=rf"nan at step {at + 1} of the run.*{BATCH} .*32x32"
    ):
        train(digits, step, saving(step, seconds))
    assert step.saved == (list(range(1, at + 1)) if seconds == 0 else [])
    if seconds:
        assert step.count == min(at + loop.LAG + 1, STEPS)


def test_a_diverged_step_is_not_saved_on_a_request_to_stop(digits):
    step = FakeStep(diverges_at=3, asked_at=3)
    with pytest.raises(FloatingPointError, match="step 4 of"):
        train(digits, step, saving(step, math.inf, step.asked))
    assert not step.saved and step.count == 4


def test_a_process_alone_stops_at_once(digits):
    step, progress = FakeStep(asked_at=6), Progress()
    with pytest.raises(Preempted, match="after step 7, and saved"):
        train(digits, step, saving(step, math.inf, step.asked), progress)
    assert step.saved == [7] and progress.seen == 7 * BATCH


@pytest.fixture
def as_worker(monkeypatch):
    """Lets the loop run as one of several workers, which know the others' requests."""
    monkeypatch.setattr(loop, "has_workers", lambda strategy: True)


@pytest.mark.parametrize("is_asked", [True, False])
def test_workers_stop_after_the_same_step(digits, as_worker, is_asked):
    """The one that is asked to stop, and the one that hears of it in the sums."""
    step = FakeStep(asked_at=3) if is_asked else FakeStep(stops_at=4)
    with pytest.raises(Preempted, match=f"after step {5 + loop.LAG}, and saved"):
        train(digits, step, saving(step, math.inf, step.asked))
    assert step.saved == [step.count] == [5 + loop.LAG]


def test_workers_save_together_and_stop_with_the_next_checkpoint(digits, as_worker):
    """Who wants to save asks the others, so all of them read the same calls."""
    step = FakeStep()
    train(digits, step, saving(step, 0.0))
    assert step.saved == list(range(1 + loop.LAG, STEPS + 1, 1 + loop.LAG))
    step = FakeStep(stops_at=4)
    with pytest.raises(Preempted, match="after step 6, and saved"):
        train(digits, step, saving(step, 0.0))
    assert step.saved == [3, 6]


def test_workers_that_hear_of_it_too_late_evaluate_first(digits, as_worker):
    record = train(digits, FakeStep(stops_at=STEPS - loop.LAG))
    assert record["step"] == STEPS


def test_workers_that_diverge_end_after_the_same_step(digits, as_worker):
    for seconds, queued in ((0.0, 6), (math.inf, 5 + loop.LAG)):
        step = FakeStep(diverges_at=4)
        with pytest.raises(FloatingPointError, match="step 5 of"):
            train(digits, step, saving(step, seconds))
        assert step.saved == ([3] if seconds == 0 else [])
        assert step.count == queued


class Device:
    """Computes queued steps one after the other, each in some seconds.

    Like a GPU it copies a result only after all that was queued before the copy.
    """

    def __init__(self, seconds: float):
        self.seconds, self.busy_until = seconds, 0.0

    def queue(self) -> None:
        start = max(self.busy_until, time.perf_counter())
        self.busy_until = start + self.seconds

    def __float__(self) -> float:
        time.sleep(max(0.0, self.busy_until - time.perf_counter()))
        return 1.0


@dataclasses.dataclass
class StepOnDevice(FakeStep):
    """A step before which Python has as much to do as the device has in it."""

    device: Device | None = None

    def __call__(self, *arguments) -> dict:
        time.sleep(self.device.seconds)
        self.device.queue()
        return super().__call__(*arguments) | {"loss": self.device}


@pytest.mark.slow
def test_a_device_does_not_wait_for_python(digits):
    """Where the device and Python need as long, both together take half the time."""
    seconds = {}
    for lag in (0, loop.LAG):
        start = time.perf_counter()
        record = train(digits, StepOnDevice(device=Device(0.05)), lag=lag)
        seconds[lag] = time.perf_counter() - start
        assert record["train_loss"] == pytest.approx(STEPS / IMAGES["train"])
    assert seconds[loop.LAG] < seconds[0] - 0.3  # of 0.6


def test_an_evaluation_reads_a_batch_after_the_next_was_queued(digits):
    events = []
    task = dataclasses.replace(
        CLASSIFICATION,
        statistics=lambda names, predictions, targets: {
            "images": np.int64(len(targets["label"]))
        },
        score=lambda names, found: {"images": int(found["images"])},
    )

    def step(batch: dict) -> EvalResult:
        events.append("queue")
        return EvalResult({"count": tf.reduce_sum(batch["weight"])}, {}, {**batch})

    found = evaluate.evaluate(
        task,
        step,
        digits,
        evaluate.EvalInputs(32, 1.0, 10),
        tf.distribute.get_strategy(),
        lambda sums: events.append(sums["count"]),
    )
    assert found.seen == found.metrics["images"] == IMAGES["validation"]
    queued = "queue"
    assert events == [queued, queued, 10.0, queued, 10.0, queued, 10.0, 6.0]


def test_images_that_cannot_be_read_are_named_late(tmp_path, caplog):
    photo = pil_file("RGB", "red", "JPEG")
    classes = {"a": {"1.jpg": b"", "2.jpg": photo}, "b": {"1.jpg": photo}}
    source = load_source("classification", f"folder:{make_folder(tmp_path, classes)}")
    record = train(source, FakeStep(), make_batches=loop._train_batches)
    assert record["skipped_train"] == 1
    (message,) = (m for m in caplog.messages if m.startswith("skipped, cannot be read"))
    assert "train/a/1.jpg (the file is empty)" in message
