"""Records of a run: one JSON line per epoch, TensorBoard, curves and pictures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image

from keras_mobilevit.files import atomic_write
from train.tasks.drawing import contact_sheet

JPEG_QUALITY = 90


def read_records(path) -> list[dict]:
    """Reads a `metrics.jsonl` that may be missing, or have an incomplete last line."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def plot_curves(records: list[dict], best_metric: str) -> Figure:
    """Draws loss, best metric and learning rate over the epochs of `read_records`."""
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


class RecordWriter:
    """Writes the records of a run, and the pictures that `draw` makes of each epoch.

    Drops records after `epochs_done`: a killed process may have left them.
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
        records = read_records(self.workdir / "metrics.jsonl")
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
