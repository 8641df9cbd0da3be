"""Evaluations of a run's best model, as `--mode=eval` makes them."""

import dataclasses
from pathlib import Path

import pytest

from train.config import TrainConfig
from train.data.source import Source
from train.evaluation.evaluate import evaluate_predictor
from train.evaluation.predictor import load_predictor
from train.tasks.task import Task


def assert_same_evaluation(
    task: Task, config: TrainConfig, source: Source, workdir: Path, record: dict
) -> None:
    """Asserts that `best.keras` has the metrics of its record, in numbers and text."""
    config = dataclasses.replace(config, weights=str(workdir / "best.keras"))
    predictor = load_predictor(task, config, source)
    evaluation = evaluate_predictor(task, predictor, source, config)
    found = evaluation.metrics
    assert task.best_metric in found
    assert found == pytest.approx({name: record[name] for name in found}, abs=1e-6)
    text = task.report(source.class_names, found, evaluation.statistics, predictor.size)
    lines = text.splitlines()
    (total,) = (line.split() for line in lines if line.startswith("all "))
    assert f"{100 * record[task.best_metric]:.2f}" in total
