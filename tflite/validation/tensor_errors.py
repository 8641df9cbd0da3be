"""Finds the layers at which an 8-bit file departs from the float network."""

import contextlib
import io
import warnings

import numpy as np
from ai_edge_quantizer import model_validator
from ai_edge_quantizer.utils.validation_utils import ValidationErrorMetric

from tflite.graph.graph import Graph
from tflite.validation.tensors import layer_outputs, main_graph

SHOWN = 5
IMAGES = 4  # more images hardly change the ranking
MIN_RATIO = 1e-10
MIN_NOISE = 1e-30  # the noise of a tensor without error


def largest_errors(
    graph: Graph, float_content: bytes, content: bytes, images: np.ndarray
) -> list[dict[str, float | str]]:
    """Finds the `SHOWN` layers at which the error of an 8-bit file grows most.

    Every layer passes on the errors of its inputs. So layers are ranked by the
    noise-to-signal ratio of their output minus that of their inputs. `snr_db` is the
    power of a layer's output divided by that of its error. Of the images, `[images,
    height, width, channels]` in the files' range, the first `IMAGES` are used.
    """
    ratios = _signal_to_noise(graph, float_content, content, images[:IMAGES])
    noise = {layer: 1 / max(ratio, MIN_RATIO) for layer, ratio in ratios.items()}

    def input_noise(layer: str) -> float:
        """Returns the noise of a layer's inputs, looking past merged layers."""
        inputs = [name for name in graph.nodes[layer].inputs if name in graph.nodes]
        return max(
            (noise[name] if name in noise else input_noise(name) for name in inputs),
            default=0.0,
        )

    ranked = sorted(
        noise, key=lambda layer: noise[layer] - input_noise(layer), reverse=True
    )
    return [
        {"layer": layer, "snr_db": float(np.round(-10 * np.log10(noise[layer]), 1))}
        for layer in ranked[:SHOWN]
    ]


def _signal_to_noise(
    graph: Graph, float_content: bytes, content: bytes, images: np.ndarray
) -> dict[str, float]:
    (signature,) = main_graph(float_content)[0].signatureDefs
    (given,) = signature.inputs
    samples = [{given.name.decode(): image[None]} for image in images]
    # The validator prints its progress, and LiteRT warns about the memory that all
    # tensors take.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compared = model_validator.compare_model(
            float_content,
            content,
            {signature.signatureKey.decode(): samples},
            [ValidationErrorMetric.SNR],
            [_ratio],
            use_xnnpack=False,  # XNNPACK would hide the tensors within its partitions
        )
    found, ratios = compared.get_all_tensor_results(), {}
    for layer, tensor in layer_outputs(float_content, graph.outputs).items():
        if layer in graph.nodes and tensor in found:
            (ratio,) = found[tensor].values()
            if np.isfinite(ratio):
                ratios[layer] = ratio
    return ratios


def _ratio(values, expected) -> float:
    """Returns the power of a tensor divided by that of its error."""
    if np.size(values) != np.size(expected):  # different tensors of the same name
        return np.inf
    values, expected = (np.ravel(x).astype(np.float64) for x in (values, expected))
    noise = np.mean((values - expected) ** 2)
    return float(np.mean(expected**2) / max(noise, MIN_NOISE))


def describe(errors: list[dict]) -> str:
    """Names the layers of `largest_errors` in a sentence."""
    named = ", ".join(f"{e['layer']} ({e['snr_db']:g} dB)" for e in errors)
    return f"The error grows most in the layers {named}."
