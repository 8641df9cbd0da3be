"""Keras layers of the networks that need the size of the feature map at run time.

Tensors are channels-last.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
from keras import layers, ops

from keras_mobilevit.backend import Tensor, attention, resize_bilinear

PATCH_SIZE = 2  # pixels on the side of a patch, the same in every network


def _round_up(size: Any, multiple: int) -> Any:
    return (size + multiple - 1) // multiple * multiple


@contextlib.contextmanager
def _one_token() -> Iterator[None]:
    """Allows the softmax of one token, which is 1: an image of 32 pixels has one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using a softmax over axis")
        yield


class _PatchLayer(layers.Layer):
    """A layer with square patches of `patch_size` pixels on a side."""

    def __init__(self, patch_size: int = PATCH_SIZE, **kwargs: Any):
        super().__init__(**kwargs)
        self.patch_size = int(patch_size)
        if self.patch_size < 1:
            raise ValueError(
                f"`patch_size` must be a positive integer. Received: {patch_size}."
            )

    def get_config(self) -> dict:
        return {**super().get_config(), "patch_size": self.patch_size}


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class ResizeToMultiple(_PatchLayer):
    """Enlarges a feature map until patches cover it exactly.

    If the patch size does not divide the feature map's height or width, it is resized
    bilinearly to the next multiple. The centers of the corner pixels stay in place.

    Input shape: `[batch, height, width, channels]`, height and width may be `None`.

    Output shape: the same, with the height and width rounded up.
    """

    def call(self, x: Tensor) -> Tensor:
        """Resizes a feature map."""
        _, height, width, _ = ops.shape(x)
        height, width = (_round_up(side, self.patch_size) for side in (height, width))
        return resize_bilinear(x, height, width, align_corners=True)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the resized feature map."""
        batch, *sides, channels = input_shape
        rounded = (side and _round_up(side, self.patch_size) for side in sides)
        return (batch, *rounded, channels)


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class Unfold(_PatchLayer):
    """Splits a feature map into patches and forms sequences of pixels (section 3.1).

    The pixels at the same position of all patches form one sequence. So attention runs
    between patches, separately for each of the `P = patch_size ** 2` positions. If the
    patch size does not divide the feature map's size, the feature map is first resized
    bilinearly to the next multiple.

    Args:
        patch_size: side of a patch, in pixels.
        per_image: whether the positions have an axis of their own, for layers that
            normalize a whole image.

    Input shape: `[batch, height, width, channels]`, height and width may be `None`.

    Output shape: `[batch * P, N, channels]` with `N` patches in row-major order. In the
    first axis the positions, row-major too, vary faster than the images. With
    `per_image` it is `[batch, P, N, channels]`.
    """

    def __init__(
        self, patch_size: int = PATCH_SIZE, per_image: bool = False, **kwargs: Any
    ):
        super().__init__(patch_size, **kwargs)
        self.per_image = bool(per_image)

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
        positions = (patch * patch,) if self.per_image else ()
        return ops.reshape(x, (-1, *positions, rows * columns, channels))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the sequences."""
        batch, height, width, channels = input_shape
        patches = None
        if height is not None and width is not None:
            patches = -(-height // self.patch_size) * -(-width // self.patch_size)
        positions = self.patch_size**2
        if self.per_image:
            return (batch, positions, patches, channels)
        return (batch and batch * positions, patches, channels)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "per_image": self.per_image}


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class Fold(_PatchLayer):
    """Joins the sequences of `Unfold` to a feature map again.

    Inputs: the tokens `[batch * P, N, channels]` or `[batch, P, N, channels]`, and the
    feature map that was unfolded, of which only the height and width are used.

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

    def __init__(self, num_heads: int, **kwargs: Any):
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

        with _one_token():
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


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class ContextPooling(layers.Layer):
    """Averages tokens with the softmax of their scores as weights.

    Inputs: the scores `[batch, P, N, 1]` and the tokens `[batch, P, N, channels]`.

    Output shape: `[batch, P, 1, channels]`. The softmax is in float32.
    """

    def call(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Averages the tokens of each position."""
        _, positions, patches, _ = ops.shape(scores)
        scores = ops.reshape(scores, (-1, positions, 1, patches))
        with _one_token():
            weights = ops.softmax(ops.cast(scores, "float32"))
        return ops.matmul(ops.cast(weights, tokens.dtype), tokens)

    def compute_output_shape(self, scores_shape: tuple, tokens_shape: tuple) -> tuple:
        """Returns the shape of the averages."""
        return (*tokens_shape[:2], 1, tokens_shape[-1])
