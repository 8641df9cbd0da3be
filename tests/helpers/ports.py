"""Ports for the servers of tests."""

import contextlib
import random
import socket

# Below the ports that Linux gives to connections and to whoever asks for port 0: a free
# one is not given away before the test's own server takes it.
RANGE = range(20_000, 32_000)


def free_port(count: int = 1) -> int:
    """Finds ports that follow each other and are free, and returns the first."""
    while True:
        first = random.SystemRandom().choice(RANGE)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
            return first
