"""Runs a `.tflite` file with LiteRT, in arrays."""

from pathlib import Path

import numpy as np


class LiteRTModel:
    """A `.tflite` file with one input and one output.

    Args:
        path: of the file.
        num_threads: CPU threads.

    Raises:
        ValueError: if the file is missing or is no TFLite model.

    Example:

    >>> model = LiteRTModel("mobilevit_xxs_fp32.tflite")
    >>> model.predict(images).shape
    (8, 1000)
    """

    def __init__(self, path, num_threads: int = 1):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ValueError(
                "Running a .tflite file takes LiteRT: pip install '.[tflite]'."
            ) from error
        if not Path(path).is_file():
            raise ValueError(f"There is no file {path}.")
        try:
            self.interpreter = Interpreter(str(path), num_threads=num_threads)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is no TFLite model: {error}") from error
        (self.input,) = self.interpreter.get_input_details()
        (self.output,) = self.interpreter.get_output_details()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input, batch first: `(1, height, width, channels)`."""
        return tuple(int(side) for side in self.input["shape"])

    def invoke(self, image) -> np.ndarray:
        """Runs one input of exactly the file's shape and type."""
        self.interpreter.set_tensor(self.input["index"], image)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output["index"])

    def predict(self, images) -> np.ndarray:
        """Runs images one by one.

        Args:
            images: float32 `[images, height, width, channels]`.

        Returns:
            The outputs, `[images, ...]`.
        """
        return np.concatenate([self.invoke(image[None]) for image in images])

    def xnnpack_partitions(self) -> int:
        """Counts the pieces that XNNPACK runs; 1 is a graph taken whole."""
        # The only way to ask: the interpreter has no public list of its nodes.
        details = self.interpreter._get_ops_details()
        return sum(node["op_name"] == "DELEGATE" for node in details)
