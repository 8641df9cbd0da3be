"""A trained network as a flat list of operations with their weights, without Keras."""

import dataclasses
import graphlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation, `op` of `tflite.graph.tf_ops.OPERATIONS`.

    Its name is that of its Keras layer, made unique in the graph. `inputs` are the
    names of the nodes whose outputs it takes. `weights` are for example `kernel` and
    `bias`, and `options` for example `strides`.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)

    def rewire(self, names: dict[str, str]) -> "Node":
        """Returns the node with other inputs, by the names of the present ones."""
        inputs = tuple(names.get(name, name) for name in self.inputs)
        return dataclasses.replace(self, inputs=inputs)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Operations, each of which takes the outputs of others.

    Nodes refer to the image of the shape `(height, width, channels)` by `input_name`.
    The network returns the outputs of the nodes that `outputs` names.
    """

    input_name: str
    input_shape: tuple[int, int, int]
    nodes: dict[str, Node]
    outputs: tuple[str, ...]

    def in_order(self) -> list[Node]:
        """Returns the nodes, each after its inputs."""
        sources = {node.name: node.inputs for node in self.nodes.values()}
        order = graphlib.TopologicalSorter(sources).static_order()
        return [self.nodes[name] for name in order if name in self.nodes]

    def of_kind(self, op: str) -> list[Node]:
        """Returns the nodes of an operation."""
        return [node for node in self.nodes.values() if node.op == op]

    def consumers(self, name: str) -> list[Node]:
        """Returns the nodes that take a node's output, once for each time."""
        nodes = self.nodes.values()
        return [node for node in nodes for source in node.inputs if source == name]

    def only_consumer(self, name: str) -> Node | None:
        """Returns the node that takes a node's output, if nothing else does."""
        consumers = self.consumers(name)
        is_only = len(consumers) == 1 and name not in self.outputs
        return consumers[0] if is_only else None

    def replace(self, *nodes: Node) -> "Graph":
        """Returns the graph with these nodes in place of those of their names."""
        return dataclasses.replace(
            self, nodes=self.nodes | {node.name: node for node in nodes}
        )

    def remove(self, name: str) -> "Graph":
        """Returns the graph without a node; its only input takes its place."""
        (source,) = self.nodes[name].inputs
        nodes = {
            other: node.rewire({name: source})
            for other, node in self.nodes.items()
            if other != name
        }
        outputs = tuple(source if other == name else other for other in self.outputs)
        return dataclasses.replace(self, nodes=nodes, outputs=outputs)
