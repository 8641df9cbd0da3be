"""The tensors of a `.tflite` file: which are computed, and what reads them."""

from ai_edge_litert import schema_py_generated as schema

from tflite.validation.op_stats import op_name

_MOVES = ("RESHAPE", "TRANSPOSE")


def main_graph(content: bytes) -> tuple[schema.ModelT, schema.SubGraphT]:
    """Returns a file's model and its only graph, as the schema's objects."""
    model = schema.ModelT.InitFromPackedBuf(content)
    return model, model.subgraphs[0]


def node_of(tensor: str) -> str:
    """Returns the node of the deployment graph that computes a tensor.

    The converter names a tensor after the operations that it merged into one, each in
    the scope of its node: `stem_conv/add;stem_conv/Conv2D`.
    """
    return tensor.split(";")[0].split("/")[0]


def computed_tensors(content: bytes) -> dict[int, str]:
    """Returns the names of the float tensors that inference computes, by index."""
    _, graph = main_graph(content)
    indices = set(graph.inputs)
    indices.update(i for operator in graph.operators for i in operator.outputs)
    found = {i: graph.tensors[i] for i in sorted(indices)}
    return {
        i: tensor.name.decode()
        for i, tensor in found.items()
        if tensor.type == schema.TensorType.FLOAT32
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
        names = [graph.tensors[index].name.decode() for index in graph.outputs]
        found |= dict(zip(outputs, names))
    return found


def sigmoid_arguments(content: bytes) -> set[str]:
    """Returns the tensors that only sigmoids read."""
    model, graph = main_graph(content)
    readers: dict[int, set[str]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(index, set()).add(op_name(model, operator))
    return {
        graph.tensors[index].name.decode()
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
        while True:
            names.add(graph.tensors[index].name.decode())
            producer = producers.get(index)
            if producer is None or op_name(model, producer) not in _MOVES:
                break
            index = producer.inputs[0]
    return names


def concatenations(content: bytes) -> list[tuple[list[str], str]]:
    """Returns the inputs and the output of each concatenation of floats, last first."""
    model, graph = main_graph(content)
    return [
        (
            [graph.tensors[index].name.decode() for index in operator.inputs],
            graph.tensors[operator.outputs[0]].name.decode(),
        )
        for operator in reversed(graph.operators)
        if op_name(model, operator) == "CONCATENATION"
        and graph.tensors[operator.outputs[0]].type == schema.TensorType.FLOAT32
    ]
