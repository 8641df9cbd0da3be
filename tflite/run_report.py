"""Writes a page about a trained and converted classifier.

Example:
  python tflite/run_report.py --workdir=runs/demo --tflite=runs/demo/best_48_fp32.tflite

Evaluates best.keras and the .tflite file on the validation images. Writes report.html
(curves, confusion matrix, sample predictions, latency) and report.json into --workdir.
Reads config.json and metrics.jsonl of train/main.py, and latency.jsonl of
tflite/benchmark.py.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import base64
import dataclasses
import html
import io
import json
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from tflite.drivers.measurement import MEASURED
from tflite.records import read_measurements
from tflite.report import PICTURE_STYLE, html_page
from tflite.validation.checksum import sha256
from train.cli.command import run_command
from train.cli.console import quiet_libraries

if TYPE_CHECKING:
    import keras
    import numpy as np
    from matplotlib.figure import Figure

    from keras_mobilevit.litert import LiteRTModel
    from train.config import TrainConfig
    from train.data.source import Source

MAX_NAMED_CLASSES = 40  # more names do not fit beside a confusion matrix
MAX_COUNTED_CLASSES = 30  # more numbers do not fit into it
TIMES = ("init", "first", "p5", "median", "p95")  # of a measurement, in milliseconds
MAX_MS = 1e9  # twelve days
SPEEDS = ("epoch_seconds", "images_per_second")  # of a record, beside the curves
SAMPLES = 24  # pictures of predictions, mistakes first


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of both models for the validation images."""

    images: "np.ndarray"  # the samples, uint8 `[samples, size, size, 3]`
    sample_indices: list[int]  # of the samples among the images
    labels: "np.ndarray"  # `[images]`
    keras: "np.ndarray"  # classes that best.keras predicts, `[images]`
    tflite: "np.ndarray"  # classes that the file predicts, `[images]`
    max_abs: float  # largest absolute difference of the models' outputs


def predict(
    model: "keras.Model", litert: "LiteRTModel", source: "Source", config: "TrainConfig"
) -> Predictions:
    """Runs both models on the validation images."""
    import numpy as np
    from tqdm import tqdm

    from tflite.tasks.registry import task_of
    from train.data.pipeline import eval_batches

    size = litert.input_shape[1]
    (name,) = litert.outputs  # probabilities or logits, which are variants of the task
    as_file = task_of(model, name).reference(model, size)
    batches = eval_batches(
        source, "validation", size, config.batch_size, config.eval_crop
    )
    labels: list[int] = []
    by_keras: list[int] = []
    by_tflite: list[int] = []
    mistakes: list[tuple[int, np.ndarray]] = []  # indices and images
    others: list[tuple[int, np.ndarray]] = []
    max_abs = 0.0
    total = source.num_examples["validation"]
    with tqdm(total=total, unit="img", disable=None, leave=False) as progress:
        for batch in batches:
            real = batch["weight"].numpy() > 0
            images = batch["image"].numpy()[real]  # [batch, size, size, 3]
            given = images.astype(np.float32)
            reference = np.asarray(as_file([model.predict_on_batch(given)])[name])
            outputs = litert.predict(given)[name]
            max_abs = max(max_abs, _difference(reference, outputs, config.data))
            guesses = outputs.argmax(-1)
            found = zip(images, batch["label"].numpy()[real], guesses)
            for image, label, guess in found:
                chosen = others if guess == label else mistakes
                if len(chosen) < SAMPLES:
                    chosen.append((len(labels), image))
                labels.append(label)
            by_tflite.extend(guesses)
            by_keras.extend(reference.argmax(-1))
            progress.update(len(images))
    samples = [*mistakes, *others][:SAMPLES]
    return Predictions(
        images=np.stack([image for _, image in samples]),
        sample_indices=[index for index, _ in samples],
        labels=np.array(labels),
        keras=np.array(by_keras),
        tflite=np.array(by_tflite),
        max_abs=max_abs,
    )


def _difference(reference: "np.ndarray", outputs: "np.ndarray", data: str) -> float:
    difference = float(abs(reference - outputs).max())
    if not difference < float("inf"):
        raise ValueError(
            "best.keras or the .tflite file returns NaN or infinite values for a "
            f"validation image of {data}."
        )
    return difference


