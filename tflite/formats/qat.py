"""Quantization-aware training (QAT) of a deployment graph.

tensorflow-model-optimization needs a tf_keras (Keras 2) model. The QAT model has the
graph's weights and rounds weights and activations to 8 bits as it runs. It is trained
for a few epochs; then its weights go back into the graph.
"""

import dataclasses

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from tflite.formats.conversion import Conversion
from tflite.graph import tf_ops
from tflite.graph.graph import Graph, Node
from tflite.graph.reader import fallback_layers
from tflite.models import has_classes_of
from tflite.tasks.classification.task import output_name
from train.config import TrainConfig
from train.data.pipeline import train_batches
from train.data.registry import load_source
from train.data.sampler import batch_shapes, epoch_schedule
from train.data.source import Source
from train.tasks.classification.task import CLASSIFICATION

# Operations that only move values need no rounding.
_NOT_ROUNDED = ("fold", "pad", "unfold")
# What tf_keras calls the kernels.
_KERNELS = {"conv": "kernel", "dense": "kernel", "depthwise": "depthwise_kernel"}
MIN_PROBABILITY = 1e-30  # whose logarithm is taken
COPY_TOLERANCE = 1e-4  # relative difference of an output in float32


def _tfmot():
    try:
        import tensorflow_model_optimization as tfmot
        import tf_keras
    except ImportError as error:
        raise ValueError(
            f"int8-qat needs tensorflow-model-optimization and tf_keras: {error}. "
            "Install them with pip install '.[tflite]'."
        ) from error

    return tf_keras, tfmot.quantization.keras


def _split_padding(graph: Graph) -> Graph:
    """Moves explicit padding into operations of its own: tf_keras layers lack it."""
    for node in list(graph.nodes.values()):
        padding = node.options.get("padding")
        if isinstance(padding, tuple) and node.op != "pad":
            name = f"{node.name}_pad"
            pad = Node(name, "pad", node.inputs, options={"padding": padding})
            options = {**node.options, "padding": "VALID"}
            conv = dataclasses.replace(node, inputs=(pad.name,), options=options)
            graph = graph.replace(pad, conv)
    return graph


def _layer_types(tf_keras):
    """Makes the layer class for operations that have no layer in tf_keras."""

    class GraphOperation(tf_keras.layers.Layer):  # type: ignore[name-defined]
        def __init__(self, op, options, weights=None, **kwargs):
            super().__init__(**kwargs)
            self.op, self.options, self.arrays = op, options, weights or {}

        def call(self, inputs):
            arrays = {name: np.asarray(array) for name, array in self.arrays.items()}
            node = Node(self.name, self.op, (), arrays, self.options)
            inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            return tf_ops.OPERATIONS[self.op](node, *inputs)

        def get_config(self):
            own = {"op": self.op, "options": self.options, "weights": self.arrays}
            return {**super().get_config(), **own}

    return GraphOperation


def _layer_of(node: Node, tf_keras, graph_operation):
    options = {"name": node.name}
    if node.op == "dense":
        return tf_keras.layers.Dense(node.weights["kernel"].shape[-1], **options)
    if node.op in ("conv", "depthwise"):
        options |= {
            "strides": node.options["strides"],
            "padding": node.options["padding"].lower(),
            "dilation_rate": node.options["dilations"],
        }
        height, width, _, filters = node.weights["kernel"].shape
        if node.op == "depthwise":
            options["depth_multiplier"] = filters
            return tf_keras.layers.DepthwiseConv2D((height, width), **options)
        return tf_keras.layers.Conv2D(filters, (height, width), **options)
    weights = {name: array.tolist() for name, array in node.weights.items()}
    return graph_operation(node.op, node.options, weights, **options)


