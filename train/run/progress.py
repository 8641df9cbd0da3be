"""The progress of a run, also within an epoch, and how SIGTERM stops it."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging

# Requests of a worker. All workers get the sum over their replicas, in which the `SAVE`
# of up to a million replicas stay below one `STOP`.
STOP, SAVE = 1.0, 2.0**-20
# Exit code of a preempted run: EX_TEMPFAIL of sysexits.h, "try again".
PREEMPTED = 75
_MAX_PROGRESS = 2**62  # TensorFlow counts with 64 bits


class Preempted(Exception):
    """A run has saved its progress after a request to stop."""


@dataclasses.dataclass
class Progress:
    """The progress of a run, saved with each checkpoint."""

    epoch: int = 0  # completed epochs
    step: int = 0  # completed steps
    best: float = -1.0  # value of the task's metric
    epoch_step: int = 0  # completed steps of the current epoch
    seen: int = 0  # readable images in these steps
    loss: float = 0.0  # sum of the losses of these images
    seconds: float = 0.0  # duration of these steps
    multiple: int = 0  # divides every batch size: `train.checks.batch_multiple`
    num_examples: int = 0  # training images
    repeats: int = 0  # successive batches of one size; 0 in old checkpoints
    images: int = 0  # `train.run.workdir.fingerprint`; 0 in old checkpoints

    @classmethod
    def of_checkpoint(cls, saved: dict, file: Path) -> "Progress":
        """Returns the progress that a checkpoint holds; one of others is refused."""
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        if unknown := sorted(set(saved) - set(fields)):
            raise ValueError(
                f"{file} was written by another version of train/, which saved "
                f"{', '.join(unknown)}. Continue with that version, or choose another "
                "--workdir."
            )
        for name, value in saved.items():
            if not _is_progress(name, fields[name], value):
                raise ValueError(
                    f"{file} is damaged: its {name} is {str(value)[:100]}. Start again "
                    "with another --workdir."
                )
        return cls(**saved)

    def add(self, steps: int, sums: dict[str, float], seconds: float) -> None:
        """Adds steps and their sums, from `train.step`."""
        self.step += steps
        self.epoch_step += steps
        self.seen += round(sums["count"])
        self.loss += sums["loss"]
        self.seconds = seconds

    def check_schedule(self, multiple: int, num_examples: int, repeats: int) -> None:
        """Restarts the current epoch if its batches have changed."""
        found = multiple, num_examples, repeats
        began = self.multiple, self.num_examples, self.repeats or repeats
        if found != began:
            self.restart_epoch(
                "Multiple of the batch size, training images and successive batches of "
                f"one size were {began}, and are {found}"
            )
        self.multiple, self.num_examples, self.repeats = found

    def restart_epoch(self, reason: str) -> None:
        """Starts the current epoch again, with a warning if it has begun."""
        if self.epoch_step:
            logging.warning(
                "epoch %d starts again, because its batches changed. Some of its "
                "images are used twice. %s",
                self.epoch + 1,
                reason,
            )
        self.epoch_step = self.seen = 0
        self.loss = self.seconds = 0.0

    def next_epoch(self, metric: float) -> "Progress":
        """Returns the progress after the current epoch."""
        return dataclasses.replace(
            self,
            epoch=self.epoch + 1,
            best=max(self.best, metric),
            epoch_step=0,
            seen=0,
            loss=0.0,
            seconds=0.0,
        )


def _is_progress(name: str, kind: object, value: Any) -> bool:
    """Tells whether a field of `Progress` may have a value."""
    if type(value) is not int and (kind is int or type(value) is not float):
        return False
    return (value >= 0 or name == "best") and abs(value) <= _MAX_PROGRESS


def end_on_sigterm() -> None:
    """Makes SIGTERM end the process with `PREEMPTED`: there is nothing to save yet."""

    def end(*_):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(2, b"SIGTERM: nothing to save; the same command continues\n")
        sys.exit(PREEMPTED)  # an exception, so that open contexts are closed

    signal.signal(signal.SIGTERM, end)


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets; clusters send it before they stop a process.

    Only the main thread receives signals; in another thread nothing sets the event.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(*_):
        logging.info("SIGTERM: saving after this step; a second one ends at once")
        event.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclasses.dataclass
class CheckpointManager:
    """Saves a run at intervals, and on a request to stop."""

    save: Callable[[Progress], None]
    seconds: float  # between two checkpoints
    stop: threading.Event
    saved: float = dataclasses.field(default_factory=time.monotonic)

    def request(self) -> float:
        """Returns what this worker asks for: `STOP`, `SAVE` if it is time, or 0."""
        if self.stop.is_set():
            return STOP
        return SAVE if self.is_time() else 0.0

    def is_time(self) -> bool:
        """Tells whether the last checkpoint is old enough for the next one."""
        return time.monotonic() - self.saved >= self.seconds

    def checkpoint(self, progress: Progress, shall_stop: bool) -> None:
        """Saves, and raises `Preempted` if all workers stop.

        The progress must be that of the weights: no training step may be in flight.
        """
        self.save(progress)
        self.saved = time.monotonic()
        if shall_stop:
            raise Preempted(
                f"stopped by SIGTERM after step {progress.step}, and saved; the same "
                "command continues"
            )
