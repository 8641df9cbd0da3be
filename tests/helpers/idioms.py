"""Small models as Keras users build them, mostly for transfer learning."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

import keras_mobilevit

SIZE = 32
# ImageNet's means and variances of pixels in [0, 1].
MEAN, VARIANCE = [0.485, 0.456, 0.406], [0.0524, 0.0502, 0.0506]


@dataclasses.dataclass(frozen=True)
class Idiom:
    """One way to build a model.

    Attributes:
        build: makes the model.
        largest: value of the images that it takes.
    """

    build: Callable[[], keras.Model]
    largest: int = 255


def base(channels: int = 3, size: int | None = SIZE, name: str = "base"):
    """A backbone of two blocks that reduces the side of the image to a quarter."""
    inputs = keras.Input((size, size, channels))
    x = inputs
    for filters in (8, 12):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU(6)(layers.BatchNormalization()(x))
    return keras.Model(inputs, x, name=name)


def image(channels: int = 3, dtype: str | None = None):
    return keras.Input((SIZE, SIZE, channels), dtype=dtype)


def head(x, classes: int = 3):
    return layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))


def after(function: Callable) -> Callable:
    """A model with layers between the image and a nested backbone."""

    def build():
        inputs = image()
        return keras.Model(inputs, head(base()(function(inputs))))

    return build


def scaled(function: Callable, training: bool | None = False) -> Callable:
    """A model with layers on top of a nested backbone for images in [0, 1]."""

    def build():
        inputs = image()
        x = layers.Rescaling(1 / 255)(inputs)
        x = base()(x, training=training)
        return keras.Model(inputs, function(x))

    return build


def pooled(function: Callable) -> Callable:
    """A model with layers on top of pooled features."""
    return scaled(lambda x: function(layers.GlobalAveragePooling2D()(x)))


def sequential(*before) -> Callable:
    def build():
        top = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
        front = [make() for make in before]
        return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *front, base(), *top])

    return build


def nested_sequentials():
    augmentation = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])
    block = keras.Sequential([layers.Conv2D(8, 3, activation="relu")])
    features = keras.Sequential([block, keras.Sequential([layers.MaxPooling2D()])])
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            augmentation,
            layers.Rescaling(1 / 255),
            features,
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def built_late():
    """A Sequential without an Input, built by its first images."""
    model = keras.Sequential(
        [layers.Rescaling(1 / 255), layers.Conv2D(8, 3), layers.Flatten()]
    )
    model.add(layers.Dense(3))
    model(np.zeros((1, SIZE, SIZE, 3), np.float32))
    return model


def deep_nesting():
    inputs = image()
    inner = keras.Sequential([keras.Input((SIZE, SIZE, 3)), base()])
    middle_inputs = image()
    middle = keras.Model(middle_inputs, layers.Conv2D(8, 1)(inner(middle_inputs)))
    x = middle(layers.Rescaling(1 / 127.5, offset=-1)(inputs), training=False)
    x = layers.Conv2D(4, 3, padding="same", activation="silu")(x)
    return keras.Model(inputs, head(layers.BatchNormalization()(x)))


def base_twice():
    inputs, shared = image(), base()
    x = layers.Rescaling(1 / 255)(inputs)
    mirrored = ops.flip(x, axis=2)
    both = layers.Average()([head_of(shared, x), head_of(shared, mirrored)])
    return keras.Model(inputs, layers.Dense(3)(both))


def head_of(shared, x):
    return layers.GlobalAveragePooling2D()(shared(x))


def own_backbone(**options):
    inputs = keras.Input((64, 64, 3))
    backbone = keras_mobilevit.MobileViT_XXS(
        include_top=False, weights=None, input_shape=(64, 64, 3), **options
    )
    backbone.trainable = False
    x = backbone(inputs, training=False)
    if len(x.shape) == 4:
        x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.2)(x)))


def mobilenet_v2():
    inputs = image()
    x = keras.applications.mobilenet_v2.preprocess_input(inputs)
    backbone = keras.applications.MobileNetV2(
        (SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None
    )
    return keras.Model(inputs, head(backbone(x, training=False)))


def mobilenet_v3():
    backbone = keras.applications.MobileNetV3Small(
        (SIZE, SIZE, 3),
        alpha=0.75,
        include_top=False,
        weights=None,
        pooling="avg",
    )
    inputs = image()
    return keras.Model(inputs, layers.Dense(3)(backbone(inputs, training=False)))


def caffe_preprocessing(x):
    return keras.applications.imagenet_utils.preprocess_input(x, mode="caffe") / 64


def torch_preprocessing(x):
    return keras.applications.imagenet_utils.preprocess_input(x, mode="torch")


def adapted(high: float):
    def function(x):
        layer = layers.Normalization()
        layer.adapt(np.random.default_rng(0).uniform(0, high, (8, 4, 4, 3)))
        return layer(x)

    return function


def gray():
    inputs = image(1)
    x = layers.Concatenate()([inputs, inputs, inputs])
    return keras.Model(inputs, head(base()(layers.Rescaling(1 / 255)(x))))


def gray_minus_three_means():
    inputs = image(1)
    x = (inputs - np.array([123.0, 117.0, 104.0], "float32")) / 64.0
    return keras.Model(inputs, head(base()(x)))


def two_heads(as_dict: bool):
    def build():
        inputs = image()
        x = base()(layers.Rescaling(1 / 255)(inputs))
        x = layers.GlobalAveragePooling2D()(x)
        kind = layers.Dense(4, activation="softmax", name="kind")(x)
        age = layers.Dense(1, name="age")(x)
        return keras.Model(
            inputs, {"kind": kind, "age": age} if as_dict else [kind, age]
        )

    return build


def attention_pooling(x):
    tokens = layers.Reshape((-1, 12))(x)
    weights = layers.Softmax(axis=1)(layers.Dense(1)(tokens))
    return layers.Dense(3)(ops.sum(tokens * weights, axis=1))


def attention_head(x):
    tokens = layers.Reshape((64, 12))(x)
    attended = layers.MultiHeadAttention(2, 6)(tokens, tokens)
    tokens = layers.LayerNormalization()(layers.Add()([tokens, attended]))
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(tokens))


def squeeze_excite(x):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(4, 1, activation="relu")(gate)
    gate = layers.Conv2D(12, 1, activation="sigmoid")(gate)
    return head(layers.Multiply()([x, gate]))


def segmentation_head(x):
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    return layers.Conv2D(2, 1, activation="softmax")(x)


def branches(x):
    first, second = (layers.Conv2D(8, 1, activation=a)(x) for a in ("relu", "elu"))
    joined = [layers.Add()([first, second]), layers.Multiply()([first, second])]
    joined += [layers.Average()([first, second]), layers.Maximum()([first, second])]
    return head(layers.Concatenate()([*joined, layers.Subtract()([first, second])]))


def average_and_max(x):
    pools = layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D()
    return layers.Dense(3)(layers.Concatenate()([pool(x) for pool in pools]))


def group_normalization(x):
    return head(layers.Activation("silu")(layers.GroupNormalization(4)(x)))


def normalized_embedding(x):
    return layers.UnitNormalization()(layers.Dense(16)(x))


def separable(x):
    x = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    return head(layers.DepthwiseConv2D(3, depth_multiplier=2)(x))


def moved_axes(x):
    x = layers.Permute((3, 1, 2))(x)  # as for channels first
    x = layers.Reshape((12, 64))(x)
    return layers.Dense(3)(layers.Flatten()(layers.Dense(4)(x)))


def in_policy(policy: str) -> Callable:
    def build():
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            inputs = image()
            x = base()(layers.Rescaling(1 / 255)(inputs))
            x = layers.GlobalAveragePooling2D()(x)
            outputs = layers.Dense(3, activation="softmax", dtype="float32")(x)
            return keras.Model(inputs, outputs)
        finally:
            keras.config.set_dtype_policy(before)

    return build


def uint8_images():
    inputs = image(dtype="uint8")
    x = ops.cast(inputs, "float32") / 255
    return keras.Model(inputs, head(base()(x)))


def any_size():
    inputs = keras.Input((None, None, 3))
    x = layers.Resizing(SIZE, SIZE)(inputs)
    x = base(size=None)(layers.Rescaling(1 / 255)(x))
    return keras.Model(inputs, head(x))


def norm_head(x):
    x = layers.BatchNormalization()(layers.Dense(8, activation="relu")(x))
    return layers.Dense(3)(layers.Dropout(0.5)(x))


def per_token(x):
    tokens = layers.TimeDistributed(layers.Dense(4, activation="relu"))(
        layers.Reshape((8, 8 * 12))(x)
    )
    return layers.Dense(3)(layers.Flatten()(tokens))


def with_rescaling(function: Callable) -> Callable:
    return lambda x: layers.Rescaling(1 / 255)(function(x))


def normalization(mean, variance, **options) -> Callable:
    return lambda x: layers.Normalization(mean=mean, variance=variance, **options)(x)


IDIOMS: dict[str, Idiom] = {
    # In front of a backbone.
    "rescaling, base(x)": Idiom(after(layers.Rescaling(1 / 255))),
    "rescaling with offset": Idiom(after(layers.Rescaling(1 / 127.5, offset=-1))),
    "nothing": Idiom(after(lambda x: x), 1),
    "x / 255.0": Idiom(after(lambda x: x / 255.0)),
    "x / 127.5 - 1": Idiom(after(lambda x: x / 127.5 - 1)),
    "(x - 127.5) * (1 / 127.5)": Idiom(after(lambda x: (x - 127.5) * (1 / 127.5))),
    "2 * x - 1": Idiom(after(lambda x: 2 * x - 1), 1),
    "1 - x": Idiom(after(lambda x: 1 - x), 1),
    "minus the mean of each channel": Idiom(
        after(lambda x: (x - np.array([123.0, 117.0, 104.0], "float32")) / 64)
    ),
    "preprocess_input of caffe": Idiom(after(caffe_preprocessing)),
    "preprocess_input of torch": Idiom(after(torch_preprocessing)),
    "keras.ops in front": Idiom(
        after(lambda x: ops.divide(ops.cast(x, "float32"), 255))
    ),
    "normalization by constants": Idiom(after(normalization(MEAN, VARIANCE)), 1),
    "normalization by one number": Idiom(after(normalization(127.5, 127.5**2))),
    "normalization over no axis": Idiom(
        after(normalization(127.5, 127.5**2, axis=None))
    ),
    "rescaling and normalization": Idiom(
        after(lambda x: normalization(MEAN, VARIANCE)(layers.Rescaling(1 / 255)(x)))
    ),
    "normalization adapted to [0, 255]": Idiom(after(adapted(255))),
    "normalization adapted to [0, 1]": Idiom(after(adapted(1)), 1),
    "resizing": Idiom(any_size),
    "center crop": Idiom(
        after(
            with_rescaling(
                lambda x: layers.Resizing(32, 32)(layers.CenterCrop(24, 24)(x))
            )
        )
    ),
    "padding and cropping": Idiom(
        after(
            with_rescaling(lambda x: layers.Cropping2D(2)(layers.ZeroPadding2D(2)(x)))
        )
    ),
    "dropout in front": Idiom(after(with_rescaling(layers.SpatialDropout2D(0.1)))),
    "augmentation in front": Idiom(
        sequential(
            lambda: layers.RandomFlip("horizontal"),
            lambda: layers.RandomRotation(0.1),
            lambda: layers.RandomZoom(0.1),
            lambda: layers.RandomTranslation(0.1, 0.1),
            lambda: layers.RandomContrast(0.1),
            lambda: layers.RandomBrightness(0.1),
            lambda: layers.Rescaling(1 / 255),
        )
    ),
    "noise": Idiom(
        sequential(
            lambda: layers.GaussianNoise(0.1),
            lambda: layers.Rescaling(1 / 255),
            lambda: layers.GaussianDropout(0.1),
        )
    ),
    "gray image": Idiom(gray),
    "gray image minus three means": Idiom(gray_minus_three_means),
    "images of integers": Idiom(uint8_images),
    # Nesting.
    "sequential with rescaling in front": Idiom(
        sequential(lambda: layers.Rescaling(1 / 255))
    ),
    "sequential in sequential": Idiom(nested_sequentials),
    "sequential built late": Idiom(built_late),
    "models three deep, and layers after": Idiom(deep_nesting),
    "a base called twice": Idiom(base_twice),
    "this library's backbone": Idiom(lambda: own_backbone(pooling="avg")),
    "this library's maps": Idiom(lambda: own_backbone(pooling=None)),
    "MobileNetV2 and its preprocess_input": Idiom(mobilenet_v2),
    "MobileNetV3, which rescales": Idiom(mobilenet_v3),
    # Pooling and heads.
    "max pooling": Idiom(
        scaled(lambda x: layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))
    ),
    "flatten": Idiom(scaled(lambda x: layers.Dense(3)(layers.Flatten()(x)))),
    "average and max pooling": Idiom(scaled(average_and_max)),
    "pooling that keeps the axes": Idiom(
        scaled(
            lambda x: layers.Flatten()(
                layers.Conv2D(3, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
            )
        )
    ),
    "ops.mean as pooling": Idiom(
        scaled(lambda x: layers.Dense(3)(ops.mean(x, (1, 2))))
    ),
    "leaky relu": Idiom(
        pooled(lambda x: layers.Dense(3)(layers.LeakyReLU()(layers.Dense(8)(x))))
    ),
    "prelu": Idiom(scaled(lambda x: head(layers.PReLU(shared_axes=[1, 2])(x)))),
    "elu, gelu and tanh": Idiom(
        pooled(
            lambda x: layers.Dense(3, activation="tanh")(
                layers.Dense(8, activation="gelu")(layers.ELU()(x))
            )
        )
    ),
    "embedding of length 1": Idiom(pooled(normalized_embedding)),
    "batch normalization in the head": Idiom(pooled(norm_head)),
    "layer normalization in the head": Idiom(
        pooled(lambda x: layers.Dense(3)(layers.LayerNormalization()(x)))
    ),
    "group normalization": Idiom(scaled(group_normalization)),
    "two heads in a list": Idiom(two_heads(as_dict=False)),
    "two heads in a dict": Idiom(two_heads(as_dict=True)),
    "softmax over tokens": Idiom(scaled(attention_pooling)),
    "multi-head attention": Idiom(scaled(attention_head)),
    "squeeze and excite": Idiom(scaled(squeeze_excite)),
    "separable convolution": Idiom(scaled(separable)),
    "segmentation": Idiom(scaled(segmentation_head)),
    "branches": Idiom(scaled(branches)),
    "permute and reshape": Idiom(scaled(moved_axes)),
    "one unit of sigmoid": Idiom(pooled(layers.Dense(1, activation="sigmoid"))),
    "time distributed": Idiom(scaled(per_token)),
    # Types.
    "mixed_float16": Idiom(in_policy("mixed_float16")),
    "mixed_bfloat16": Idiom(in_policy("mixed_bfloat16")),
}
