"""Detection as a task: where the objects on an image are, and what they are.

Source: section 4.2 of MobileViT, https://arxiv.org/abs/2110.02178.
"""

from keras_mobilevit.detection import detect
from keras_mobilevit.weights.load import load_backbone
from train.tasks.detection import examples, loss, metric, model
from train.tasks.detection.pictures import draw_examples
from train.tasks.task import Task

DETECTION = Task(
    name="detection",
    build_model=model.build,
    load_pretrained=load_backbone,
    is_head=lambda path: path.startswith(model.HEAD),
    train_example=examples.train_example,
    eval_example=examples.eval_example,
    loss=loss.loss,
    validation_loss=loss.validation_loss,
    predictions=lambda outputs, size: detect(outputs, (size, size)),
    statistics=metric.collect,
    summable=False,
    score=metric.score,
    best_metric="AP",
    report=metric.report,
    model_kind=model.DETECTOR,
    pictures=draw_examples,
)
