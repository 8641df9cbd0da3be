"""Networks that are no classifier, detector or segmenter of this library, as a task.

An embedding with a map beside it, two heads, a map of any kind: the file returns what
the model does, under the names that the model gives.
"""

import keras
import numpy as np

from tflite.tasks.task import Task
from tflite.validation import parity
from train.tasks.classification.task import CLASSIFICATION as TRAINING


def returned_structure(model: keras.Model):
    """Returns a model's output tensor, or its list or dict of them."""
    is_sequential = isinstance(model, keras.Sequential)
    return model.outputs[0] if is_sequential else model.output


def output_names(model: keras.Model) -> list[str]:
    """Returns names for the outputs: the keys of a dict, or as Keras's export does.

    TFLite sorts outputs by name; so these are in the order of the model's own.
    """
    returned = returned_structure(model)
    if isinstance(returned, dict):
        return sorted(returned)
    digits = len(str(len(model.outputs) - 1))
    return [f"output_{index:0{digits}}" for index in range(len(model.outputs))]


def _named(model: keras.Model, size: int):
    names = output_names(model)
    return lambda outputs: dict(zip(names, outputs))


def _compare(reference: dict, outputs: dict) -> dict:
    """Compares all outputs; says of each figure what is worst."""
    found = []
    for name, values in reference.items():
        rows = (np.reshape(x, (len(values), -1)) for x in (values, outputs[name]))
        found.append(parity.compare(*rows))
    largest = ("max_abs", "mean_abs", "max_abs_reference")
    return {
        **{key: max(part[key] for part in found) for key in largest},
        "psnr_db": min(part["psnr_db"] for part in found),
    }


def task_of_outputs(model: keras.Model) -> Task:
    """Returns the task of a model whose outputs have no meaning that is known."""
    tensors = zip(output_names(model), model.output_names, model.outputs)
    meanings = {
        name: f"what layer {layer!r} returns, of the shape {tuple(tensor.shape[1:])}"
        for name, layer, tensor in tensors
    }
    return Task(
        name="outputs",
        training=TRAINING,  # whose images it is compared on
        num_classes=lambda model: None,
        finish=_named,
        reference=_named,
        meanings=meanings,
        compare=_compare,
        metric="",
        score=None,
        tolerance=lambda images: 0.0,
        crops=True,
        formats=("fp32", "fp16", "dynamic", "int8-mixed"),
    )
