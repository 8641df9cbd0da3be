"""A trained network as a flat list of operations with their weights.

What the rewrites of `tflite/graph/rewrites.py` work on: plain values, in the order in which
they are computed, without Keras.
"""

import dataclasses
import graphlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: of the Keras layer that it comes from, unique in the graph.
        op: a key of `tflite.graph.tf_ops.OPERATIONS`.
        inputs: names of the nodes whose outputs it takes.
        weights: arrays by name, `kernel` and `bias` for example.
        options: what else the operation needs, `strides` for example.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Operations and what they take from each other.

    Attributes:
        input_name: name by which nodes refer to the image, `[batch, height, width, 3]`.
        input_shape: of the image, `(height, width, channels)`.
        nodes: by name.
        outputs: names of the nodes whose outputs are the network's.
    """

    input_name: str
    input_shape: tuple[int, int, int]
    nodes: dict[str, Node]
    outputs: tuple[str, ...]

    def in_order(self) -> list[Node]:
        """Returns the nodes, each after those whose outputs it takes."""
        sources = {node.name: node.inputs for node in self.nodes.values()}
        order = graphlib.TopologicalSorter(sources).static_order()
        return [self.nodes[name] for name in order if name in self.nodes]

    def consumers(self, name: str) -> list[Node]:
        """Returns the nodes that take a node's output, each once for each time."""
        nodes = self.nodes.values()
        return [node for node in nodes for source in node.inputs if source == name]

    def only_consumer(self, name: str) -> Node | None:
        """Returns the one node that takes a node's output, if nothing else does."""
        consumers = self.consumers(name)
        is_only = len(consumers) == 1 and name not in self.outputs
        return consumers[0] if is_only else None

    def replace(self, *nodes: Node) -> "Graph":
        """Returns the graph with other nodes under the same names."""
        return dataclasses.replace(
            self, nodes=self.nodes | {node.name: node for node in nodes}
        )

    def remove(self, name: str) -> "Graph":
        """Returns the graph without a node of one input, which takes its place."""
        (source,) = self.nodes[name].inputs

        def rename(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(source if other == name else other for other in names)

        nodes = {
            node.name: dataclasses.replace(node, inputs=rename(node.inputs))
            for node in self.nodes.values()
            if node.name != name
        }
        return dataclasses.replace(self, nodes=nodes, outputs=rename(self.outputs))
