"""Rewrites a trained network into the one that phones should run.

Each is exact but for rounding. The algebra stands in functions on weights; the rewrites
below them find where it applies, and leave everything else as it is.
"""

import dataclasses

import numpy as np

from tflite.graph.graph import Graph, Node

LINEAR = ("conv", "depthwise", "dense")
# What passes each token on, or adds up tokens, without a look at its channels.
MOVES = ("add", "crop_tokens", "join_tokens", "pad_tokens", "positions", "unfold")


# The algebra ------------------------------------------------------------------------


def scale_outputs(kernel, bias, scale, offset):
    """Returns the linear layer `scale * (x @ kernel + bias) + offset`.

    The outputs are the last axis of the kernel. Batch normalization after a
    convolution is this, with constant scale and offset once it is trained.
    """
    return kernel * scale, bias * scale + offset


def batch_norm_scale(gamma, beta, mean, variance, epsilon):
    """Returns the scale and offset of batch normalization at inference.

    gamma * (x - mean) / sqrt(variance + epsilon) + beta
    """
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def scale_inputs(kernel, bias, scale, offset):
    """Returns the linear layer `(scale * x + offset) @ kernel + bias`.

    `kernel` is `[inputs, outputs]`. The gamma and beta of a layer normalization go into
    the layer after it this way.
    """
    return kernel * scale[:, None], bias + offset @ kernel


def center_outputs(kernel, bias):
    """Removes the mean over the outputs from everything that a linear layer returns.

    With `C = I - 1/n` the matrix that removes the mean of n numbers,
    `(x @ kernel + bias) @ C = x @ (kernel @ C) + bias @ C`.
    """
    return kernel - kernel.mean(-1, keepdims=True), bias - bias.mean()


def depthwise_outputs(kernel) -> np.ndarray:
    """Views a depthwise kernel `[h, w, inputs, multiplier]` as `[h, w, 1, outputs]`."""
    return kernel.reshape(*kernel.shape[:2], 1, -1)


# The rewrites -----------------------------------------------------------------------


