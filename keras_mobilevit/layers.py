"""Keras layers of MobileViT that need the size of the feature map at run time.

Tensors are channels-last.
"""

import warnings

import keras
from keras import layers, ops

from keras_mobilevit.backend import Tensor, attention, resize_bilinear


def _round_up(size, multiple: int):
    return (size + multiple - 1) // multiple * multiple


class _PatchLayer(layers.Layer):
    """A layer with square patches of `patch_size` pixels on a side."""

    def __init__(self, patch_size: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = int(patch_size)
        if self.patch_size < 1:
            raise ValueError(
                f"`patch_size` must be a positive integer. Received: {patch_size}."
            )

    def get_config(self) -> dict:
        return {**super().get_config(), "patch_size": self.patch_size}


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class Unfold(_PatchLayer):
    """Splits a feature map into patches and forms sequences of pixels (section 3.1).

    The pixels at the same position of all patches form one sequence. So attention runs
    between patches, separately for each of the `P = patch_size ** 2` positions. If the
    patch size does not divide the feature map's size, the feature map is first resized
    bilinearly to the next multiple.

    Input shape: `[batch, height, width, channels]`, height and width may be `None`.

    Output shape: `[batch * P, N, channels]` with `N` patches in row-major order. In the
    first axis the positions, row-major too, vary faster than the images.
    """

    def call(self, x: Tensor) -> Tensor:
        """Unfolds a feature map."""
        patch = self.patch_size
        _, height, width, channels = ops.shape(x)
        height, width = _round_up(height, patch), _round_up(width, patch)
        x = resize_bilinear(x, height, width)
        rows, columns = height // patch, width // patch
        # Ranks above 4 do not run on mobile delegates.
        x = ops.reshape(x, (-1, rows, patch, width * channels))
        x = ops.transpose(x, (0, 2, 1, 3))  # [B, patch row, rows, W * C]
        x = ops.reshape(x, (-1, rows * columns, patch, channels))
        x = ops.transpose(x, (0, 2, 1, 3))  # [B * patch rows, patch column, N, C]
        return ops.reshape(x, (-1, rows * columns, channels))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the sequences."""
        batch, height, width, channels = input_shape
        patches = None
        if height is not None and width is not None:
            patches = -(-height // self.patch_size) * -(-width // self.patch_size)
        return (batch and batch * self.patch_size**2, patches, channels)


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class Fold(_PatchLayer):
    """Joins the sequences of `Unfold` to a feature map again.

    Inputs: the tokens `[batch * P, N, channels]` and the feature map that was unfolded.
    Only the height and width of the feature map are used.

    Output shape: `[batch, height, width, channels]`.
    """

    def call(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Folds the tokens."""
        patch = self.patch_size
        _, height, width, _ = ops.shape(features)
        channels = tokens.shape[-1]
        rows = _round_up(height, patch) // patch
        columns = _round_up(width, patch) // patch
        x = ops.reshape(tokens, (-1, patch, rows * columns, channels))
        x = ops.transpose(x, (0, 2, 1, 3))  # [B * patch rows, N, patch column, C]
        x = ops.reshape(x, (-1, patch, rows, columns * patch * channels))
        x = ops.transpose(x, (0, 2, 1, 3))  # [B, rows, patch row, W * C]
        x = ops.reshape(x, (-1, rows * patch, columns * patch, channels))
        return resize_bilinear(x, height, width)

    def compute_output_shape(self, tokens_shape: tuple, features_shape: tuple) -> tuple:
        """Returns the shape of the feature map."""
        return (*features_shape[:3], tokens_shape[-1])


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class DotProductAttention(layers.Layer):
    """Multi-head attention between query, key and value `[batch, tokens, channels]`.

    The layer has no weights: the projections are separate `Dense` layers. On a CPU this
    trains faster than slices of a fused projection. All tensors have rank 4 or less, so
    the layer converts to plain TFLite operations.
    """

    def __init__(self, num_heads: int, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = int(num_heads)

    def build(self, query_shape: tuple, key_shape: tuple, value_shape: tuple) -> None:
        """Checks that the heads divide the channels."""
        if query_shape[-1] % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the channels. Received: num_heads="
                f"{self.num_heads} and channels={query_shape[-1]}."
            )

    def call(
        self, query: Tensor, key: Tensor, value: Tensor, training: bool | None = None
    ) -> Tensor:
        """Applies the attention."""
        _, tokens, channels = ops.shape(query)
        head_dim = channels // self.num_heads

        def split_heads(x: Tensor) -> Tensor:  # to [B, heads, tokens, head_dim]
            x = ops.reshape(x, (-1, tokens, self.num_heads, head_dim))
            return ops.transpose(x, (0, 2, 1, 3))

        with warnings.catch_warnings():
            # An image of 32 pixels has one token, and its softmax is always 1.
            warnings.filterwarnings("ignore", "You are using a softmax over axis")
            x = attention(
                split_heads(query * head_dim**-0.5),
                split_heads(key),
                split_heads(value),
                training,
            )
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, tokens, channels))

    def compute_output_shape(
        self, query_shape: tuple, key_shape: tuple, value_shape: tuple
    ) -> tuple:
        """Returns the shape of the query."""
        return query_shape

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "num_heads": self.num_heads}
