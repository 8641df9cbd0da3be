"""What a device still computes, read in order after later work was queued.

A device runs what Python has queued for it. If each result were read before the next
step is queued, the device would wait while Python works, and Python while it computes.
"""

import collections
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class InFlight(Generic[Item]):
    """Reads each item after `lag` later ones were pushed, the oldest first.

    With several workers the lag is the same on all of them. `drain` reads the rest,
    before anything that depends on all results, such as a checkpoint.
    """

    def __init__(self, read: Callable[[Item], None], lag: int):
        self._read = read
        self._lag = lag
        self._items: collections.deque[Item] = collections.deque()

    def push(self, item: Item) -> None:
        """Adds an item that was queued for the device."""
        self._items.append(item)
        self._read_all_but(self._lag)

    def drain(self) -> None:
        """Reads all items that are left."""
        self._read_all_but(0)

    def _read_all_but(self, count: int) -> None:
        while len(self._items) > count:
            self._read(self._items.popleft())