def plot_confusion(matrix: "np.ndarray", class_names: Sequence[str]) -> "Figure":
    """Draws a confusion matrix: counts, and colors by the share of each label."""
    import numpy as np
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.38 * min(len(class_names), MAX_NAMED_CLASSES)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(percent, display_labels=class_names).plot(
        ax=axes,
        cmap="Blues",
        include_values=len(class_names) <= MAX_COUNTED_CLASSES,
        xticks_rotation="vertical",
        colorbar=False,
        im_kw={"vmin": 0, "vmax": 100},
    )
    if display.text_ is not None:
        for text, count in zip(display.text_.flat, matrix.flat):
            text.set_text(count or "")
    axes.set(xlabel="prediction", ylabel="label")
    if len(class_names) > MAX_NAMED_CLASSES:
        axes.set(xticks=[], yticks=[])
    return figure


def plot_samples(predictions: Predictions, class_names: Sequence[str]) -> "Figure":
    """Shows images with their predictions. Mistakes come first, in red."""
    from matplotlib.figure import Figure

    rows, columns = math.ceil(len(predictions.images) / 8), 8
    figure = Figure(figsize=(12, 1.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in axes:
        cell.axis("off")
    for cell, image, index in zip(axes, predictions.images, predictions.sample_indices):
        label, guess = predictions.labels[index], predictions.tflite[index]
        title = class_names[guess]
        if guess != label:
            title += f"\n(is {class_names[label]})"
        cell.imshow(image)
        cell.set_title(title, fontsize=9, color="black" if guess == label else "red")
    return figure


def plot_latency(measurement: dict[str, Any]) -> "Figure":
    """Draws the times of the start and the percentiles of the runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    values = [measurement[f"{name}_ms"] for name in TIMES]
    colors = ["tab:gray", "tab:gray", "tab:blue", "tab:blue", "tab:blue"]
    bars = axes.barh(TIMES[::-1], values[::-1], color=colors[::-1])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel=f"milliseconds, {measurement['num_threads']} thread(s)")
    axes.margins(x=0.12)
    return figure


def _picture(figure: "Figure", description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    content = base64.b64encode(buffer.getvalue()).decode()
    alt = html.escape(description)
    return f'<img alt="{alt}" src="data:image/png;base64,{content}">'


_PAGE = """<table>{rows}</table>
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
"""


def render(
    report: dict[str, Any],
    records: list[dict[str, Any]],
    predictions: Predictions,
    class_names: Sequence[str],
    latency: dict[str, Any],
) -> str:
    """Returns the page with embedded pictures; `report` is what report.json holds."""
    from train.run.records import plot_curves
    from train.tasks.classification.metric import confusion_matrix

    figures = {
        "Model": report["model"],
        "Data": report["data"],
        "Top-1, Keras, best epoch": f"{100 * report['top1_keras']:.2f} % (these images "
        "chose the epoch)",
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
        for name, value in figures.items()
    )
    matrix = confusion_matrix(predictions.labels, predictions.tflite, len(class_names))
    body = _PAGE.format(
        rows=rows,
        curves=_picture(plot_curves(records, "top1"), "Loss, accuracy, learning rate"),
        confusion=_picture(plot_confusion(matrix, class_names), "Confusion matrix"),
        samples=_picture(plot_samples(predictions, class_names), "Predictions"),
        latency=_picture(plot_latency(latency), "Latency"),
        size=report["tflite_size"],
        partitions=html.escape(str(latency["partitions"])),
        device=html.escape(str(latency["device"])),
    )
    return html_page(f"{report['model']} on {report['data']}", body)


def _find_latency(path: Path, latency_file: Path) -> dict[str, Any]:
    wanted = {
        "sha256": sha256(path),
        "target": "host",  # not a phone or a browser
        "runtime": "litert",
        "status": MEASURED,
    }
    for record in reversed(read_measurements(latency_file)):
        if wanted.items() <= record.items() and _is_complete(record):
            return record
    raise ValueError(
        f"{latency_file} has no measurement of the current {path} with --target=host. "
        "Run:\n"
        f"  python tflite/benchmark.py {path} --output={latency_file}"
    )


def _is_complete(record: dict[str, Any]) -> bool:
    """Tells whether a measurement has all numbers that the page shows."""
    numbers: list[Any] = [record.get(f"{name}_ms") for name in TIMES]
    is_measured = all(
        type(number) in (int, float) and 0 <= number < MAX_MS for number in numbers
    )
    others = ("device", "partitions", "num_threads")
    return is_measured and all(name in record for name in others)


def _check_files(workdir: Path) -> None:
    for name in ("config.json", "best.keras", "metrics.jsonl"):
        if not (workdir / name).exists():
            raise ValueError(f"{workdir / name} is missing. Run train/main.py first.")


def _load_classifier(path: Path) -> "keras.Model":
    from keras_mobilevit.classifier import output_activation
    from keras_mobilevit.weights.file_formats import load_model_file

    model = load_model_file(path)
    if output_activation(model) == "sigmoid":
        raise ValueError(
            f"{path} ends in a sigmoid, so an image may have several classes. The "
            "report needs a model with one class per image."
        )
    return model


def _check_classes(
    keras_file: Path, model: "keras.Model", litert: "LiteRTModel", source: "Source"
) -> None:
    """Refuses models that do not return one number for each class of the data."""
    outputs = litert.outputs.values()
    if len(outputs) != 1:
        raise ValueError(
            f"{litert.path} has {len(outputs)} outputs. Expected the classifier "
            f"converted from {keras_file}, which has one."
        )
    (output,) = outputs
    wanted = len(source.class_names)
    found = math.prod(output["shape"][1:])
    for path, classes, advice in (
        (keras_file, model.output_shape[-1], "Give the --workdir of a run on it"),
        (litert.path, found, f"Convert {keras_file}, and measure that file"),
    ):
        if classes != wanted:
            raise ValueError(
                f"{path} has {classes} classes, but {source.name} has {wanted}. "
                f"{advice}."
            )


def write_report(workdir: Path, tflite_path: Path) -> dict[str, Any]:
    """Evaluates the models, and writes report.html and report.json.

    Returns what report.json holds; accuracies are in [0, 1].
    """
    _check_files(workdir)
    with quiet_libraries():
        import matplotlib

        from keras_mobilevit.files import atomic_write
        from keras_mobilevit.litert import LiteRTModel
        from train.config import load_config
        from train.data.registry import load_source
        from train.run.records import read_epochs
    config = load_config(workdir / "config.json")
    source = load_source("classification", config.data)
    records = read_epochs(workdir / "metrics.jsonl", "top1", *SPEEDS)
    if not records:
        raise ValueError(f"{workdir} has no finished epoch. Run train/main.py first.")
    litert = LiteRTModel(tflite_path)
    latency = _find_latency(tflite_path, workdir / "latency.jsonl")
    model = _load_classifier(workdir / "best.keras")
    _check_classes(workdir / "best.keras", model, litert, source)
    predictions = predict(model, litert, source, config)
    report = {
        "model": config.model,
        "data": config.data,
        "top1_keras": float((predictions.keras == predictions.labels).mean()),
        "top1_tflite": float((predictions.tflite == predictions.labels).mean()),
        "top1_last_epoch": records[-1]["top1"],
        "validation_images": len(predictions.labels),
        "parity_max_abs": predictions.max_abs,
        "latency_ms_median": latency["median_ms"],
        "train_seconds": sum(record["epoch_seconds"] for record in records),
        "images_per_second": statistics.median(
            record["images_per_second"] for record in records
        ),
        "epochs": len(records),
        "sizes": list(config.sizes),
        "tflite_size": litert.input_shape[1],
    }
    with matplotlib.rc_context(PICTURE_STYLE):  # the name of a class may have a $
        page = render(report, records, predictions, source.class_names, latency)
    texts = {"report.json": json.dumps(report, indent=2) + "\n", "report.html": page}
    for name, text in texts.items():
        with atomic_write(workdir / name) as temporary:
            temporary.write_text(text, "utf-8")
    return report


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("tflite", None, "The converted best.keras.")
    flags.mark_flags_as_required(["workdir", "tflite"])


def main(argv: list[str]) -> None:
    """Writes the report of the run that the flags name."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
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
    run_command(main, __doc__ or "", {"Files": define_flags})