def kernel_and_bias(node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Returns a linear layer's kernel, and its bias or zeros."""
    kernel = node.weights["kernel"]
    outputs = kernel.shape[2] * kernel.shape[3] if node.op == "depthwise" else None
    zeros = np.zeros(outputs or kernel.shape[-1])
    return kernel, node.weights.get("bias", zeros)


def _with(node: Node, kernel, bias, **changes) -> Node:
    weights = {"kernel": kernel, "bias": bias}
    return dataclasses.replace(node, weights=weights, **changes)


def _is_pointwise(node: Node) -> bool:
    """Tells whether a node is a 1x1 convolution that keeps the size."""
    return (
        node.op == "conv"
        and node.weights["kernel"].shape[:2] == (1, 1)
        and node.options["strides"] == (1, 1)
    )


def fold_batch_norms(graph: Graph) -> Graph:
    """Multiplies batch normalization into the linear layer before it."""
    for norm in [node for node in graph.nodes.values() if node.op == "batch_norm"]:
        linear = graph.nodes.get(norm.inputs[0])
        if linear is None or linear.op not in LINEAR:
            continue
        if graph.only_consumer(linear.name) is None:
            continue
        scale, offset = batch_norm_scale(**norm.weights, **norm.options)
        kernel, bias = kernel_and_bias(linear)
        if linear.op == "depthwise":
            scaled, bias = scale_outputs(depthwise_outputs(kernel), bias, scale, offset)
            kernel = scaled.reshape(kernel.shape)
        else:
            kernel, bias = scale_outputs(kernel, bias, scale, offset)
        graph = graph.replace(_with(linear, kernel, bias)).remove(norm.name)
    return graph


def _rescale_twice(first: Node, second: Node) -> Node:
    """Returns the second rescaling with the first one before it in it."""
    scale, offset = second.weights["scale"], second.weights["offset"]
    weights = {
        "scale": first.weights["scale"] * scale,
        "offset": first.weights["offset"] * scale + offset,
    }
    return dataclasses.replace(second, weights=weights)


def _rescale_inputs(conv: Node, scale, offset) -> Node:
    """Returns a convolution that rescales what it takes, which nothing may pad."""
    kernel, bias = kernel_and_bias(conv)
    scale, offset = (np.broadcast_to(v, kernel.shape[2]) for v in (scale, offset))
    shift = np.einsum("i,hwio->o", offset, kernel)
    return _with(conv, kernel * scale[:, None], bias + shift)


def fold_rescaling(graph: Graph, with_offsets: bool = True) -> Graph:
    """Multiplies the images' scale into the first convolution.

    An offset before padding stays: the zeros would be shifted too.

    Args:
        graph: of a network.
        with_offsets: whether to fold offsets where nothing pads. Sums of pixels that
            are not centred lose digits in 16-bit floats.

    Returns:
        A graph with the same outputs.
    """
    for name in [node.name for node in graph.nodes.values() if node.op == "rescale"]:
        node = graph.nodes[name]  # as the merges before have left it
        after = graph.only_consumer(name)
        if after is not None and after.op == "rescale":
            graph = graph.replace(_rescale_twice(node, after)).remove(name)
            continue
        is_padded = False
        while after is not None and after.op == "pad":
            after, is_padded = graph.only_consumer(after.name), True
        if after is None or after.op != "conv":
            continue
        is_padded = is_padded or after.options["padding"] != "VALID"
        folds_offset = with_offsets and not is_padded
        if node.weights["offset"].any() and not folds_offset:
            continue
        graph = graph.replace(_rescale_inputs(after, **node.weights)).remove(name)
    return graph


def scale_queries(graph: Graph) -> Graph:
    """Multiplies attention's `1 / sqrt(head_dim)` into the queries' projection."""
    for node in [node for node in graph.nodes.values() if node.op == "attention"]:
        query = graph.nodes.get(node.inputs[0])
        if query is None or query.op != "dense" or not graph.only_consumer(query.name):
            continue
        kernel, bias = kernel_and_bias(query)
        scale = (kernel.shape[-1] // node.options["num_heads"]) ** -0.5
        scaled = _with(query, *scale_outputs(kernel, bias, scale, 0.0))
        done = dataclasses.replace(node, options={**node.options, "scaled": True})
        graph = graph.replace(scaled, done)
    return graph


def _as_dense(conv: Node, **changes) -> Node:
    kernel, bias = kernel_and_bias(conv)
    return _with(conv, kernel[0, 0], bias, op="dense", options={}, **changes)


def _swap_with_unfold(graph: Graph, conv: Node) -> Graph:
    """Makes `unfold(conv(x))` into `dense(unfold(x))`."""
    (unfold,) = (n for n in graph.consumers(conv.name) if n.op == "unfold")
    (source,) = conv.inputs
    changed = [
        dataclasses.replace(
            node,
            inputs=tuple(
                # Whoever took the tokens takes the projected ones; a fold, which only
                # looks at the size of the map, looks at the one before.
                {unfold.name: conv.name, conv.name: source}.get(name, name)
                for name in node.inputs
            ),
        )
        for node in graph.nodes.values()
        if node.name != conv.name
    ]
    return graph.replace(*changed, _as_dense(conv, inputs=(unfold.name,)))


def _swap_with_fold(graph: Graph, fold: Node, conv: Node) -> Graph:
    """Makes `conv(fold(tokens))` into `fold(dense(tokens))`."""
    tokens, features = fold.inputs
    changed = [
        dataclasses.replace(
            node,
            inputs=tuple(fold.name if n == conv.name else n for n in node.inputs),
        )
        for node in graph.consumers(conv.name)
    ]
    return graph.replace(
        *changed,
        _as_dense(conv, inputs=(tokens,)),
        dataclasses.replace(fold, inputs=(conv.name, features)),
    )


def project_tokens(graph: Graph) -> Graph:
    """Projects tokens where a 1x1 convolution projects the map, if that moves less.

    Unfolding and folding move pixels and, in a map of odd size, average them with
    weights that add up to 1; what acts on each pixel alone can go to the other side.
    On the side with fewer channels there is less to move.
    """
    for name in list(graph.nodes):
        conv = graph.nodes[name]  # as the swaps before have left it
        if not _is_pointwise(conv) or name in graph.outputs:
            continue
        inputs, outputs = conv.weights["kernel"].shape[2:]
        consumers = graph.consumers(conv.name)
        sizes = [n for n in consumers if n.op == "fold" and n.inputs[0] != conv.name]
        unfolds = [
            n for n in consumers if n.op == "unfold" and n.name not in graph.outputs
        ]
        if inputs < outputs and len(unfolds) == 1 and len(consumers) == 1 + len(sizes):
            graph = _swap_with_unfold(graph, conv)
            continue
        fold = graph.nodes.get(conv.inputs[0])
        if fold is not None and fold.op == "fold" and outputs < inputs:
            if graph.only_consumer(fold.name):
                graph = _swap_with_fold(graph, fold, conv)
    return graph


def _moves_tokens(node: Node) -> bool:
    return node.op in MOVES or (node.op == "reshape" and node.options["keeps_channels"])


def _residual_stream(graph: Graph, name: str) -> set[str] | None:
    """Finds all nodes whose outputs are added up with a node's.

    Returns:
        Names of the linear layers that write to the stream, of the sums, and of what
        moves its tokens or adds positions; `None` if anything else writes to it, or
        anything but a layer normalization reads from it.
    """
    stream, open_names = set(), [name]
    while open_names:
        name = open_names.pop()
        node = graph.nodes.get(name)
        if name in stream:
            continue
        if node is None or name in graph.outputs:
            return None
        stream.add(name)
        if _moves_tokens(node):
            open_names += node.inputs
        elif node.op not in ("conv", "dense"):
            return None
        for consumer in graph.consumers(name):
            if _moves_tokens(consumer):
                open_names.append(consumer.name)
            elif consumer.op not in ("layer_norm", "rms_norm"):
                return None
    return stream


def _center_writer(node: Node) -> Node:
    """Removes the mean over the channels from what a node writes to a stream."""
    if node.op in LINEAR:
        return _with(node, *center_outputs(*kernel_and_bias(node)))
    positions = node.weights["positions"]
    centred = positions - positions.mean(-1, keepdims=True)
    return dataclasses.replace(node, weights={"positions": centred})


def reduce_layer_norms(graph: Graph) -> Graph:
    """Divides by the root mean square where layer normalization has no mean to remove.

    In a pre-norm transformer only linear layers and positions write to the residual
    stream and only normalizations read from it. Without the mean of what they write,
    the stream is always centred, and every normalization in it returns what it
    returned before: its variance is the mean of the squares.
    """
    for norm in [node for node in graph.nodes.values() if node.op == "layer_norm"]:
        stream = _residual_stream(graph, norm.inputs[0])
        if stream is None:
            continue
        writers = [graph.nodes[name] for name in stream if graph.nodes[name].weights]
        centred = [_center_writer(node) for node in writers]
        graph = graph.replace(*centred, dataclasses.replace(norm, op="rms_norm"))
    return graph


def fold_norm_scales(graph: Graph) -> Graph:
    """Multiplies the gamma and beta of a normalization into the layers after it."""
    for norm in list(graph.nodes.values()):
        if norm.op not in ("layer_norm", "rms_norm") or norm.name in graph.outputs:
            continue
        consumers = graph.consumers(norm.name)
        if not norm.weights or any(node.op != "dense" for node in consumers):
            continue
        gamma = norm.weights.get("gamma", np.ones(1))
        beta = norm.weights.get("beta", np.zeros(1))
        changed = []
        for node in consumers:
            kernel, bias = kernel_and_bias(node)
            rows = kernel.shape[0]
            scale, offset = np.broadcast_to(gamma, rows), np.broadcast_to(beta, rows)
            changed.append(_with(node, *scale_inputs(kernel, bias, scale, offset)))
        graph = graph.replace(*changed, dataclasses.replace(norm, weights={}))
    return graph


def merge_padding(graph: Graph) -> Graph:
    """Gives zero padding to the convolution after it."""
    for pad in [node for node in graph.nodes.values() if node.op == "pad"]:
        conv = graph.only_consumer(pad.name)
        if conv is None or conv.op not in ("conv", "depthwise"):
            continue
        if conv.options["padding"] != "VALID":
            continue
        options = {**conv.options, "padding": pad.options["padding"]}
        graph = graph.replace(dataclasses.replace(conv, options=options))
        graph = graph.remove(pad.name)
    return graph


REWRITES = (
    fold_batch_norms,
    fold_rescaling,
    scale_queries,
    project_tokens,
    reduce_layer_norms,
    fold_norm_scales,
    merge_padding,
)
# Core ML has a layer normalization of its own, and scales the image at its input.
COREML_REWRITES = tuple(
    rewrite
    for rewrite in REWRITES
    if rewrite not in (fold_rescaling, reduce_layer_norms)
)


def deployment_graph(graph: Graph, rewrites=REWRITES) -> Graph:
    """Applies rewrites.

    Args:
        graph: of a trained network, as `read_model` returns it.
        rewrites: which, in their order.

    Returns:
        A graph with the same outputs.
    """
    for rewrite in rewrites:
        graph = rewrite(graph)
    return graph
