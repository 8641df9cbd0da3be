"""Counts what is repaired or left out of training data, to tell it at the end."""

from collections import Counter

from absl import logging


class Repairs:
    """Counts what was repaired or left out."""

    def __init__(self):
        self.counts, self.examples = Counter(), {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        if count:
            self.counts[kind] += count
            self.examples.setdefault(kind, name)

    def log(self) -> None:
        for kind, count in self.counts.items():
            logging.warning("%s: %d, the first in %s", kind, count, self.examples[kind])
