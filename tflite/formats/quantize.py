"""Smaller forms of a float32 `.tflite` file, made by the AI Edge Quantizer.

Static forms need the range of every tensor, see `tflite.formats.calibration.measure_ranges`.
"""

import contextlib
import io
import re

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

from tflite.graph.graph import Graph
from tflite.graph.tensors import main_graph
from tflite.validation.opcheck import op_name

# Kernels of so few weights stay in 32 bits in a file of 16: they are those of the first
# layers, which make most of the error (MobileViT_XXS on clothing photos: 0.0010 to
# 0.0004 rms of a logit) and little of the size (1 %).
SMALL_KERNEL = 2048

# XNNPACK computes in 16 bits on ARM where a file says so under this name.
FP16_INFERENCE = ("reduced_precision_support", b"fp16accfp16")

Op = qtyping.TFLOperationName
_WITH_KERNEL = (Op.CONV_2D, Op.DEPTHWISE_CONV_2D, Op.FULLY_CONNECTED)
# What XNNPACK computes in floats only: in 8 bits MobileNetV3-Large fell into 22 pieces
# and took 1.4 times as long on x86, DeiT-Tiny into 13.
_FLOAT_FUNCTIONS = (Op.GELU, Op.HARD_SWISH, Op.SOFTMAX)


def _in_float(recipe, scope: str, op=Op.ALL_SUPPORTED) -> None:
    recipe.add_quantization_config(
        scope, op, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
    )


def _scope(graph: Graph, op: str) -> str:
    """Returns a pattern of the tensors of one kind of operation of a graph."""
    names = [re.escape(node.name) for node in graph.nodes.values() if node.op == op]
    return f"^({'|'.join(names)})/" if names else "^$"


def _small_kernels(content: bytes) -> str:
    """Returns a pattern of the outputs of layers that have few weights."""
    model, graph = main_graph(content)
    names = [
        re.escape(graph.tensors[operator.outputs[0]].name.decode())
        for operator in graph.operators
        if op_name(model, operator) in _WITH_KERNEL
        and np.prod(graph.tensors[operator.inputs[1]].shape) <= SMALL_KERNEL
    ]
    return f"^({'|'.join(names)})(;|$)" if names else "^$"


def fp16_recipe(content: bytes) -> list[dict]:
    """Weights in 16-bit floats, but for the smallest and the depthwise kernels."""
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
    """Adds to a file that sums may be computed in 16-bit floats too."""
    model, _ = main_graph(content)
    name, value = FP16_INFERENCE
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(value, np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name.encode(), len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def dynamic_recipe() -> list[dict]:
    """8-bit weights; activations are quantized, image by image, as they come.

    Depthwise weights stay: they are 1 % of all, and XNNPACK does not take them so.
    """
    recipe = recipe_manager.RecipeManager()
    for op in (Op.CONV_2D, Op.FULLY_CONNECTED):
        recipe.add_dynamic_config(".*", op, num_bits=8)
    return recipe.get_quantization_recipe()


def integer_recipe() -> list[dict]:
    """Everything in 8 bits, the input and output too."""
    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(
        ".*", Op.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
    )
    return recipe.get_quantization_recipe()


def mixed_recipe(graph: Graph | None, float_scopes: tuple[str, ...] = ()) -> list[dict]:
    """8 bits but for norms of tokens, `_FLOAT_FUNCTIONS`, the input and the output.

    Args:
        graph: what the file was made of. Without it, only what has weights is
            quantized.
        float_scopes: patterns of the beginnings of names of tensors that are floats
            too; the weights of what returns them have 8 bits.
    """
    recipe = recipe_manager.RecipeManager()
    bits = {"activation_num_bits": 8, "weight_num_bits": 8}
    if graph is None:
        for op in _WITH_KERNEL:
            recipe.add_static_config(".*", op, **bits)
        return recipe.get_quantization_recipe()
    recipe.add_static_config(".*", Op.ALL_SUPPORTED, **bits)
    for op in (Op.INPUT, Op.OUTPUT, *_FLOAT_FUNCTIONS):
        _in_float(recipe, ".*", op)
    _in_float(recipe, _scope(graph, "rms_norm"))
    _in_float(recipe, _scope(graph, "layer_norm"))
    for scope in float_scopes:
        _in_float(recipe, f"^{scope}")
        for op in (Op.CONV_2D, Op.FULLY_CONNECTED):
            recipe.add_dynamic_config(f"^{scope}", op, num_bits=8)
    return recipe.get_quantization_recipe()


def quantize(content: bytes, recipe: list[dict], ranges: dict | None = None) -> bytes:
    """Quantizes a file.

    Args:
        content: of a float32 `.tflite` file.
        recipe: one of those above.
        ranges: of `measure_ranges`, for static recipes.

    Returns:
        The content of the quantized file.
    """
    # It prints its own progress, which is over within a second.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        result = quantizer.Quantizer(bytearray(content), recipe).quantize(ranges)
    return bytes(result.quantized_model)
