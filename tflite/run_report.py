"""Writes a page about a trained and converted model.

Example:
  python tflite/run_report.py --workdir=runs/demo --tflite=runs/demo/best_48_fp32.tflite

Evaluates best.keras and the file on the validation images, and writes report.html
(curves, confusion matrix, sample predictions, latency) and report.json into --workdir.
It reads what train/main.py and tflite/benchmark.py left: config.json, metrics.jsonl and
latency.jsonl.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"

import base64
import dataclasses
import html
import io
import json

import keras
import numpy as np
from absl import app, flags, logging
from matplotlib.figure import Figure
from tqdm import tqdm

import keras_mobilevit  # noqa: F401  registers the layers that best.keras names
from keras_mobilevit.classifier import output_activation
from keras_mobilevit.files import atomic_write
from keras_mobilevit.litert import LiteRTModel
from tflite.drivers.measurement import MEASURED
from tflite.validation.checksum import sha256
from train.config import TrainConfig, load_config
from train.data.pipeline import eval_batches
from train.data.registry import load_source
from train.data.source import Source
from train.run.records import plot_curves, read_records
from train.tasks.classification.metric import confusion_matrix

READABLE_CLASSES = 40  # more names than this do not fit beside a confusion matrix
SAMPLES = 24  # pictures of predictions, mistakes first


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The validation images that could be read, and what both models say of them.

    Attributes:
        images: uint8 `[images, size, size, 3]` of those that are shown.
        shown: indices of those.
        labels: `[images]`.
        keras: class indices `[images]` by best.keras.
        tflite: class indices `[images]` by the converted file.
        max_abs: largest absolute difference of their outputs.
    """

    images: np.ndarray
    shown: list[int]
    labels: np.ndarray
    keras: np.ndarray
    tflite: np.ndarray
    max_abs: float

    @property
    def top1_keras(self) -> float:
        return float(np.mean(self.keras == self.labels))

    @property
    def top1_tflite(self) -> float:
        return float(np.mean(self.tflite == self.labels))


def predict(
    model: keras.Model, litert: LiteRTModel, source: Source, config: TrainConfig
) -> Predictions:
    """Runs both models over the validation split."""
    size = litert.input_shape[1]
    batches = eval_batches(
        source, "validation", size, config.batch_size, config.eval_crop
    )
    labels, by_keras, by_tflite, max_abs = [], [], [], 0.0
    mistakes, others = {}, {}
    total = source.num_examples["validation"]
    with tqdm(total=total, unit="img", disable=None, leave=False) as progress:
        for batch in batches:
            real = batch["weight"].numpy() > 0
            images = batch["image"].numpy()[real]
            inputs = images.astype(np.float32)
            reference = model.predict_on_batch(inputs)
            (outputs,) = litert.predict(inputs).values()
            difference = float(np.abs(reference - outputs).max())
            if not np.isfinite(difference):
                raise ValueError(
                    "best.keras or the .tflite returns numbers that are not finite for "
                    f"a validation image of {config.data}."
                )
            max_abs = max(max_abs, difference)
            for image, label, guess in zip(
                images, batch["label"].numpy()[real], outputs.argmax(-1)
            ):
                chosen = others if guess == label else mistakes
                if len(chosen) < SAMPLES:
                    chosen[len(labels)] = image
                labels.append(label)
                by_tflite.append(guess)
            by_keras.extend(reference.argmax(-1))
            progress.update(len(images))
    shown = list({**mistakes, **others}.items())[:SAMPLES]
    return Predictions(
        images=np.stack([image for _, image in shown]),
        shown=[index for index, _ in shown],
        labels=np.array(labels),
        keras=np.array(by_keras),
        tflite=np.array(by_tflite),
        max_abs=max_abs,
    )


def plot_confusion(matrix: np.ndarray, class_names) -> Figure:
    """Draws a confusion matrix, rows in percent of the class."""
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.38 * min(len(class_names), READABLE_CLASSES)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if len(class_names) <= READABLE_CLASSES:
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=90)
        axes.set_yticks(ticks, class_names)
    axes.set(xlabel="prediction", ylabel="label")
    if len(class_names) <= 30:
        for row, column in np.argwhere(matrix > 0):
            color = "white" if percent[row, column] > 50 else "black"
            axes.text(
                column,
                row,
                int(matrix[row, column]),
                ha="center",
                va="center",
                color=color,
                fontsize=8,
            )
    return figure


