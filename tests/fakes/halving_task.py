"""A toy task of conversion: a network that returns a picture of half the size."""

from tflite.tasks.task import NOT_FOR_PICTURES, Output, Task, TaskFamily
from tflite.validation import parity
from train.tasks.classification.task import CLASSIFICATION as TRAINING


def toy(variant: str) -> Task:
    def postprocess(model, size):
        if variant == "mean":
            return lambda outputs: {"mean": outputs[0].numpy().mean((1, 2))}
        return lambda outputs: {"picture": outputs[0]}

    return Task(
        name="halving",
        training=TRAINING,
        num_classes=lambda model: None,
        postprocess=postprocess,
        reference=postprocess,
        outputs={"picture": Output("half the size"), "mean": Output("its mean")},
        compare=lambda first, second: parity.compare(
            *(x["picture"].reshape(len(x["picture"]), -1) for x in (first, second))
        ),
        metric="",
        score=None,
        tolerance=lambda images: 0.0,
        excluded_formats=NOT_FOR_PICTURES,
        limits={"fp32": {"parity": 1e-3}},
    )


VARIANTS = {name: toy(name) for name in ("picture", "mean")}
HALVING = TaskFamily(
    matches=lambda model: model.name == "halving",
    choose=lambda model, variant: VARIANTS[variant or "picture"],
    default_size=32,
)
