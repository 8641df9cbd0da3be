"""What a network is for, as a value: what its file returns, and how good that is."""

import dataclasses
from collections.abc import Callable

from train.tasks.task import Task as TrainingTask

# All formats but those of integers alone, in which one scale for the numbers of a whole
# picture rounds them too much, and those that are trained as classifiers.
FORMATS_OF_PICTURES = (
    "fp32",
    "fp16",
    "dynamic",
    "int8-mixed",
    "coreml",
    "coreml-fp32",
    "coreml-int8",
    "coreml-palette6",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is converted, beside the network itself.

    Attributes:
        name: of the task.
        training: the same task as it is trained; its sources and examples are used.
        num_classes: from a model to the number of its classes.
        finish: from a model and the side of its images to a traceable function, from
            the network's outputs for one image to what a `.tflite` returns,
            `{name: tensor}`.
        reference: the same of what Keras returns, for a batch of images.
        meanings: of the outputs, by their names.
        compare: from reference and outputs, `{name: [images, ...]}`, to how far they
            are from each other; has at least `max_abs` and `max_abs_reference`, of
            amounts `mean_abs` and `psnr_db`, else `agreement`.
        metric: name of the accuracy, "" where none can be measured.
        score: from validation images and their outputs to it, in percent.
        tolerance: points of it that chance may take, by the number of images.
        formats: those that there are for it.
        limits: of its files, in place of a format's: by the format's name, or `""` for
            all; `None` lifts one.
        float_scopes: patterns of what stays in floats in files of 8 bits: how names
            of nodes, or of what `finish` adds, begin.
        facts: more entries of a `.tflite` file's card.
        suffix: tells its files from others of the same model by their names.
        crops: whether an evaluation sees the centre of an image, not all of it.
        cpu_part: what of a file only CPUs run.
    """

    name: str
    training: TrainingTask
    num_classes: Callable
    finish: Callable
    reference: Callable
    meanings: dict[str, str]
    compare: Callable
    metric: str
    score: Callable
    tolerance: Callable[[int], float]
    formats: tuple[str, ...]
    limits: dict[str, dict] = dataclasses.field(default_factory=dict)
    float_scopes: tuple[str, ...] = ()
    facts: dict = dataclasses.field(default_factory=dict)
    suffix: str = ""
    crops: bool = False
    cpu_part: str = ""
