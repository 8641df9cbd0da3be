"""From a network to the content of a `.tflite` file of one image."""

import re
import tempfile
from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from tflite.graph import tf_ops
from tflite.graph.graph import Graph

SIGNATURE = "serving_default"
INPUT_NAME = "images"


def _image_spec(shape) -> tf.TensorSpec:
    # A free batch dimension would leave the file full of shape arithmetic, which
    # delegates refuse.
    return tf.TensorSpec([1, *shape], tf.float32, INPUT_NAME)


def trace_graph(graph: Graph, finish: Callable) -> Callable:
    """Makes a traceable function of a graph, from an image to `{name: output}`.

    Args:
        graph: of the network.
        finish: from the network's outputs to what the file returns, see
            `tflite.tasks.task.Task`.
    """

    @tf.function(input_signature=[_image_spec(graph.input_shape)])
    def serve(images):
        return finish(tf_ops.run(graph, images))

    return serve


def trace_model(function: Callable, image_shape, finish: Callable) -> Callable:
    """Makes a traceable function of a model with variables, which become constants.

    Args:
        function: from images `[1, height, width, channels]` to a list of outputs.
        image_shape: `(height, width, channels)`.
        finish: as in `trace_graph`.
    """
    specification = _image_spec(image_shape)
    traced = tf.function(function).get_concrete_function(specification)
    frozen = convert_to_constants.convert_variables_to_constants_v2(traced)

    @tf.function(input_signature=[specification])
    def serve(images):
        return finish(frozen(images))

    return serve


def tflite_content(serve: Callable) -> bytes:
    """Converts a traceable function to a `.tflite` with a signature.

    Args:
        serve: what `trace_graph` or `trace_model` returned.

    Returns:
        The content of the file.

    Raises:
        ValueError: if TFLite's own operations cannot express it; names those of
            TensorFlow that are left.
        RuntimeError: if the converter fails for another reason, which it tells.
    """
    module = tf.Module()
    module.serve = serve
    signatures = {SIGNATURE: serve.get_concrete_function()}
    with tempfile.TemporaryDirectory() as folder:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, folder, signatures, options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return converter.convert()
        except Exception as error:  # the converter's own kind has no public name
            raise _refusal(error) from error


def _refusal(error: Exception) -> Exception:
    """Returns what the converter's error means, as an exception to raise."""
    names = sorted(set(re.findall(r"^\s*tf\.(\w+)\(", str(error), re.MULTILINE)))
    if "Some ops" in str(error) and names:
        return ValueError(
            f"TFLite has no operations for {', '.join(names)} of TensorFlow. Build the "
            "model without the layers or keras.ops that are made of them."
        )
    return RuntimeError(f"TensorFlow's converter failed on this model: {error}")
