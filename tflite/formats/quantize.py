"""Quantizes float32 `.tflite` files with the AI Edge Quantizer.

Static recipes need the ranges of all tensors, see `measure_ranges` in `calibration.py`.
"""

import contextlib
import io
import re
import warnings

import numpy as np
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

from tflite.graph.graph import Graph
from tflite.graph.rewrites import NORMS
from tflite.metadata.attach import add_entry
from tflite.tasks.task import CONVERTER_SCOPE
from tflite.validation.op_stats import op_name
from tflite.validation.tensors import main_graph

# Kernels with at most this many weights stay float32 in fp16 files. They belong to the
# first layers, which cause most of the error (without them, the RMS error of a logit
# of MobileViT_XXS on clothing photos is 0.0004 instead of 0.0010) and 1 % of the size.
SMALL_KERNEL = 2048

# With this metadata entry XNNPACK computes in 16 bits on ARM.
FP16_INFERENCE = ("reduced_precision_support", b"fp16accfp16")

Op = qtyping.TFLOperationName
_WEIGHT_OPS = (Op.CONV_2D, Op.DEPTHWISE_CONV_2D, Op.FULLY_CONNECTED)
# XNNPACK runs these in float only: with them in 8 bits, MobileNetV3-Large fell into 22
# partitions and took 1.4 times as long on x86; DeiT-Tiny fell into 13.
_FLOAT_FUNCTIONS = (Op.GELU, Op.HARD_SWISH, Op.SOFTMAX)
# Nodes of a graph that stay float in mixed files. A context lies between a norm and a
# softmax, which are float too, and is cheap.
_FLOAT_NODES = (*NORMS, "context")


def _in_float(recipe, scope: str, op=Op.ALL_SUPPORTED) -> None:
    recipe.add_quantization_config(
        scope, op, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
    )


def _scope(graph: Graph, op: str) -> str:
    """Returns a regular expression for the tensors of one operation of a graph."""
    names = [re.escape(node.name) for node in graph.of_kind(op)]
    return f"^({'|'.join(names)})/" if names else "^$"


def _small_kernels(content: bytes) -> str:
    """Returns a regular expression for the outputs of layers with few weights."""
    model, graph = main_graph(content)
    names = [
        re.escape(graph.tensors[operator.outputs[0]].name.decode())
        for operator in graph.operators
        if op_name(model, operator) in _WEIGHT_OPS
        and np.prod(graph.tensors[operator.inputs[1]].shape) <= SMALL_KERNEL
    ]
    return f"^({'|'.join(names)})(;|$)" if names else "^$"


def fp16_recipe(content: bytes) -> list[dict]:
    """Returns the recipe for 16-bit weights, except small and depthwise kernels."""
    recipe = recipe_manager.RecipeManager()
    half = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    for op in (Op.CONV_2D, Op.FULLY_CONNECTED):
        recipe.add_quantization_config(
            ".*", op, half, algorithm_manager.AlgorithmName.FLOAT_CASTING
        )
        _in_float(recipe, _small_kernels(content), op)
    return recipe.get_quantization_recipe()


def allow_fp16_inference(content: bytes) -> bytes:
    """Adds the metadata entry that allows inference in 16-bit floats."""
    return add_entry(content, *FP16_INFERENCE)


def dynamic_recipe() -> list[dict]:
    """Returns the recipe for 8-bit weights and activations quantized at run time.

    Depthwise weights stay float: they are 1 % of all weights, and XNNPACK does not run
    them with dynamic quantization.
    """
    recipe = recipe_manager.RecipeManager()
    for op in (Op.CONV_2D, Op.FULLY_CONNECTED):
        recipe.add_dynamic_config(".*", op, num_bits=8)
    return recipe.get_quantization_recipe()


def _last_activations(graph: Graph | None) -> tuple[str, ...]:
    """Returns scopes of the outputs' softmax or sigmoid, and of these outputs."""
    nodes = [graph.nodes[name] for name in graph.outputs] if graph else []
    last = [x for x in nodes if x.options.get("function") in ("softmax", "sigmoid")]
    names = tuple(f"{re.escape(node.name)}/" for node in last)
    return (*names, CONVERTER_SCOPE) if names else ()


def integer_recipe(
    graph: Graph | None = None, float_scopes: tuple[str, ...] = ()
) -> list[dict]:
    """Returns the recipe for 8 bits everywhere, including input and output.

    Probabilities stay float: those of 8 bits are multiples of 1/256, too coarse for a
    thousand classes. `float_scopes` are regular expressions for the beginnings of names
    of more tensors that stay float.
    """
    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(
        ".*", Op.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
    )
    for scope in (*_last_activations(graph), *float_scopes):
        _in_float(recipe, f"^{scope}")
    return recipe.get_quantization_recipe()


def mixed_recipe(graph: Graph | None, float_scopes: tuple[str, ...] = ()) -> list[dict]:
    """Returns the recipe for 8 bits except norms, `_FLOAT_FUNCTIONS`, input and output.

    Without the graph of the file, only operations with weights are quantized.
    `float_scopes` are regular expressions for the beginnings of names of more tensors
    that stay float; the weights of the operations that return them have 8 bits.
    """
    recipe = recipe_manager.RecipeManager()
    bits = {"activation_num_bits": 8, "weight_num_bits": 8}
    if graph is None:
        for op in _WEIGHT_OPS:
            recipe.add_static_config(".*", op, **bits)
        return recipe.get_quantization_recipe()
    recipe.add_static_config(".*", Op.ALL_SUPPORTED, **bits)
    for op in (Op.INPUT, Op.OUTPUT, *_FLOAT_FUNCTIONS):
        _in_float(recipe, ".*", op)
    for op in _FLOAT_NODES:
        _in_float(recipe, _scope(graph, op))
    for scope in float_scopes:
        _in_float(recipe, f"^{scope}")
        for op in (Op.CONV_2D, Op.FULLY_CONNECTED):
            recipe.add_dynamic_config(f"^{scope}", op, num_bits=8)
    return recipe.get_quantization_recipe()


def quantize(content: bytes, recipe: list[dict], ranges: dict | None = None) -> bytes:
    """Quantizes a float32 file; static recipes need the ranges of `measure_ranges`."""
    # The quantizer prints its progress, although it takes less than a second, and runs
    # LiteRT in a way that LiteRT warns of.
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore", UserWarning)
        result = quantizer.Quantizer(bytearray(content), recipe).quantize(ranges)
    return bytes(result.quantized_model)
