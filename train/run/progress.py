"""How far a run is, also within an epoch, and what makes it stop early."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging

# What a preempted run exits with: EX_TEMPFAIL of sysexits.h, "try again". The same
# command continues it.
PREEMPTED = 75


class Preempted(Exception):
    """A run that was asked to stop, and has saved where it is."""


@dataclasses.dataclass
class Progress:
    """Where a run is; all of it is saved with a checkpoint.

    Attributes:
        epoch: epochs done.
        step: steps done in all.
        best: of the task's metric so far.
        epoch_step: steps done of the epoch that is under way.
        seen: its images so far that could be read.
        loss: sum of its examples' losses so far.
        seconds: that it took so far.
        multiple: of which its batches are one, see `train.data.sampler.batch_shapes`.
        num_examples: of an epoch.
        repeats: batches of a size that follow each other, see
            `train.data.sampler.epoch_schedule`; 0 if an earlier version did not save it.
        images: tells them from others, see `train.run.workdir.fingerprint`; 0 likewise.
    """

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    epoch_step: int = 0
    seen: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    multiple: int = 0
    num_examples: int = 0
    repeats: int = 0
    images: int = 0

    def add(self, steps: int, sums: dict[str, float], seconds: float) -> None:
        """Brings it forward by some steps, with what `train.step` sums up of them."""
        self.step += steps
        self.epoch_step += steps
        self.seen += round(sums["count"])
        self.loss += sums["loss"]
        self.seconds = seconds

    def check_schedule(self, multiple: int, num_examples: int, repeats: int) -> None:
        """Begins an epoch again that cannot be continued where it stopped.

        Args:
            multiple: of which batches are one.
            num_examples: of an epoch.
            repeats: batches of a size that follow each other.
        """
        found = multiple, num_examples, repeats
        began = self.multiple, self.num_examples, self.repeats or repeats
        if self.epoch_step and found != began:
            logging.warning(
                "epoch %d begins again, and its images so far count twice: it was "
                "stopped with batches that are multiples of %d and follow each other "
                "in groups of %d, and %d images, which now are %d, %d and %d",
                self.epoch + 1,
                *(began[0], began[2], began[1], multiple, repeats, num_examples),
            )
            self.epoch_step = self.seen = 0
            self.loss = self.seconds = 0.0
        self.multiple, self.num_examples, self.repeats = found

    def next_epoch(self, metric: float) -> "Progress":
        """Returns where a run is when the epoch that is under way is done."""
        return dataclasses.replace(
            self,
            epoch=self.epoch + 1,
            best=max(self.best, metric),
            epoch_step=0,
            seen=0,
            loss=0.0,
            seconds=0.0,
        )


def sigterm_ends() -> None:
    """Lets SIGTERM end the process with `PREEMPTED` while nothing is to be saved.

    Before the first step, and after the last: the same command begins or continues.
    A second SIGTERM ends it at once.
    """

    def end(*_):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(2, b"SIGTERM: nothing is to be saved; the same command continues\n")
        sys.exit(PREEMPTED)  # through whatever has to be closed

    signal.signal(signal.SIGTERM, end)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Gives an event that SIGTERM sets, which clusters send some seconds in advance.

    Signals reach the main thread only; in another one nothing sets the event.
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
    """Saves a run from time to time, and when it is asked to stop.

    Attributes:
        save: from a `Progress`, saves everything.
        seconds: between two savings.
        stop: event that asks the run to stop.
    """

    save: Callable[[Progress], None]
    seconds: float
    stop: threading.Event
    saved: float = dataclasses.field(default_factory=time.monotonic)

    def asked(self) -> float:
        """Returns 1.0 if this process was asked to stop, to be told to all workers."""
        return float(self.stop.is_set())

    def after_step(self, progress: Progress, shall_stop: bool) -> None:
        """Saves if it is time, or the run shall stop.

        Args:
            progress: of the run.
            shall_stop: whether any worker was asked to, so that all stop at one step.

        Raises:
            Preempted: if it shall.
        """
        if not shall_stop and time.monotonic() - self.saved < self.seconds:
            return
        self.save(progress)
        self.saved = time.monotonic()
        if shall_stop:
            raise Preempted(
                f"Stopped by SIGTERM after step {progress.step}, and saved. The same "
                "command continues."
            )
