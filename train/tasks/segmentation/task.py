"""Segmentation as a task: the class of every pixel of an image.

Source: section 4.2 of MobileViT, https://arxiv.org/abs/2110.02178.
"""

from keras_mobilevit.weights.load import load_backbone
from train.tasks.segmentation import examples, loss, metric, model
from train.tasks.segmentation.pictures import draw_examples
from train.tasks.segmentation.postprocess import class_maps, main_logits
from train.tasks.task import Task

SEGMENTATION = Task(
    name="segmentation",
    build_model=model.build,
    load_pretrained=load_backbone,
    is_head=lambda path: path.startswith(model.HEAD),
    train_example=examples.train_example,
    eval_example=examples.eval_example,
    loss=loss.loss,
    validation_loss=loss.validation_loss,
    predictions=lambda outputs, size: {
        "class_map": class_maps(main_logits(outputs), size)
    },
    statistics=metric.count_confusion,
    summable=True,
    score=metric.score,
    best_metric="mIoU",
    report=metric.report,
    model_kind=model.SEGMENTER,
    pictures=draw_examples,
)
