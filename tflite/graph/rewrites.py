"""Rewrites a trained network into a faster one with the same outputs.

Each rewrite is exact except for rounding. The functions at the top do the algebra on
weights. The rewrites below find where it applies, and leave everything else as it is.
"""

import dataclasses

import numpy as np

from tflite.graph.graph import Graph, Node

Arrays = tuple[np.ndarray, np.ndarray]  # kernel and bias, or scale and offset
LINEAR = ("conv", "depthwise", "dense")
# Operations that pass tokens on or add them, and treat all channels alike.
MOVES = ("add", "crop_tokens", "join_tokens", "pad_tokens", "positions", "unfold")

NORMS = ("image_norm", "layer_norm", "rms_norm")
# Operations that average or move pixels or tokens, and the position of this input.
AVERAGED_INPUT = {"context": 1, "fold": 0}


# The algebra ------------------------------------------------------------------------


def scale_outputs(kernel, bias, scale, offset) -> Arrays:
    """Returns the linear layer `scale * (x @ kernel + bias) + offset`.

    The outputs are the last axis of the kernel. Once trained, batch normalization
    after a convolution is such a scale and offset.
    """
    return kernel * scale, bias * scale + offset


def batch_norm_scale(gamma, beta, mean, variance, epsilon) -> Arrays:
    """Returns the scale and offset of batch normalization at inference.

    `gamma * (x - mean) / sqrt(variance + epsilon) + beta` is `scale * x + offset`.
    """
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def scale_inputs(kernel, bias, scale, offset) -> Arrays:
    """Returns the linear layer `(scale * x + offset) @ kernel + bias`.

    `kernel` is `[..., inputs, outputs]`, where the other axes have one element. The
    gamma and beta of a normalization are such a scale and offset of the next layer's
    inputs.
    """
    return kernel * scale[:, None], bias + np.ravel(offset @ kernel)


def center_outputs(kernel, bias) -> Arrays:
    """Returns the linear layer whose outputs have their mean subtracted.

    The matrix `C = I - 1/n` subtracts the mean of n numbers, and
    `(x @ kernel + bias) @ C = x @ (kernel @ C) + bias @ C`.
    """
    return kernel - kernel.mean(-1, keepdims=True), bias - bias.mean()


# The rewrites -----------------------------------------------------------------------


def kernel_and_bias(node: Node) -> Arrays:
    """Returns a linear layer's kernel, and its bias or zeros."""
    kernel = node.weights["kernel"]
    outputs = kernel.shape[2] * kernel.shape[3] if node.op == "depthwise" else None
    zeros = np.zeros(outputs or kernel.shape[-1])
    return kernel, node.weights.get("bias", zeros)


def per_output(node: Node, values: np.ndarray) -> np.ndarray:
    """Shapes numbers `[outputs]` so that they broadcast to a linear layer's kernel."""
    if node.op == "depthwise":  # [height, width, inputs, multiplier]
        return values.reshape(node.weights["kernel"].shape[2:])
    return values


def _with(node: Node, kernel, bias, **changes) -> Node:
    weights = {"kernel": kernel, "bias": bias}
    return dataclasses.replace(node, weights=weights, **changes)


def _is_pointwise(node: Node) -> bool:
    return (
        node.op == "conv"
        and node.weights["kernel"].shape[:2] == (1, 1)
        and node.options["strides"] == (1, 1)
    )


def fold_batch_norms(graph: Graph) -> Graph:
    """Folds batch normalization into the linear layer before it."""
    for norm in graph.of_kind("batch_norm"):
        linear = graph.nodes.get(norm.inputs[0])
        if linear is None or linear.op not in LINEAR:
            continue
        if not graph.only_consumer(linear.name):
            continue
        scale, offset = batch_norm_scale(**norm.weights, **norm.options)
        kernel, bias = kernel_and_bias(linear)
        kernel = kernel * per_output(linear, scale)
        linear = _with(linear, kernel, bias * scale + offset)
        graph = graph.replace(linear).remove(norm.name)
    return graph