def _rounding_type(quantization):
    """Makes the class that says what a layer rounds: its kernel and its output."""
    quantizers = quantization.quantizers

    class ByChannel(quantizers.LastValueQuantizer):  # type: ignore[name-defined]
        """One range for each channel of a depthwise kernel, as in its `.tflite`."""

        def build(self, tensor_shape, name, layer):
            height, width, inputs, multiplier = tensor_shape
            flat = tf.TensorShape((height * width, inputs * multiplier))
            return super().build(flat, name, layer)

        def __call__(self, inputs, training, weights, **kwargs):
            channels = inputs.shape[2] * inputs.shape[3]
            flat = tf.reshape(inputs, (-1, channels))
            rounded = super().__call__(flat, training, weights, **kwargs)
            return tf.reshape(rounded, inputs.shape)

    class Rounding(quantization.QuantizeConfig):  # type: ignore[name-defined]
        def __init__(self, kernel: str | None, rounds_output: bool):
            self.kernel, self.rounds_output = kernel, rounds_output

        def get_weights_and_quantizers(self, layer):
            if self.kernel is None:
                return []
            is_depthwise = self.kernel == "depthwise_kernel"
            kind = ByChannel if is_depthwise else quantizers.LastValueQuantizer
            quantizer = kind(
                num_bits=8, per_axis=True, symmetric=True, narrow_range=True
            )
            return [(getattr(layer, self.kernel), quantizer)]

        def set_quantize_weights(self, layer, quantize_weights):
            if self.kernel is not None:
                setattr(layer, self.kernel, quantize_weights[0])

        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_activations(self, layer, quantize_activations):
            pass

        def get_output_quantizers(self, layer):
            quantizer = quantizers.MovingAverageQuantizer(
                num_bits=8, per_axis=False, symmetric=False, narrow_range=False
            )
            return [quantizer] if self.rounds_output else []

        def get_config(self):
            return {"kernel": self.kernel, "rounds_output": self.rounds_output}

    return Rounding


def _functional(graph: Graph, make_layer, tf_keras):
    images = tf_keras.Input(graph.input_shape, name=graph.input_name)
    values = {graph.input_name: images}
    for node in graph.in_order():
        inputs = [values[name] for name in node.inputs]
        layer = make_layer(node)
        values[node.name] = layer(inputs if len(inputs) > 1 else inputs[0])
    return tf_keras.Model(images, [values[name] for name in graph.outputs])


def build_qat_model(graph: Graph, images):  # noqa: ANN201 - tf_keras is optional
    """Builds the tf_keras model of a graph with one output that rounds to 8 bits.

    The ranges of the rounding are measured on images, `[images, height, width,
    channels]`: tensorflow-model-optimization starts all ranges at 6, which clips
    outputs, and changes them by a thousandth per step. Raises a RuntimeError if the
    model, without rounding, differs from the graph.
    """
    tf_keras, quantization = _tfmot()
    graph_operation = _layer_types(tf_keras)
    graph = _split_padding(graph)
    plain = _functional(
        graph, lambda node: _layer_of(node, tf_keras, graph_operation), tf_keras
    )
    for layer in plain.layers:
        node = graph.nodes.get(layer.name)
        if node is not None and "kernel" in node.weights:
            outputs = int(np.prod(layer.bias.shape))
            bias = node.weights.get("bias", np.zeros(outputs))
            layer.set_weights([node.weights["kernel"], bias])
    _check_copy(plain, graph)

    def annotate(layer):
        node = graph.nodes.get(layer.name)
        if node is None:
            return layer
        rounds_output = node.op not in _NOT_ROUNDED and node.name not in graph.outputs
        return quantization.quantize_annotate_layer(
            layer, rounding(_KERNELS.get(node.op), rounds_output)
        )

    rounding = _rounding_type(quantization)
    scope = {"GraphOperation": graph_operation, "Rounding": rounding}
    with quantization.quantize_scope(scope):
        annotated = tf_keras.models.clone_model(plain, clone_function=annotate)
        qat_model = quantization.quantize_apply(annotated)
    _set_ranges(qat_model, graph, images)
    return qat_model


def _set_ranges(qat_model, graph: Graph, images) -> None:
    values = tf_ops.run_all(graph, np.asarray(images, np.float32))
    limits = {}
    for name in graph.nodes:
        limits[f"quant_{name}/output_min:0"] = tf.reduce_min(values[name])
        limits[f"quant_{name}/output_max:0"] = tf.reduce_max(values[name])
    for variable in qat_model.weights:
        if variable.name in limits:
            variable.assign(limits[variable.name])


def _check_copy(qat_model, graph: Graph) -> None:
    """Compares the model's outputs with the graph's on random images."""
    images = np.random.default_rng(0).uniform(0, 255, (2, *graph.input_shape))
    images = images.astype(np.float32)
    (expected,) = tf_ops.run(graph, images)
    difference = np.abs(qat_model(images) - expected).max()
    if not difference <= COPY_TOLERANCE * max(1.0, np.abs(expected).max()):
        raise RuntimeError(
            f"The tf_keras model differs from the graph by {difference:.1e}; expected "
            f"at most {COPY_TOLERANCE:.0e}."
        )


