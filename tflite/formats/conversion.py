"""The network to convert, in each of the forms that the formats are built from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_mobilevit import value_range
from tflite.formats.bias_correction import correct_biases
from tflite.formats.calibration import measure_channels, measure_ranges, swish_floors
from tflite.formats.equalization import equalize
from tflite.formats.to_tflite import tflite_content, trace_graph, trace_model
from tflite.graph.graph import Graph
from tflite.graph.reader import outputs_of, read_model
from tflite.graph.rewrites import deployment_graph
from tflite.models import check_size, network_images
from tflite.tasks.registry import task_of
from tflite.tasks.task import Task

if TYPE_CHECKING:
    from tflite.formats.qat import FineTuning


@dataclasses.dataclass(frozen=True, eq=False)
class Conversion:
    """A network with everything that its files are made from.

    The properties are computed when a format first asks for them, and kept.

    Attributes:
        graph: the deployment graph; `None` to convert the model as it is.
        calibration: images that set the ranges of the int8 formats, `[images, height,
            width, 3]` with values in [0, 255].
        core_ml: see `core_ml_from_options`.
    """

    model: keras.Model
    task: Task
    size: int
    graph: Graph | None
    calibration: np.ndarray | None = None
    fine_tuning: FineTuning | None = None
    core_ml: Callable[..., object] | None = None

    @property
    def input_max(self) -> float:
        """The largest value of the network's images, 255 or 1."""
        return value_range.input_max(self.model)

    def calibration_images(self) -> np.ndarray:
        """Returns the calibration images in the range that the network takes."""
        if self.calibration is None:
            raise ValueError("This format needs calibration images; there are none.")
        return network_images(self.model, self.calibration)

    @functools.cached_property
    def float32(self) -> bytes:
        """The content of the float32 `.tflite` file."""
        postprocess = self.task.postprocess(self.model, self.size)
        if self.graph is not None:
            return tflite_content(trace_graph(self.graph, postprocess))
        shape = (self.size, self.size, self.model.inputs[0].shape[-1])
        traced = trace_model(outputs_as_list(self.model), shape, postprocess)
        return tflite_content(traced)

    @functools.cached_property
    def ranges(self) -> dict:
        """The ranges of the float32 file's tensors, as the quantizer takes them."""
        floors = swish_floors(self.graph) if self.graph else {}
        images = self.calibration_images()
        return measure_ranges(self.float32, images, self.input_max, floors)

    @functools.cached_property
    def equalized(self) -> Conversion:
        """The network with equalized channels, see `equalization.py`."""
        if self.graph is None:
            return self
        stats = measure_channels(self.graph, self.calibration_images())
        graph = equalize(self.graph, stats)
        return self if graph is self.graph else dataclasses.replace(self, graph=graph)

    @functools.cached_property
    def bias_corrected(self) -> Conversion:
        """The equalized network, its biases corrected for int8 kernels."""
        graph = self.equalized.graph
        if graph is None:
            return self
        stats = measure_channels(graph, self.calibration_images())
        return dataclasses.replace(self, graph=correct_biases(graph, stats))

    @functools.cached_property
    def fine_tuned(self) -> Conversion:
        """The equalized network after quantization-aware training."""
        from tflite.formats.qat import fine_tune_conversion  # loads tf_keras

        if self.fine_tuning is None:
            raise ValueError("int8-qat needs images with labels to train on.")
        graph = fine_tune_conversion(self.equalized, self.fine_tuning)
        return dataclasses.replace(self, graph=graph)


def outputs_as_list(model: keras.Model) -> Callable[[np.ndarray], list]:
    """Makes the function from images to the outputs that `outputs_of` lists."""
    functional = keras.Model(model.inputs, outputs_of(model))
    return lambda images: keras.tree.flatten(functional([images], training=False))


def prepare(
    model: keras.Model,
    size: int,
    *,
    task: Task | None = None,
    rewrite: bool = True,
    **settings: Any,
) -> Conversion:
    """Prepares the conversion of a model for square images; see `Conversion`.

    Without `rewrite` it converts the model as it is. The task is by default what
    `task_of` finds. Raises a ValueError if the model takes images of another size, or
    has a layer that cannot be expressed in any file.
    """
    check_size(model, size)
    graph = deployment_graph(read_model(model, size, size)) if rewrite else None
    return Conversion(model, task or task_of(model), size, graph, **settings)