def _rescale_twice(first: Node, second: Node) -> Node:
    scale, offset = second.weights["scale"], second.weights["offset"]
    weights = {
        "scale": first.weights["scale"] * scale,
        "offset": first.weights["offset"] * scale + offset,
    }
    return dataclasses.replace(second, weights=weights)


def _rescale_inputs(conv: Node, scale, offset) -> Node:
    """Merges a rescaling into the convolution after it.

    If the convolution pads, the offset must be zero.
    """
    kernel, bias = kernel_and_bias(conv)
    scale, offset = (np.broadcast_to(v, kernel.shape[2]) for v in (scale, offset))
    shift = np.einsum("i,hwio->o", offset, kernel)
    return _with(conv, kernel * scale[:, None], bias + shift)


def fold_rescaling(graph: Graph, with_offsets: bool = True) -> Graph:
    """Folds the images' scale and offset into the first convolution.

    An offset before padding stays, since folding it would shift the zeros too. Without
    `with_offsets` all offsets stay: in 16-bit floats the sums of pixels that are not
    centered lose digits.
    """
    for name in [node.name for node in graph.of_kind("rescale")]:
        node = graph.nodes[name]  # earlier merges may have changed it
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
    """Folds attention's `1 / sqrt(head_dim)` into the projection of the queries."""
    for node in graph.of_kind("attention"):
        query = graph.nodes.get(node.inputs[0])
        if query is None or query.op != "dense" or not graph.only_consumer(query.name):
            continue
        kernel, bias = kernel_and_bias(query)
        scale = (kernel.shape[-1] // node.options["num_heads"]) ** -0.5
        kernel, bias = scale_outputs(kernel, bias, scale, 0.0)
        done = dataclasses.replace(node, options={**node.options, "scaled": True})
        graph = graph.replace(_with(query, kernel, bias), done)
    return graph


def _as_dense(conv: Node, **changes) -> Node:
    kernel, bias = kernel_and_bias(conv)
    return _with(conv, kernel[0, 0], bias, op="dense", options={}, **changes)


def _swap_with_unfold(graph: Graph, conv: Node) -> Graph:
    """Turns `unfold(conv(x))` into `dense(unfold(x))`."""
    (unfold,) = (n for n in graph.consumers(conv.name) if n.op == "unfold")
    (source,) = conv.inputs
    # Readers of the tokens now read the projected tokens. A fold reads only the size of
    # the map, which the convolution's input has too.
    names = {unfold.name: conv.name, conv.name: source}
    changed = [node.rewire(names) for node in graph.nodes.values()]
    return graph.replace(*changed, _as_dense(conv, inputs=(unfold.name,)))


def _swap_with_fold(graph: Graph, fold: Node, conv: Node) -> Graph:
    """Turns `conv(fold(tokens))` into `fold(dense(tokens))`."""
    tokens, features = fold.inputs
    readers = graph.consumers(conv.name)
    return graph.replace(
        *(node.rewire({conv.name: fold.name}) for node in readers),
        _as_dense(conv, inputs=(tokens,)),
        dataclasses.replace(fold, inputs=(conv.name, features)),
    )


def project_tokens(graph: Graph) -> Graph:
    """Replaces a 1x1 convolution beside a fold or unfold by a dense layer on tokens.

    Folding and unfolding move pixels. In a map of odd size they also average pixels,
    with weights whose sum is 1. A layer that acts on each pixel alone gives the same
    result before and after. Fold and unfold go to the side with fewer channels, where
    they move less data.
    """
    for name in list(graph.nodes):
        conv = graph.nodes[name]  # earlier swaps may have changed it
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
    """Finds the residual stream of a node: all nodes that are added to its output.

    Returns three kinds of names: linear layers that write to the stream, sums, and
    nodes that move its tokens or add positions. Returns `None` if another operation
    writes to the stream, or anything but a normalization reads it.
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
    """Subtracts the mean over the channels from a node's output."""
    if node.op in LINEAR:
        kernel, bias = kernel_and_bias(node)
        kernel, bias = center_outputs(kernel, bias)
        return _with(node, kernel, bias)
    positions = node.weights["positions"]
    centered = positions - positions.mean(-1, keepdims=True)
    return dataclasses.replace(node, weights={"positions": centered})


def layer_norms_to_rms_norms(graph: Graph) -> Graph:
    """Replaces layer normalization by RMS normalization, which subtracts no mean.

    In a pre-norm transformer only linear layers and positions write to the residual
    stream, and only normalizations read it. This rewrite subtracts the mean from
    everything that is written. Then the mean of the stream is always zero, its
    variance is the mean of the squares, and every normalization returns the same as
    before.
    """
    for norm in graph.of_kind("layer_norm"):
        stream = _residual_stream(graph, norm.inputs[0])
        if stream is None:
            continue
        writers = [graph.nodes[name] for name in stream if graph.nodes[name].weights]
        centered = [_center_writer(node) for node in writers]
        graph = graph.replace(*centered, dataclasses.replace(norm, op="rms_norm"))
    return graph


def _linear_readers(graph: Graph, name: str) -> list[Node] | None:
    """Finds the layers that read a node and act on each pixel or token alone.

    They may read it after pixels were moved or averaged. Averages have weights whose
    sum is 1, so that a scale and offset of channels pass through them. Returns `None`
    if anything else reads the node.
    """
    readers: list[Node] = []
    for node in graph.consumers(name):
        if node.op == "dense" or _is_pointwise(node):
            readers.append(node)
            continue
        position = AVERAGED_INPUT.get(node.op)
        is_read = position is not None and node.inputs.index(name) == position
        later = _linear_readers(graph, node.name) if is_read else None
        if later is None or node.name in graph.outputs:
            return None
        readers += later
    return readers


def fold_norm_scales(graph: Graph) -> Graph:
    """Folds the gamma and beta of a normalization into the layers after it."""
    for norm in list(graph.nodes.values()):
        if norm.op not in NORMS or norm.name in graph.outputs or not norm.weights:
            continue
        readers = _linear_readers(graph, norm.name)
        if not readers:
            continue
        gamma = norm.weights.get("gamma", np.ones(1))
        beta = norm.weights.get("beta", np.zeros(1))
        changed = []
        for node in readers:
            kernel, bias = kernel_and_bias(node)
            rows = kernel.shape[-2]
            scale, offset = np.broadcast_to(gamma, rows), np.broadcast_to(beta, rows)
            kernel, bias = scale_inputs(kernel, bias, scale, offset)
            changed.append(_with(node, kernel, bias))
        graph = graph.replace(*changed, dataclasses.replace(norm, weights={}))
    return graph


def merge_padding(graph: Graph) -> Graph:
    """Merges zero padding into the convolution after it."""
    for pad in graph.of_kind("pad"):
        conv = graph.only_consumer(pad.name)
        if conv is None or conv.op not in ("conv", "depthwise"):
            continue
        if conv.options["padding"] != "VALID":
            continue
        options = {**conv.options, "padding": pad.options["padding"]}
        merged = dataclasses.replace(conv, options=options)
        graph = graph.replace(merged).remove(pad.name)
    return graph


REWRITES = (
    fold_batch_norms,
    fold_rescaling,
    scale_queries,
    project_tokens,
    layer_norms_to_rms_norms,
    fold_norm_scales,
    merge_padding,
)
# Core ML has an operation for layer normalization, and scales the image at its input.
COREML_REWRITES = tuple(
    rewrite
    for rewrite in REWRITES
    if rewrite not in (fold_rescaling, layer_norms_to_rms_norms)
)


def deployment_graph(graph: Graph, rewrites=REWRITES) -> Graph:
    """Applies rewrites to a trained network, as `read_model` returns it."""
    for rewrite in rewrites:
        graph = rewrite(graph)
    return graph
