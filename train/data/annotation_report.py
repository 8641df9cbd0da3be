"""Counts the annotations that a reader fixes or skips, and logs the counts."""

from collections import Counter

from absl import logging


class AnnotationReport:
    """Counts what a reader fixes or skips, with the first file for each kind."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.first_names: dict[str, str] = {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Counts cases of one kind in the file `name`; a count of 0 adds nothing."""
        if count:
            self.counts[kind] += count
            self.first_names.setdefault(kind, name)

    def log(self) -> None:
        """Logs one warning for each kind."""
        for kind, count in self.counts.items():
            first = self.first_names[kind]
            logging.warning("%s: %d, the first in %s", kind, count, first)
