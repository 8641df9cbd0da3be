"""A queue of results that a device still computes.

A device runs what Python has queued for it. If each result were read before the next
step is queued, the device would wait while Python works, and Python while it computes.
"""

import collections
import concurrent.futures
from collections.abc import Callable
from typing import Generic, TypeVar

Queued = TypeVar("Queued")
Copied = TypeVar("Copied")


class InFlight(Generic[Queued, Copied]):
    """Copies results from a device in a thread, and reads them some items later.

    The copy begins as soon as an item is pushed: a GPU copies only after all that is
    queued at that time, so a later copy would wait for later steps too. `read` gets the
    copy of each item after `lag` later ones were pushed, the oldest first. With several
    workers the lag is the same on all of them. `drain` reads the rest, before anything
    that depends on all results, such as a checkpoint.

    Example:
    >>> with InFlight(as_numbers, totals.append, lag=2) as in_flight:
    ...     for batch in batches:
    ...         in_flight.push(step(batch))
    ...     in_flight.drain()
    """

    def __init__(
        self,
        copy: Callable[[Queued], Copied],
        read: Callable[[Copied], None],
        lag: int,
    ):
        self._copy, self._read, self._lag = copy, read, lag
        self._copies: collections.deque[concurrent.futures.Future] = collections.deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def __enter__(self) -> "InFlight":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(cancel_futures=True)

    def push(self, item: Queued) -> None:
        """Adds an item that was queued for the device."""
        self._copies.append(self._thread.submit(self._copy, item))
        self._read_all_but(self._lag)

    def drain(self) -> None:
        """Reads all items that are left."""
        self._read_all_but(0)

    def _read_all_but(self, count: int) -> None:
        while len(self._copies) > count:
            self._read(self._copies.popleft().result())
