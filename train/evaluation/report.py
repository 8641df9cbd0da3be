"""The report of `--mode=eval`: a model's metrics, and the images it skipped."""

from train.config import TrainConfig
from train.data.source import Source
from train.data.unreadable import with_reason
from train.evaluation.evaluate import evaluate_predictor
from train.evaluation.predictor import load_predictor
from train.tasks.task import Task


def evaluation_report(task: Task, config: TrainConfig, source: Source) -> str:
    """Evaluates the model that `config.weights` names, and formats the result."""
    predictor = load_predictor(task, config, source)
    found = evaluate_predictor(task, predictor, source, config)
    text = task.report(
        source.class_names, found.metrics, found.statistics, predictor.size
    )
    skipped = [
        f"skipped, cannot be read: {with_reason(name)}" for name in found.unreadable
    ]
    return "\n".join([text, *skipped])
