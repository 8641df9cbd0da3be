"""The tensors of a `.tflite` file: which are computed, and what reads them."""

import collections

from ai_edge_litert import schema_py_generated as schema

from tflite.validation.op_stats import op_name

_MOVES = ("RESHAPE", "TRANSPOSE")


def main_graph(content: bytes) -> tuple[schema.ModelT, schema.SubGraphT]:
    """Returns a file's model and its only graph, as the schema's objects."""
    model = schema.ModelT.InitFromPackedBuf(content)
    return model, model.subgraphs[0]


def _name(graph: schema.SubGraphT, index: int) -> str:
    return graph.tensors[index].name.decode()


def node_of(tensor: str) -> str:
    """Returns the node of the deployment graph that computes a tensor.

    The converter names a tensor after the operations that it merged into one, each in
    the scope of its node: `stem_conv/add;stem_conv/Conv2D`.
    """
    return tensor.split(";")[0].split("/")[0]


def computed_tensors(content: bytes) -> dict[int, str]:
    """Returns the names of the float tensors that inference computes, by index."""
    _, graph = main_graph(content)
    indices = set(graph.inputs).union(*(op.outputs for op in graph.operators))
    return {
        index: _name(graph, index)
        for index in sorted(indices)
        if graph.tensors[index].type == schema.TensorType.FLOAT32
    }


def layer_outputs(content: bytes, outputs: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns the tensor that holds the output of each node of a float file's graph.

    Nodes that the converter merged into others are missing. The file names its own
    outputs after its signature, so the graph's `outputs` are matched in order, if
    given.
    """
    _, graph = main_graph(content)
    # The last tensor in a node's scope is its output; padding comes before it.
    found = {node_of(name): name for name in computed_tensors(content).values()}
    if len(outputs) == len(graph.outputs):
        found |= dict(zip(outputs, (_name(graph, index) for index in graph.outputs)))
    return found


def sigmoid_arguments(content: bytes) -> set[str]:
    """Returns the tensors that only sigmoids read."""
    model, graph = main_graph(content)
    readers = collections.defaultdict(set)
    for operator in graph.operators:
        for index in operator.inputs:
            readers[index].add(op_name(model, operator))
    return {
        _name(graph, index)
        for index, ops in readers.items()
        if ops == {"LOGISTIC"} and index not in graph.outputs
    }


def second_factors(content: bytes) -> set[str]:
    """Returns the second inputs of matrix products, before and after being moved.

    A reshaping or a transposition moves an input without changing its values.
    """
    model, graph = main_graph(content)
    producers = {operator.outputs[0]: operator for operator in graph.operators}
    names = set()
    for operator in graph.operators:
        if op_name(model, operator) != "BATCH_MATMUL":
            continue
        index = operator.inputs[1]
        names.add(_name(graph, index))
        while index in producers and op_name(model, producers[index]) in _MOVES:
            index = producers[index].inputs[0]
            names.add(_name(graph, index))
    return names


def concatenations(content: bytes) -> list[tuple[list[str], str]]:
    """Returns the inputs and the output of each concatenation of floats, last first."""
    model, graph = main_graph(content)
    return [
        (
            [_name(graph, index) for index in operator.inputs],
            _name(graph, operator.outputs[0]),
        )
        for operator in reversed(graph.operators)
        if op_name(model, operator) == "CONCATENATION"
        and graph.tensors[operator.outputs[0]].type == schema.TensorType.FLOAT32
    ]
