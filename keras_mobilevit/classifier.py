"""Image classifiers with the interface of `keras.applications`."""

import os
from collections.abc import Callable
from typing import Any, Protocol

import keras
from keras import layers

from keras_mobilevit.argument_checks import (
    check_input_shape,
    check_positive,
    check_weights,
)
from keras_mobilevit.backbone import feature_maps
from keras_mobilevit.backend import Tensor, output_dtype
from keras_mobilevit.blocks import conv_bn_act, dense
from keras_mobilevit.configs import CLASSIFIER_SIZE, ModelConfig, get_variant
from keras_mobilevit.weights.hub import (
    CLASSIFIER_WEIGHTS,
    published_weights,
    weights_file,
)
from keras_mobilevit.weights.load import load_weights

Weights = str | os.PathLike | None
Activation = str | Callable[..., Any] | None

_DOCSTRING = """{title}: {parameters:.1f} M parameters, {top1} % top-1 on ImageNet-1k.

Source: {paper}. The accuracy, at 256x256, is from the authors' release of the weights.

Args:
    include_top: whether to add global average pooling, dropout (if the published
        network has it) and the fully connected layer.
    weights: `"imagenet"` (the published weights, downloaded once){others}, `None`
        (random initialization), or a weights file, by its path or its address on the
        Hugging Face Hub, `hf://owner/name`: `.keras`, `.weights.h5`, `.safetensors`
        with the names of timm, transformers or ml-cvnets, or Apple's `.pt`; see also
        `keras_mobilevit.load_weights`.
    input_tensor: a Keras tensor to use as the image input of the model.
    input_shape: `(height, width, channels)`. Height and width are at least 32 or
        `None`, and may be any number. The default is `(256, 256, 3)` with the top and
        `(None, None, 3)` without.
    pooling: pooling of the last feature map without the top: `None` keeps it
        `[batch, height / 32, width / 32, {channels}]`{rounding}; `"avg"` and
        `"max"` pool it to `[batch, {channels}]`.
    classes: number of classes. With the top, published weights require 1000. Without
        the top, the argument is ignored.
    classifier_activation: activation of the top. `None` returns logits.
    include_preprocessing: if true, the model expects values in [0, 255] and scales
        them; if false, it expects values in [0, 1]. Images are RGB. Mean and standard
        deviation are not normalized.
    name: name of the model.

Returns:
    A functional `keras.Model` from images `[batch, height, width, channels]` to
    `[batch, classes]`, which are float32 even if the layers compute in 16 bits; the
    features without the top are not. To load a saved model with
    `keras.saving.load_model`, import `keras_mobilevit` first. Otherwise Keras does not
    find the layers.

Raises:
    ValueError: if an argument or a combination of arguments is not valid, or if the
        weights do not fit; the message says what was expected.
    OSError: if weights of the Hub are not cached and cannot be downloaded.

Example:

>>> model = keras_mobilevit.{title}(weights=None, input_shape=(224, 288, 3))
>>> model.predict(numpy.zeros((1, 224, 288, 3))).shape
(1, 1000)
"""
_ROUNDING = ", with both sides rounded up to even numbers"


def _resolve_input_shape(
    input_shape: tuple | None,
    input_tensor: Tensor | None,
    include_top: bool,
    weights: Weights,
) -> tuple:
    """Returns the input shape, by default that of `input_tensor` or the paper's."""
    if input_tensor is not None:
        tensor_shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and tuple(input_shape) != tensor_shape:
            raise ValueError(
                "`input_shape` and the shape of `input_tensor` must agree. Received: "
                f"input_shape={input_shape} and a tensor of shape {tensor_shape}."
            )
        input_shape = tensor_shape
    if input_shape is None:
        size = CLASSIFIER_SIZE if include_top else None
        input_shape = (size, size, 3)
    return check_input_shape(input_shape, weights)


def _check_arguments(
    weights: Weights,
    include_top: bool,
    pooling: str | None,
    classes: int,
    classifier_activation: Activation,
) -> None:
    check_weights(weights, CLASSIFIER_WEIGHTS)
    if pooling not in (None, "avg", "max"):
        raise ValueError(
            f'`pooling` must be None, "avg" or "max". Received: pooling={pooling!r}.'
        )
    if not include_top:
        return
    check_positive(classes=classes)
    if weights in CLASSIFIER_WEIGHTS and classes != 1000:
        raise ValueError(
            f'`weights="{weights}"` with `include_top=True` has 1000 classes. '
            f"Received: classes={classes}."
        )
    activation = keras.activations.get(classifier_activation)
    allowed = (keras.activations.linear, keras.activations.softmax)
    if weights is not None and activation not in allowed:
        raise ValueError(
            "With pretrained weights `classifier_activation` must be None or "
            f'"softmax". Received: classifier_activation={classifier_activation!r}.'
        )


# Keys are names of functions, or of the classes of layers and operations.
_ACTIVATIONS = {
    "softmax": "softmax",
    "softmaxv2": "softmax",  # TensorFlow's name for `tf.nn.softmax`
    "sparsemax": "softmax",
    "sigmoid": "sigmoid",
    "hardsigmoid": "sigmoid",
    "sparsesigmoid": "sigmoid",
}

# Layers and operations after which probabilities are still probabilities.
_NO_EFFECT = ("Identity", "Dropout", "GaussianNoise", "GaussianDropout", "Cast", "Clip")
_SHAPE = ("Flatten", "Reshape", "Squeeze", "ExpandDims", "GetItem", "Concatenate")
_MEAN = ("Average", "Add", "Subtract", "Multiply", "Divide", "TrueDivide")
_SKIPPED = {*_NO_EFFECT, *_SHAPE, *_MEAN}


