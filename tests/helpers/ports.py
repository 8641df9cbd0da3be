"""Ports for the servers of tests."""

import contextlib
import random
import socket

# Linux gives higher ports to connections and to servers that ask for port 0. So a port
# in this range stays free until the test's server takes it.
RANGE = range(20_000, 32_000)


def free_port(count: int = 1) -> int:
    """Returns the first of `count` consecutive free ports."""
    while True:
        first = random.SystemRandom().choice(RANGE)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
            return first
