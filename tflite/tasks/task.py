"""The value that describes a task of conversion."""

import dataclasses
import enum
from collections.abc import Callable

import keras
import numpy as np

from train.tasks.task import Task as TrainingTask

Outputs = dict[str, np.ndarray]  # {name: [images, ...]}
# Takes a model and the side of its images; returns a function that takes the network's
# outputs, a list of tensors, and returns {name: tensor}.
MakePostprocess = Callable[[keras.Model, int], Callable[[list], dict]]

CONVERTER_SCOPE = "(Stateful)?PartitionedCall"  # the converter's name of outputs
# For outputs that are whole pictures one int8 scale may be too coarse, and int8-qat
# trains classifiers only.
NOT_FOR_PICTURES = ("int8", "int8-qat")


class OutputKind(enum.Enum):
    """What the numbers of an output are, for the metadata of a `.tflite` file."""

    NUMBERS = enum.auto()
    CLASS_SCORES = enum.auto()  # one for each class, along the last axis
    PIXEL_SCORES = enum.auto()  # the same for each pixel of a grid
    CLASS_MAP = enum.auto()  # the class of each pixel
    BOXES = enum.auto()  # corners x1, y1, x2, y2 as fractions of the image
    CLASS_INDICES = enum.auto()


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of a file.

    Attributes:
        meaning: description in words.
        metadata_name: name in the metadata of a `.tflite` file, if an application
            expects another one than that of the signature.
    """

    meaning: str
    kind: OutputKind = OutputKind.NUMBERS
    metadata_name: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """The outputs of a network's file, and their score.

    Attributes:
        training: the training task; its sources and examples are used.
        num_classes: takes a model; returns the number of its classes, `None` if
            unknown.
        postprocess: makes the function that converts the network's outputs for one
            image to the outputs of a `.tflite` file; it must be traceable.
        reference: makes the same function for Keras and a batch of images.
        outputs: the outputs that a file may have, by name.
        compare: takes the outputs of Keras and of a file; returns their differences,
            at least `max_abs` and `max_abs_reference`, and `mean_abs` and `psnr_db`
            for quantities or `agreement` for classes.
        metric: name of the accuracy metric, "" if there is none.
        score: takes an `ImageSet` and its outputs; returns that metric in percent.
        tolerance: takes the number of images; returns the points that may be lost by
            chance.
        excluded_formats: formats that do not fit the task.
        limits: overrides of the formats' limits: `{format: {check: limit}}`, with the
            format `""` for all; `None` removes a limit.
        float_scopes: regular expressions; nodes whose names begin with a match stay in
            float in 8-bit files.
        mixed_float_scopes: the same for int8-mixed only.
        metadata: more entries of the card of a `.tflite` file.
        suffix: part of the names of the files, to tell variants apart.
        crops: whether an evaluation sees the center crop of an image, not all of it.
        cpu_part: the part of a file that runs on CPUs only, "" if there is none.
        title: what a file is, in two or three words.
    """

    name: str
    training: TrainingTask
    num_classes: Callable[[keras.Model], int | None]
    postprocess: MakePostprocess
    reference: MakePostprocess
    outputs: dict[str, Output]
    compare: Callable[[Outputs, Outputs], dict[str, float]]
    metric: str
    score: Callable[..., float] | None
    tolerance: Callable[[int], float]
    excluded_formats: tuple[str, ...] = ()
    limits: dict[str, dict] = dataclasses.field(default_factory=dict)
    float_scopes: tuple[str, ...] = ()
    mixed_float_scopes: tuple[str, ...] = ()
    metadata: dict = dataclasses.field(default_factory=dict)
    suffix: str = ""
    crops: bool = False
    cpu_part: str = ""
    title: str = "Image model"


@dataclasses.dataclass(frozen=True)
class TaskFamily:
    """The models of a task and the `Task` of each of its output variants.

    Attributes:
        choose: takes a model and the name of an output variant, "" for the network's
            own outputs; returns the `Task`.
        default_size: side in pixels of the images of models that take any size.
        build_model: takes the name of a backbone, weights and an input shape; returns a
            model. `None` if the task has no named models.
        published_labels: class names of the published weights, if they are fixed.
    """

    matches: Callable[[keras.Model], bool]
    choose: Callable[[keras.Model, str], Task]
    default_size: int
    build_model: Callable[..., keras.Model] | None = None
    published_labels: tuple[str, ...] = ()
