"""Runs the MIL program of a Core ML package in NumPy, on any machine.

coremltools runs packages on macOS only. The evaluator computes in float32 and rounds
each output to the type that the program declares. Hardware with float16 maps and wider
accumulators does the same; Core ML's own accumulators may be narrower.
"""

import numpy as np

from tflite.validation.mil_reader import Operation, Program, read_program
from tflite.validation.numpy_ops import OPERATIONS, round_to_half


def unknown_operations(program: Program) -> list[str]:
    """Returns the kinds of operations that `numpy_ops` lacks."""
    return sorted({o.kind for o in program.operations} - set(OPERATIONS))


def _rounded(value, dtype):
    """Rounds to the declared type; floats stay float32, in which NumPy is fast."""
    if dtype is np.float16:
        return round_to_half(np.asarray(value, np.float32))
    return np.asarray(value, np.float32) if dtype is np.float32 else value


def _as_keras(value: np.ndarray) -> np.ndarray:
    """Removes the batch from an output and puts channels last; class maps stay."""
    if np.issubdtype(value.dtype, np.integer):
        return value
    return np.moveaxis(value[0], 0, -1) if value.ndim == 4 else value[0]


class Evaluator:
    """Runs a saved package.

    Raises a ValueError if it is not a Core ML package, or has an unsupported operation.
    """

    def __init__(self, package):
        self.program = read_program(package)
        unknown = unknown_operations(self.program)
        if unknown:
            raise ValueError(
                f"{package} has operations that cannot be evaluated: "
                f"{', '.join(unknown)}."
            )
        self.constants = {
            name: _rounded(value, value.dtype.type)
            for name, value in self.program.constants.items()
        }
        self.operations = []
        for operation in self.program.operations:
            if operation.kind.startswith("constexpr"):
                self._run(operation, self.constants)
            else:
                self.operations.append(operation)

    def _run(self, operation: Operation, values: dict) -> None:
        arguments: dict[str, np.ndarray | list[np.ndarray]] = {}
        for name, given in operation.inputs.items():
            if isinstance(given, np.ndarray):
                arguments[name] = given
            elif name == "values":
                arguments[name] = [values[source] for source in given]
            else:
                arguments[name] = values[given[0]]
        results = OPERATIONS[operation.kind](**arguments)
        if not isinstance(results, (list, tuple)):
            results = [results]
        for name, dtype, result in zip(operation.outputs, operation.dtypes, results):
            values[name] = _rounded(result, dtype)

    def run(self, image) -> dict:
        """Returns all values of the program for an RGB image in [0, 255], by name."""
        x = np.asarray(image, np.float32).transpose(2, 0, 1)[None]
        values = self.constants | {self.program.input: x}
        for operation in self.operations:
            self._run(operation, values)
        return values

    def _output_name(self, before_softmax: bool) -> str:
        """Returns the output's name; for a classifier, that of its array of numbers."""
        producers = {name: o for o in self.operations for name in o.outputs}
        operation = producers[self.program.outputs[0]]
        if operation.kind != "classify":
            return self.program.outputs[0]
        (name,) = operation.inputs["probabilities"]
        while before_softmax and producers[name].kind in ("cast", "softmax", "sigmoid"):
            before_softmax = producers[name].kind == "cast"
            (name,) = producers[name].inputs["x"]
        return name

    def predict(self, images, logits: bool = False) -> np.ndarray:
        """Runs RGB images `[images, height, width, 3]` in [0, 255] one by one.

        Returns a classifier's outputs `[images, classes]`, with `logits` the input of
        its last softmax; a segmenter's class maps `[images, height, width]`, or logits
        `[images, rows, columns, classes]`.
        """
        name = self._output_name(logits)
        return np.stack([_as_keras(self.run(image)[name]) for image in images])

    def predict_outputs(self, pixels) -> dict[str, np.ndarray]:
        """Runs a detector's RGB images one by one, without non-maximum suppression.

        Returns `boxes` `[images, anchors, 4]`, corners as fractions of the image, and
        `scores` `[images, anchors, classes]`.
        """
        found = [self._boxes_and_scores(self.run(image)) for image in pixels]
        boxes, scores = (np.stack(values) for values in zip(*found))
        return {"boxes": boxes, "scores": scores}

    def _boxes_and_scores(self, values: dict) -> tuple[np.ndarray, np.ndarray]:
        """Returns a detector's corners `[anchors, 4]` and scores."""
        nms = self.program.nms
        if nms is not None:
            center, size = np.split(values[nms.coordinatesInputFeatureName], 2, -1)
            corners = np.concatenate([center - size / 2, center + size / 2], axis=-1)
            scores = values[nms.confidenceInputFeatureName]
            # The columns after the classes are empty.
            return corners, scores[:, : len(self.program.classes)]
        if set(self.program.outputs) != {"boxes", "scores"}:
            raise ValueError(
                "The package is not a detector. Expected the outputs boxes and scores, "
                f"or non-maximum suppression. Found: {', '.join(self.program.outputs)}."
            )
        return values["boxes"][0], values["scores"][0]