def _activation_of_layer(operation: keras.Operation) -> str | None:
    """Returns the activation of a layer; `None` if the layer is skipped."""
    kind = type(operation).__name__
    if kind in _SKIPPED:
        return None
    if kind.lower() in _ACTIVATIONS:
        return _ACTIVATIONS[kind.lower()]
    activation = getattr(operation, "activation", None)
    if activation in (None, keras.activations.linear):
        is_activation = isinstance(operation, layers.Activation)
        return None if is_activation else "logits"
    name = getattr(activation, "__name__", type(activation).__name__)
    return _ACTIVATIONS.get(name.lower().replace("_", ""), "logits")


def _activation_of_tensor(tensor: keras.KerasTensor) -> str | None:
    """Finds the activation that a tensor came through; `None` for an input."""
    operation, node_index, tensor_index = tensor._keras_history
    if isinstance(operation, layers.InputLayer):
        return None
    if isinstance(operation, keras.Model):
        outputs = getattr(operation, "outputs", None)
        if outputs:
            found = _activation_of_tensor(outputs[tensor_index])
        else:
            found = output_activation(operation)
    else:
        found = _activation_of_layer(operation)
    if found is not None:
        return found
    inputs = operation._inbound_nodes[node_index].input_tensors
    kinds = {_activation_of_tensor(x) for x in inputs}
    return kinds.pop() if len(kinds) == 1 else "logits"


def output_activation(model: keras.Model) -> str:
    """Returns `"softmax"`, `"sigmoid"` or `"logits"`: a classifier's last activation.

    The search enters nested models. It skips operations after which probabilities are
    still probabilities: a change of type or shape, dropout, an average of models. In a
    subclassed model only the last layer is checked, because the calls between its
    layers are not known.
    """
    outputs = getattr(model, "outputs", None)
    if outputs:
        return _activation_of_tensor(outputs[0]) or "logits"
    last = model.layers[-1] if model.layers else None
    if isinstance(last, keras.Model):
        return output_activation(last)
    return _activation_of_layer(last) or "logits"


def build_classifier(
    config: ModelConfig,
    *,
    include_top: bool = True,
    weights: Weights = None,
    input_tensor: Tensor | None = None,
    input_shape: tuple | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Activation = "softmax",
    include_preprocessing: bool = True,
    name: str | None = None,
) -> keras.Model:
    """Builds the classifier of `config`; see `MobileViT_S` for the other arguments."""
    _check_arguments(weights, include_top, pooling, classes, classifier_activation)
    shape = _resolve_input_shape(input_shape, input_tensor, include_top, weights)
    if input_tensor is None:
        inputs = keras.Input(shape, name="images")
    elif keras.utils.is_keras_tensor(input_tensor):
        inputs = input_tensor
    else:
        inputs = keras.Input(tensor=input_tensor, name="images")

    x = inputs
    if include_preprocessing:
        x = layers.Rescaling(1 / 255, name="rescaling")(x)
    x = feature_maps(x, config)["P5"]
    if config.family.has_head:
        x = conv_bn_act(x, config.head_channels, 1, "head")
    if include_top:
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
        if config.family.classifier_dropout:
            x = layers.Dropout(config.family.classifier_dropout, name="head_dropout")(x)
        x = dense(classes, "predictions", classifier_activation, output_dtype())(x)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="head_pool")(x)

    if input_tensor is not None:
        sources = keras.utils.get_source_inputs(inputs)
        inputs = sources[0] if len(sources) == 1 else sources
    model = keras.Model(inputs, x, name=name or config.name)
    if weights is not None:
        load_weights(model, weights_file(weights, config.name))
    return model


class ClassifierFunction(Protocol):
    """The type of `MobileViT_S` and the other variants, for editors and mypy."""

    __name__: str
    __qualname__: str

    def __call__(
        self,
        include_top: bool = True,
        weights: Weights = "imagenet",
        input_tensor: Tensor | None = None,
        input_shape: tuple | None = None,
        pooling: str | None = None,
        classes: int = 1000,
        classifier_activation: Activation = "softmax",
        include_preprocessing: bool = True,
        name: str = ...,
    ) -> keras.Model:
        """Builds the classifier; see `MobileViT_S`."""


def classifier_function(variant: str) -> ClassifierFunction:
    """Creates the public function of a variant, such as `MobileViT_S`."""
    config = get_variant(variant)

    def model(
        include_top: bool = True,
        weights: Weights = "imagenet",
        input_tensor: Tensor | None = None,
        input_shape: tuple | None = None,
        pooling: str | None = None,
        classes: int = 1000,
        classifier_activation: Activation = "softmax",
        include_preprocessing: bool = True,
        name: str = config.name,
    ) -> keras.Model:
        return build_classifier(
            config,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            include_preprocessing=include_preprocessing,
            name=name,
        )

    model.__name__ = model.__qualname__ = config.title
    others = [f'`"{name}"`' for name in published_weights(config.name)[1:]]
    model.__doc__ = _DOCSTRING.format(
        title=config.title,
        parameters=config.parameters / 1e6,
        top1=config.top1,
        paper=config.family.paper,
        others=f" or {', '.join(others)}" if others else "",
        channels=config.head_channels or config.stage_channels[-1],
        rounding=_ROUNDING if config.family.map_multiple > 1 else "",
    )
    return model
