"""A new task takes a folder and two rows: one of the tasks, one of its data."""

import functools

import keras
import numpy as np
import tensorflow as tf

from train.config import make_config
from train.data import images, registry
from train.data.source import Source, indexed_source
from train.evaluation.evaluate import evaluate_predictor
from train.evaluation.predictor import keras_predictor
from train.loop import train_and_evaluate
from train.tasks.registry import TASKS, TaskRow, describe_tasks, load_task
from train.tasks.task import ModelKind, Task

IMAGES = {"train": 12, "validation": 7}


def build_model(config, source) -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(x))


def toy_source(argument: str, cache: bool) -> Source:
    """Images of one gray each, whose target is their brightness."""

    def columns(count: int) -> dict:
        grays = np.linspace(0, 255, count).astype(np.uint8)
        encoded = [tf.io.encode_png(np.full((8, 8, 3), gray)).numpy() for gray in grays]
        names = [str(gray) for gray in grays]
        brightness = np.float32(grays / 255)
        return {"encoded": encoded, "id": names, "brightness": brightness}

    splits = {split: columns(count) for split, count in IMAGES.items()}
    return indexed_source("toy", ("brightness",), splits)


def train_example(example, size, seed, config) -> dict:
    return eval_example(example, size, 1.0)


def eval_example(example, size, crop_fraction: float) -> dict:
    image = images.resize(images.decode(images.read(example)), size)
    return {"image": image, "brightness": example["brightness"]}


def loss(config, batch, outputs) -> tf.Tensor:
    return (outputs[:, 0] - batch["brightness"]) ** 2


def predictions(outputs, size: int) -> dict:
    return {"brightness": outputs[:, 0]}


def statistics(class_names, predictions: dict, targets: dict) -> dict:
    error = np.abs(predictions["brightness"] - targets["brightness"])
    return {"error": error.sum(dtype=np.float64), "images": np.int64(len(error))}


def score(class_names, totals: dict) -> dict:
    return {"closeness": float(1 - totals["error"] / totals["images"])}


def report(class_names, metrics: dict, totals: dict, size: int) -> str:
    return f"closeness {metrics['closeness']:.3f}"


TOY = Task(
    name="toy",
    build_model=build_model,
    load_pretrained=lambda model, file: None,
    is_head=lambda path: path.startswith("head"),
    train_example=train_example,
    eval_example=eval_example,
    loss=loss,
    validation_loss=functools.partial(loss, None),
    predictions=predictions,
    statistics=statistics,
    summable=True,
    score=score,
    best_metric="closeness",
    report=report,
    model_kind=ModelKind(
        noun="photometer",
        published="",
        batch_size=4,
        is_one=lambda model: model.output_shape == (None, 1),
        num_classes=lambda model: 1,
        build=build_model,
        file_classes=lambda outputs: 1,
        file_predictions=lambda outputs, size, card: outputs,
    ),
)


def test_a_new_task_is_trained_and_evaluated(monkeypatch, tmp_path):
    row = TaskRow(f"{__name__}:TOY", "how bright an image is")
    monkeypatch.setitem(TASKS, "toy", row)
    kind = registry.SourceKind(f"{__name__}:toy_source", "", "gray images", "digits")
    monkeypatch.setitem(registry.SOURCE_KINDS, ("toy", "gray"), kind)
    assert "toy (how bright an image is)" in describe_tasks()

    sizes = {"sizes": (32,), "base_size": 32, "eval_size": 32}
    rates = {"learning_rate": 0.1, "warmup_steps": 0, "ema_momentum": 0.0}
    config = make_config(
        task="toy", data="gray", batch_size=4, epochs=2, **sizes, **rates
    )
    task, source = load_task("toy"), registry.load_source("toy", "gray")
    records = train_and_evaluate(task, config, source, tmp_path)
    assert records[1]["train_loss"] < records[0]["train_loss"]
    best = max(records, key=lambda record: record["closeness"])
    model = keras.models.load_model(tmp_path / "best.keras")
    predictor = keras_predictor(task, model, 32)
    found = evaluate_predictor(task, predictor, source, config)
    assert found.metrics["closeness"] == best["closeness"]