def _weights_of(qat_model) -> dict[str, dict[str, np.ndarray]]:
    """Returns the trained kernels and biases by the names of the nodes."""
    found = {}
    for layer in qat_model.layers:
        inner = getattr(layer, "layer", None)
        if inner is None or not hasattr(inner, "bias"):
            continue
        kernel = next(w for w in layer.trainable_weights if w.name.endswith("kernel:0"))
        found[inner.name] = {
            "kernel": kernel.numpy().astype(np.float64),
            "bias": inner.bias.numpy().astype(np.float64),
        }
    return found


def _with_weights(graph: Graph, weights: dict) -> Graph:
    missing = {n.name for n in graph.nodes.values() if "kernel" in n.weights}
    missing ^= set(weights)
    if missing:
        raise RuntimeError(
            f"The QAT model and the graph differ in {sorted(missing)[:5]}."
        )
    changed = [
        dataclasses.replace(graph.nodes[name], weights=arrays)
        for name, arrays in weights.items()
    ]
    return graph.replace(*changed)


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """The training of a network by int8-qat; its classes are `labels`.

    `config` has the schedule of the fine-tuning; `data` is a value of `--data`.
    """

    config: TrainConfig
    data: str
    labels: tuple[str, ...]


def fine_tune_conversion(conversion: Conversion, settings: FineTuning) -> Graph:
    """Trains the equalized network of a conversion with rounding.

    Raises a ValueError if the network or the data do not allow it.
    """
    graph = conversion.graph
    if graph is None:
        raise ValueError("int8-qat trains the rewritten network: remove --no_rewrite.")
    kept = fallback_layers(graph)
    if kept:
        raise ValueError(
            f"int8-qat cannot train the layers {', '.join(kept)}, which have no "
            "rewrite. Use int8-mixed."
        )
    source = load_source(conversion.task.training.name, settings.data)
    if not has_classes_of(settings.labels, source.class_names):
        raise ValueError(
            f"int8-qat trains on {settings.data}, whose classes are not known to be "
            "the model's. Name the model's data with --data, and its classes in "
            "labels.txt beside the .keras file."
        )
    return fine_tune(
        graph,
        settings.config,
        source,
        scale=float(np.float32(conversion.input_max / 255)),
        returns_logits=output_name(conversion.model) == "logits",
    )


def _make_step(
    qat_model, config: TrainConfig, scale: float, returns_logits: bool, steps
):
    """Makes the compiled function that trains on a batch and returns the loss."""
    tf_keras, _ = _tfmot()
    decay = tf_keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    optimizer = tf_keras.optimizers.Adam(decay)

    @tf.function(reduce_retracing=True)
    def step(batch):
        images = tf.cast(batch["image"], tf.float32) * scale
        with tf.GradientTape() as tape:
            outputs = qat_model(images, training=True)
            if not returns_logits:
                outputs = tf.math.log(outputs + MIN_PROBABILITY)
            losses = CLASSIFICATION.loss(config, batch, outputs)
            weight = batch["weight"]
            total = tf.reduce_sum(losses * weight)
            loss = tf.math.divide_no_nan(total, tf.reduce_sum(weight))
        gradients = tape.gradient(loss, qat_model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, qat_model.trainable_variables))
        return loss

    return step


def fine_tune(
    graph: Graph,
    config: TrainConfig,
    source: Source,
    scale: float,
    returns_logits: bool,
) -> Graph:
    """Trains a classifier's graph with rounding, on the training's own data and loss.

    Of `config`, the `epochs`, `learning_rate`, `batch_size`, `label_smoothing`,
    augmentation and seed are used, at the graph's size. `scale` is that of the graph's
    images relative to [0, 255]. Raises a FloatingPointError if the loss is not finite.
    """
    size = graph.input_shape[:2]
    shapes = batch_shapes([size], size, config.batch_size)
    count = source.num_examples["train"]
    schedule = epoch_schedule(shapes, count, 0, config.seed)
    batch = next(iter(train_batches(source, config, schedule, 0)))
    qat_model = build_qat_model(graph, tf.cast(batch["image"], tf.float32) * scale)
    steps = config.epochs * -(-count // config.batch_size)
    step = _make_step(qat_model, config, scale, returns_logits, steps)
    for epoch in range(config.epochs):
        schedule = epoch_schedule(shapes, count, epoch, config.seed)
        batches = train_batches(source, config, schedule, epoch)
        name = f"quantization-aware epoch {epoch + 1} of {config.epochs}"
        progress = tqdm(batches, name, len(schedule), disable=None, leave=False)
        losses = [float(step(batch)) for batch in progress]
        if not np.all(np.isfinite(losses)):
            raise FloatingPointError(f"The loss of {name} is not finite.")
        logging.info("%s: loss %.4f", name, np.mean(losses))
    return _with_weights(graph, _weights_of(qat_model))
