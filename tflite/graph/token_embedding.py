"""The first layer of the vision transformers among the baselines."""

import keras
from keras import initializers, layers, ops


@keras.saving.register_keras_serializable(package="keras_mobilevit")
class TokenEmbedding(layers.Layer):
    """Prepends a learned class token and adds learned positions.

    Maps `[batch, tokens, channels]` to `[batch, 1 + tokens, channels]`.
    `has_class_position` tells whether the class token has a position too.
    """

    def __init__(self, has_class_position: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.has_class_position = bool(has_class_position)

    def build(self, input_shape) -> None:
        """Makes the class token and a position for each token."""
        _, tokens, channels = input_shape
        if tokens is None:
            raise ValueError(
                f"{self.name} has a position for each token, so the number of tokens "
                f"must be fixed. Received: inputs of shape {tuple(input_shape)}."
            )
        initializer = initializers.TruncatedNormal(stddev=0.02)
        self.token = self.add_weight(
            name="token", shape=(1, channels), initializer=initializer
        )
        self.positions = self.add_weight(
            name="positions",
            shape=(tokens + self.has_class_position, channels),
            initializer=initializer,
        )

    def embeddings(self) -> keras.KerasTensor:
        """Returns what is added to each token, `[1 + tokens, channels]`.

        The class token is zero before the sum, so its row holds the learned token.
        """
        positions = self.positions
        if not self.has_class_position:
            positions = ops.pad(positions, ((1, 0), (0, 0)))
        others = positions.shape[0] - 1
        return positions + ops.pad(self.token, ((0, others), (0, 0)))

    def call(self, x) -> keras.KerasTensor:
        """Returns the tokens with the class token before them."""
        return ops.pad(x, ((0, 0), (1, 0), (0, 0))) + self.embeddings()

    def compute_output_shape(self, input_shape) -> tuple:
        """Returns the shape with one more token."""
        batch, tokens, channels = input_shape
        return (batch, 1 + tokens, channels)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        own = {"has_class_position": self.has_class_position}
        return {**super().get_config(), **own}
