"""Records of a run: one JSON line per epoch, TensorBoard, curves and pictures."""

import codecs
import filecmp
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging
from matplotlib.figure import Figure
from PIL import Image

from keras_mobilevit.files import MAX_TEXT_BYTES, atomic_write, check_file, parse_json
from train.tasks.drawing import contact_sheet

JPEG_QUALITY = 90
_CURVES = ("train_loss", "loss", "learning_rate")  # beside the best metric
_MAX_INTEGER = 2**53  # the largest integers that are exact as floats


def read_records(path) -> list[dict]:
    """Reads the objects in the lines of a file, such as `metrics.jsonl`.

    The file may be missing. A damaged line is skipped with a warning; the last one may
    be incomplete, since a killed process leaves it so.
    """
    return [record for _, record in _numbered_records(Path(path))]


def _numbered_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yields the number of each line that holds an object, and the object."""
    if not path.exists():
        return
    for number, line in enumerate(_lines(path), 1):
        try:
            record = parse_json(line.decode(), "it") if line.strip() else None
        except UnicodeDecodeError:
            logging.warning("skipped line %d of %s: it is not in UTF-8", number, path)
            continue
        except ValueError as error:
            logging.warning("skipped line %d of %s: %s", number, path, error)
            continue
        if isinstance(record, dict):
            yield number, record
        elif line.strip():
            logging.warning("skipped line %d of %s: it is no object", number, path)


def _lines(path: Path) -> list[bytes]:
    # Each is decoded by itself: one damaged byte must not take the others with it.
    check_file(path, MAX_TEXT_BYTES)
    return path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")


def read_epochs(path, best_metric: str, *others: str) -> list[dict]:
    """Reads a `metrics.jsonl`: records with the numbers that `plot_curves` needs.

    They also have numbers for the names in `others`. Other records are skipped with a
    warning; see `read_records`.
    """
    needed = ("epoch", *_CURVES, best_metric, *others)
    records = []
    for number, record in _numbered_records(Path(path)):
        wrong = [name for name in needed if not _is_number(record.get(name))]
        unknown = (name for name in record if name not in needed)
        # Deep lists cannot be written again.
        wrong += [ascii(x)[:80] for x in unknown if isinstance(record[x], list | dict)]
        if wrong:
            logging.warning(
                "skipped line %d of %s: it has no number for %s. Is it a file of "
                "train/main.py?",
                number,
                path,
                ", ".join(wrong),
            )
        else:
            records.append(record)
    return records


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not isinstance(value, int) or abs(value) <= _MAX_INTEGER


def plot_curves(records: list[dict], best_metric: str) -> Figure:
    """Draws loss, best metric and learning rate over the epochs of `read_epochs`."""
    epochs = [record["epoch"] for record in records]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss, metric, rate = figure.subplots(1, 3)
    marker = "o" if len(records) == 1 else None
    for key, label in (("train_loss", "training"), ("loss", "validation")):
        loss.plot(epochs, [r[key] for r in records], label=label, marker=marker)
    loss.set(title="Loss", xlabel="epoch", ylim=(0, None))
    loss.legend()
    values = [100 * record[best_metric] for record in records]
    metric.plot(epochs, values, color="tab:green", marker=marker)
    metric.set(title=f"Validation {best_metric}, %", xlabel="epoch")
    rates = [record["learning_rate"] for record in records]
    rate.plot(epochs, rates, color="tab:gray", marker=marker)
    rate.set(title="Learning rate", xlabel="epoch", ylim=(0, None))
    for axes in (loss, metric, rate):
        axes.grid(alpha=0.3)
    return figure


def _count_lines(file: Path) -> int:
    return sum(bool(line.strip()) for line in _lines(file))


def _copy_damaged(file: Path) -> None:
    numbers = itertools.chain([""], map("_{}".format, itertools.count(2)))
    copies = (file.with_name(f"metrics.damaged{number}.jsonl") for number in numbers)
    # A run that ends before its next record finds the same lines again.
    copy = next(x for x in copies if not x.exists() or filecmp.cmp(file, x, False))
    with atomic_write(copy) as temporary:
        shutil.copyfile(file, temporary)
    logging.warning("copied %s with its damaged lines to %s", file, copy)


class RecordWriter:
    """Writes the records of a run, and the pictures that `draw` makes of each epoch.

    Drops records after `epochs_done`: a killed process may have left them. If a line
    cannot be read, the whole file is copied to `metrics.damaged.jsonl` first, or to
    `metrics.damaged_2.jsonl` if there is another one.
    """

    def __init__(
        self,
        workdir,
        epochs_done: int,
        best_metric: str,
        draw: Callable[[], Sequence[np.ndarray]] = list,
    ):
        self.workdir = Path(workdir)
        self.best_metric = best_metric
        self.draw = draw
        file = self.workdir / "metrics.jsonl"
        records = read_epochs(file, best_metric)
        if file.exists() and len(records) < _count_lines(file):
            _copy_damaged(file)
        self.records = [r for r in records if r["epoch"] <= epochs_done]
        self.summaries = tf.summary.create_file_writer(
            str(self.workdir / "tensorboard")
        )

    def write(self, record: dict) -> None:
        """Adds the record of one epoch: numbers by name, one of them `epoch`."""
        self.records.append(record)
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        with atomic_write(self.workdir / "metrics.jsonl") as temporary:
            temporary.write_text(lines, encoding="utf-8")
        with self.summaries.as_default(step=record["epoch"]):
            for key, value in record.items():
                tf.summary.scalar(key, value)
        self.summaries.flush()
        with atomic_write(self.workdir / "curves.png") as temporary:
            plot_curves(self.records, self.best_metric).savefig(temporary, dpi=100)
        if pictures := self.draw():
            self._write_pictures(contact_sheet(pictures), record["epoch"])

    def _write_pictures(self, sheet: np.ndarray, epoch: int) -> None:
        with atomic_write(self.workdir / "predictions.png") as temporary:
            Image.fromarray(sheet).save(temporary)
        # JPEG, which `tf.summary.image` cannot write: PNG takes three times the space,
        # and TensorBoard keeps the pictures of all epochs.
        metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "images"})
        jpeg = tf.io.encode_jpeg(sheet, quality=JPEG_QUALITY)
        height, width = map(str, sheet.shape[:2])
        with self.summaries.as_default(step=epoch):
            content = tf.stack([width, height, jpeg])
            tf.summary.write("predictions", content, metadata=metadata)
        self.summaries.flush()