def plot_samples(predictions: Predictions, class_names) -> Figure:
    """Shows images with their predictions; mistakes come first, in red."""
    columns = 8
    rows = -(-len(predictions.shown) // columns)
    figure = Figure(figsize=(12, 1.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in axes:
        cell.axis("off")
    for cell, image, index in zip(axes, predictions.images, predictions.shown):
        label, guess = predictions.labels[index], predictions.tflite[index]
        title = class_names[guess]
        if guess != label:
            title += f"\n(is {class_names[label]})"
        cell.imshow(image)
        cell.set_title(title, fontsize=9, color="black" if guess == label else "red")
    return figure


def plot_latency(measurement: dict) -> Figure:
    """Draws a file's latency: the start, and the spread of the runs."""
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    names = ["init", "first", "p5", "median", "p95"]
    values = [measurement[f"{name}_ms"] for name in names]
    colors = ["tab:gray", "tab:gray", "tab:blue", "tab:blue", "tab:blue"]
    bars = axes.barh(names[::-1], values[::-1], color=colors[::-1])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel=f"milliseconds, {measurement['num_threads']} thread(s)")
    axes.margins(x=0.12)
    return figure


def _picture(figure: Figure, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    content = base64.b64encode(buffer.getvalue()).decode()
    alt = html.escape(description)
    return f'<img alt="{alt}" src="data:image/png;base64,{content}">'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .2rem 1.5rem .2rem 0;
         border-bottom: 1px solid #ddd; }}
</style>
<h1>{title}</h1>
<table>{rows}</table>
<h2>Training</h2>
{curves}
<h2>Confusion matrix of the TFLite file</h2>
{confusion}
<h2>Predictions of the TFLite file, mistakes first</h2>
{samples}
<h2>Latency</h2>
<p>One image of {size}x{size} pixels with LiteRT and XNNPACK on {device};
{partitions} XNNPACK partition(s).</p>
{latency}
</html>
"""


def render(
    report: dict, records, predictions: Predictions, class_names, latency: dict
) -> str:
    """Renders the page, pictures included in it."""
    facts = {
        "Model": report["model"],
        "Data": report["data"],
        "Top-1, Keras, best epoch": f"{100 * report['top1_keras']:.2f} % (chosen on "
        "these images)",
        "Top-1, TFLite, best epoch": f"{100 * report['top1_tflite']:.2f} %",
        "Top-1, Keras, last epoch": f"{100 * report['top1_last_epoch']:.2f} %",
        "Validation images": report["validation_images"],
        "Largest difference of an output": f"{report['parity_max_abs']:.1e}",
        "Latency, median": f"{report['latency_ms_median']:.2f} ms",
        "Training": f"{report['epochs']} epochs in {report['train_seconds']:.0f} s, "
        f"{report['images_per_second']:.0f} images/s (median epoch)",
        "Sizes": ", ".join(map(str, report["sizes"])),
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>\n"
        for name, value in facts.items()
    )
    matrix = confusion_matrix(predictions.labels, predictions.tflite, len(class_names))
    return _PAGE.format(
        title=html.escape(f"{report['model']} on {report['data']}"),
        rows=rows,
        curves=_picture(plot_curves(records, "top1"), "Loss, accuracy, learning rate"),
        confusion=_picture(plot_confusion(matrix, class_names), "Confusion matrix"),
        samples=_picture(plot_samples(predictions, class_names), "Predictions"),
        latency=_picture(plot_latency(latency), "Latency"),
        size=report["tflite_size"],
        partitions=latency["partitions"],
        device=html.escape(latency["device"]),
    )


def _latency_of(path: Path, latency_file: Path) -> dict:
    content = sha256(path)
    wanted = {
        "sha256": content,
        "target": "host",  # not of a phone or a browser, whose file is the same
        "runtime": "litert",
        "status": MEASURED,
    }
    for record in reversed(read_records(latency_file)):
        if wanted.items() <= record.items():
            return record
    raise ValueError(
        f"{latency_file} has no measurement of {path}, as it is now, by LiteRT on a "
        "computer. Run:\n"
        f"  python tflite/benchmark.py {path} --output={latency_file}"
    )


def write_report(workdir: Path, tflite_path: Path) -> dict:
    """Evaluates, and writes report.html and report.json.

    Args:
        workdir: of the training run.
        tflite_path: the converted `best.keras`.

    Returns:
        What report.json holds; accuracies are in [0, 1].

    Raises:
        ValueError: if something that the report needs is missing.
    """
    for name in ("config.json", "best.keras", "metrics.jsonl"):
        if not (workdir / name).exists():
            raise ValueError(f"{workdir / name} is missing. Run train/main.py first.")
    config = load_config(workdir / "config.json")
    source = load_source("classification", config.data)
    records = read_records(workdir / "metrics.jsonl")
    if not records:
        raise ValueError(f"{workdir} has no finished epoch. Run train/main.py first.")
    litert = LiteRTModel(tflite_path)
    latency = _latency_of(tflite_path, workdir / "latency.jsonl")
    model = keras.models.load_model(workdir / "best.keras", compile=False)
    if output_activation(model) == "sigmoid":
        raise ValueError(
            f"{workdir / 'best.keras'} ends in a sigmoid, after which any number of "
            "classes may be right. This page is about the one best class."
        )
    predictions = predict(model, litert, source, config)
    report = {
        "model": config.model,
        "data": config.data,
        "top1_keras": predictions.top1_keras,
        "top1_tflite": predictions.top1_tflite,
        "top1_last_epoch": records[-1]["top1"],
        "validation_images": len(predictions.labels),
        "parity_max_abs": predictions.max_abs,
        "latency_ms_median": latency["median_ms"],
        "train_seconds": sum(record["epoch_seconds"] for record in records),
        "images_per_second": float(
            np.median([record["images_per_second"] for record in records])
        ),
        "epochs": len(records),
        "sizes": list(config.sizes),
        "tflite_size": litert.input_shape[1],
    }
    page = render(report, records, predictions, source.class_names, latency)
    for name, text in (
        ("report.json", json.dumps(report, indent=2) + "\n"),
        ("report.html", page),
    ):
        with atomic_write(workdir / name) as temporary:
            temporary.write_text(text, "utf-8")
    return report


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    workdir = Path(flags.FLAGS.workdir).expanduser()
    try:
        report = write_report(workdir, Path(flags.FLAGS.tflite).expanduser())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    logging.info(
        "top-1 %.2f %% in Keras, %.2f %% as TFLite, %.2f ms: see %s",
        100 * report["top1_keras"],
        100 * report["top1_tflite"],
        report["latency_ms_median"],
        workdir / "report.html",
    )


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    flags.DEFINE_string("workdir", None, "Directory of the training run.")
    flags.DEFINE_string("tflite", None, "The converted best.keras.")
    flags.mark_flags_as_required(["workdir", "tflite"])
    app.run(main)
