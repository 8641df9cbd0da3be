"""Lets an int8 file take and return uint8, the type of the pixels of cameras."""

import copy

from ai_edge_litert import schema_py_generated as schema

from tflite.metadata.attach import read_model, write_model

SHIFT = 128  # from int8 to uint8: the same real value


def take_uint8(content: bytes) -> bytes:
    """Converts each int8 input and output of a file to uint8.

    The network inside is not changed. An added operation moves the integers by 128, so
    the real values are equal. Floats at the ends stay as they are.
    """
    model = read_model(content)
    (graph,) = model.subgraphs
    quantize = _quantize_code(model)
    before, after = [], []
    for index in list(graph.inputs):
        if graph.tensors[index].type == schema.TensorType.INT8:
            outer = _uint8_twin(model, graph, index)
            before.append(_operation(quantize, outer, index))
    for index in list(graph.outputs):
        if graph.tensors[index].type == schema.TensorType.INT8:
            outer = _uint8_twin(model, graph, index)
            after.append(_operation(quantize, index, outer))
    graph.operators = [*before, *graph.operators, *after]
    return write_model(model)


def _quantize_code(model: schema.ModelT) -> int:
    """Adds the operation QUANTIZE to a model; returns the index of its code."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    code.version = 2  # between integers
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _uint8_twin(model: schema.ModelT, graph: schema.SubGraphT, index: int) -> int:
    """Adds a uint8 tensor that takes the place of an input or output; its index."""
    inner = graph.tensors[index]
    outer = copy.deepcopy(inner)
    outer.type = schema.TensorType.UINT8
    (zero_point,) = inner.quantization.zeroPoint
    outer.quantization.zeroPoint = [zero_point + SHIFT]
    inner.name = inner.name + b"_int8"
    graph.tensors.append(outer)
    added = len(graph.tensors) - 1
    for ends in (graph.inputs, graph.outputs):
        ends[:] = [added if end == index else end for end in ends]
    for signature in model.signatureDefs or []:
        for end in [*signature.inputs, *signature.outputs]:
            if end.tensorIndex == index:
                end.tensorIndex = added
    return added


def _operation(code: int, source: int, target: int) -> schema.OperatorT:
    operation = schema.OperatorT()
    operation.opcodeIndex = code
    operation.inputs, operation.outputs = [source], [target]
    return operation
