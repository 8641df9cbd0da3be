"""The task of any other network: the file returns all of its outputs by name."""

from collections.abc import Callable

import keras
import numpy as np

from keras_mobilevit.configs import CLASSIFIER_SIZE
from tflite.tasks.task import NOT_FOR_PICTURES, Output, Outputs, Task, TaskFamily
from tflite.validation import parity
from train.tasks.classification.task import CLASSIFICATION as TRAINING


def returned_structure(model: keras.Model):  # noqa: ANN201 - any nested structure
    """Returns a model's output tensor, or its list or dict of them."""
    is_sequential = isinstance(model, keras.Sequential)
    return model.outputs[0] if is_sequential else model.output


def output_names(model: keras.Model) -> list[str]:
    """Returns names for the outputs, in the order of the model's outputs.

    They are the keys of a dict, or names as in Keras's export. TFLite sorts outputs by
    name, so the numbers in these names have leading zeros.
    """
    returned = returned_structure(model)
    if isinstance(returned, dict):
        return sorted(returned)
    digits = len(str(len(model.outputs) - 1))
    return [f"output_{index:0{digits}}" for index in range(len(model.outputs))]


def _postprocess(model: keras.Model, size: int) -> Callable[[list], dict]:
    names = output_names(model)
    return lambda outputs: dict(zip(names, outputs))


def _compare(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    found = []
    for name, values in reference.items():
        expected, actual = (
            np.reshape(x, (len(values), -1)) for x in (values, outputs[name])
        )
        found.append(parity.compare(expected, actual))
    return parity.worst(found)


def _choose(model: keras.Model, variant: str) -> Task:
    tensors = zip(output_names(model), model.output_names, model.outputs)
    outputs = {
        name: Output(f"output of layer {layer!r}, of shape {tuple(tensor.shape[1:])}")
        for name, layer, tensor in tensors
    }
    return Task(
        name="outputs",
        training=TRAINING,  # outputs are compared on the images of a classifier
        num_classes=lambda model: None,
        postprocess=_postprocess,
        reference=_postprocess,
        outputs=outputs,
        compare=_compare,
        metric="",
        score=None,
        tolerance=lambda images: 0.0,
        crops=True,
        excluded_formats=NOT_FOR_PICTURES,
    )


OUTPUTS = TaskFamily(
    matches=lambda model: True, choose=_choose, default_size=CLASSIFIER_SIZE
)
