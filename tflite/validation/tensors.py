"""The tensors of a `.tflite` file: which are computed, and what they are used for."""

from ai_edge_litert import schema_py_generated as schema

from tflite.validation.op_stats import op_name

_MOVES = ("RESHAPE", "TRANSPOSE")


def main_graph(content: bytes):
    """Returns a file's model and its only graph, as the schema's objects."""
    model = schema.ModelT.InitFromPackedBuf(content)
    return model, model.subgraphs[0]


def node_of(tensor: str) -> str:
    """Returns the node of the deployment graph whose operation returns a tensor.

    The converter names a tensor after the operations that it has merged into one,
    `stem_conv/add;stem_conv/Conv2D`, each in the scope of its node.
    """
    return tensor.split(";")[0].split("/")[0]


def computed_tensors(content: bytes) -> dict[int, str]:
    """Returns the names of the float tensors that an inference computes, by index."""
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
    """Returns the tensor that holds what each node of the deployment graph returns.

    Args:
        content: of a float file of the graph.
        outputs: of the graph; the file's own, which have names of the file's
            signature, are theirs if they are as many.

    Returns:
        `{node: tensor}`, without nodes that the converter has merged into others.
    """
    _, graph = main_graph(content)
    # The last tensor in a node's scope is its output; padding comes before it.
    found = {node_of(name): name for name in computed_tensors(content).values()}
    if len(outputs) == len(graph.outputs):
        names = [graph.tensors[index].name.decode() for index in graph.outputs]
        found |= dict(zip(outputs, names))
    return found


def sigmoid_arguments(content: bytes) -> set[str]:
    """Returns the tensors that nothing but a sigmoid reads."""
    model, graph = main_graph(content)
    readers = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(index, set()).add(op_name(model, operator))
    return {
        graph.tensors[index].name.decode()
        for index, ops in readers.items()
        if ops == {"LOGISTIC"} and index not in graph.outputs
    }


def second_factors(content: bytes) -> set[str]:
    """Returns the second inputs of matrix products, and what they are moved from."""
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
    """Returns the inputs and the output of concatenated floats, the last ones first."""
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
