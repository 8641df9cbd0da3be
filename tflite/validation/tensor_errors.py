"""Where an 8-bit file differs from the float network: its tensors, one by one."""

import contextlib
import io
import warnings

import numpy as np
from ai_edge_quantizer import model_validator
from ai_edge_quantizer.utils.validation_utils import ValidationErrorMetric

from tflite.formats.litert import INPUT_NAME, SIGNATURE
from tflite.graph.graph import Graph
from tflite.validation.tensors import layer_outputs

SHOWN = 5
IMAGES = 4  # the order of the largest errors hardly depends on them
LEAST_RATIO = 1e-10
SMALLEST = 1e-30  # noise of a tensor that is equal


def largest_errors(
    graph: Graph, float_content: bytes, content: bytes, images
) -> list[dict[str, float | str]]:
    """Finds the layers at which the error grows most.

    An error that one layer makes is in everything after it. So layers are ranked by
    the noise-to-signal ratio of what they return beyond that of what they take.

    Args:
        graph: of both files; its nodes have the names of the Keras model's layers.
        float_content: of the float `.tflite` file.
        content: of the 8-bit file.
        images: `[images, height, width, channels]`, in the files' range; the first
            `IMAGES` are used.

    Returns:
        The first `SHOWN` layers of that ranking: `layer`, and `snr_db`, the power of
        its output over that of its error.
    """
    ratios = _signal_to_noise(graph, float_content, content, images[:IMAGES])
    # What is not a number is the worst of all.
    noise = {
        layer: 1 / (ratio if ratio > LEAST_RATIO else LEAST_RATIO)
        for layer, ratio in ratios.items()
    }

    def before(layer: str) -> float:
        """Returns the noise of what a layer takes, past layers merged into it."""
        inputs = [name for name in graph.nodes[layer].inputs if name in graph.nodes]
        return max(
            (noise[name] if name in noise else before(name) for name in inputs),
            default=0.0,
        )

    ranked = sorted(noise, key=lambda layer: noise[layer] - before(layer), reverse=True)
    return [
        {"layer": layer, "snr_db": float(np.round(-10 * np.log10(noise[layer]), 1))}
        for layer in ranked[:SHOWN]
    ]


def _signal_to_noise(
    graph: Graph, float_content: bytes, content: bytes, images
) -> dict[str, float]:
    """Returns the signal-to-noise ratio of the layers' outputs."""
    samples = [{INPUT_NAME: image[None]} for image in images]
    # It prints its progress, and LiteRT warns that it keeps all tensors in memory.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compared = model_validator.compare_model(
            float_content,
            content,
            {SIGNATURE: samples},
            [ValidationErrorMetric.SNR],
            [_ratio],
            use_xnnpack=False,  # which would hide the tensors within its pieces
        )
    found, ratios = compared.get_all_tensor_results(), {}
    for layer, tensor in layer_outputs(float_content, graph.outputs).items():
        if layer in graph.nodes and tensor in found:
            (ratio,) = found[tensor].values()
            if np.isfinite(ratio):
                ratios[layer] = ratio
    return ratios


def _ratio(values, expected) -> float:
    """Returns the power of a tensor over that of its error."""
    if np.size(values) != np.size(expected):  # another tensor by the same name
        return np.inf
    values, expected = (np.ravel(x).astype(np.float64) for x in (values, expected))
    noise = np.mean((values - expected) ** 2)
    return float(np.mean(expected**2) / max(noise, SMALLEST))


def describe(errors: list[dict]) -> str:
    """Names the layers of `largest_errors` in a sentence."""
    named = ", ".join(f"{e['layer']} ({e['snr_db']:g} dB)" for e in errors)
    return f"The error grows most in the layers {named}."
