"""Networks that are no classifier, detector or segmenter of this library, as a task.

An embedding with a map beside it, two heads, a map of any kind: the file returns what
the model does, under the names that the model gives.
"""

import re

import keras
import numpy as np

from tflite import parity
from tflite.task import Task
from train.classification import CLASSIFICATION as TRAINING


def output_names(model: keras.Model) -> list[str]:
    """Returns a name for each output: a key of a dict, or its layer's, made unique."""
    given = model.output
    names = sorted(given) if isinstance(given, dict) else model.output_names
    found = []
    for name in names:
        name = base = re.sub(r"[^A-Za-z0-9_]", "_", name)
        while name in found:
            name = f"{base}_{found.index(base) + len(found)}"
        found.append(name)
    return found


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
    meanings = {
        name: f"what the model returns, {tuple(tensor.shape[1:])}"
        for name, tensor in zip(output_names(model), keras.tree.flatten(model.output))
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
