"""Converts a network to the content of a `.tflite` file that takes one image."""

import functools
import re
import tempfile
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from tflite.graph import tf_ops
from tflite.graph.graph import Graph

SIGNATURE = "serving_default"
INPUT_NAME = "images"

Serve = Any  # a tf.function from an image to {name: output}


def _image_spec(shape) -> tf.TensorSpec:
    # With a free batch dimension the file would compute shapes at run time, which
    # delegates refuse.
    return tf.TensorSpec([1, *shape], tf.float32, INPUT_NAME)


def _trace(network: Callable, image_shape, postprocess: Callable) -> Serve:
    # Nothing here branches on tensors; AutoGraph took a sixth of the time.
    @tf.function(input_signature=[_image_spec(image_shape)], autograph=False)
    def serve(images):
        return postprocess(network(images))

    return serve


def trace_graph(graph: Graph, postprocess: Callable) -> Serve:
    """Makes the traceable function from an image to a graph's `{name: output}`."""
    return _trace(functools.partial(tf_ops.run, graph), graph.input_shape, postprocess)


def trace_model(
    function: Callable, image_shape: tuple[int, int, int], postprocess: Callable
) -> Serve:
    """Makes the traceable function of a model; its variables become constants.

    `function` maps images `[1, height, width, channels]` to a list of outputs.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(
        _image_spec(image_shape)
    )
    frozen = convert_to_constants.convert_variables_to_constants_v2(traced)
    return _trace(frozen, image_shape, postprocess)


def tflite_content(serve: Serve) -> bytes:
    """Converts a traceable function to the content of a file with a signature.

    Raises a ValueError if TFLite's own operations cannot express it, a RuntimeError if
    the converter fails for another reason, and an OSError if the disk is full.
    """
    module = tf.Module()
    module.serve = serve
    signatures = {SIGNATURE: serve.get_concrete_function()}
    with tempfile.TemporaryDirectory() as folder:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        try:
            tf.saved_model.save(module, folder, signatures, options)
        except tf.errors.OpError as error:  # no OSError, even if the disk is full
            raise OSError(
                f"Cannot write to the folder of temporary files, {folder}: "
                f"{error.message}. Make room there, or set TMPDIR to another folder."
            ) from error
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return converter.convert()
        except Exception as error:  # the converter's exception has no public name
            raise _refusal(error) from error


def _refusal(error: Exception) -> Exception:
    """Returns the exception to raise for an error of the converter."""
    names = sorted(set(re.findall(r"^\s*tf\.(\w+)\(", str(error), re.MULTILINE)))
    if "Some ops" in str(error) and names:
        return ValueError(
            f"TFLite has no operations for {', '.join(names)} of TensorFlow. Build the "
            "model without the layers or keras.ops that use them."
        )
    return RuntimeError(f"TensorFlow's converter failed on this model: {error}")
