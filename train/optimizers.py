"""AdamW, with another learning rate for the head where that is asked for."""

import dataclasses

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class OptimizedVariables:
    """Variables that share an optimizer.

    Attributes:
        optimizer: built for them.
        variables: of the model.
        multiplier: of the schedule's learning rate.
    """

    optimizer: keras.optimizers.Optimizer
    variables: list
    multiplier: float


def _adamw(config, variables, name: str):
    optimizer = keras.optimizers.AdamW(
        learning_rate=config.min_learning_rate,
        weight_decay=config.weight_decay,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        name=name,
    )
    optimizer.build(variables)
    return optimizer


def make_optimizers(config, model: keras.Model, is_head) -> list[OptimizedVariables]:
    """Makes AdamW with the recipe's constants; decay applies to every parameter.

    Args:
        config: a `TrainConfig`.
        model: its trainable variables are shared out.
        is_head: tells by a variable's path whether it belongs to the head, whose
            learning rate is multiplied by `config.head_lr_multiplier`.

    Returns:
        One entry if all variables have the same learning rate, otherwise two.
    """
    variables = model.trainable_variables
    if config.head_lr_multiplier == 1:
        return [OptimizedVariables(_adamw(config, variables, "adamw"), variables, 1.0)]
    head = [variable for variable in variables if is_head(variable.path)]
    backbone = [variable for variable in variables if not is_head(variable.path)]
    shares = (("adamw", backbone, 1.0), ("adamw_head", head, config.head_lr_multiplier))
    return [
        OptimizedVariables(_adamw(config, share, name), share, multiplier)
        for name, share, multiplier in shares
        if share  # a frozen backbone has nothing to train
    ]


def apply_gradients(
    optimizers: list[OptimizedVariables], gradients: list, variables: list, rate
) -> None:
    """Takes one step.

    Args:
        optimizers: from `make_optimizers`.
        gradients: by the order of `variables`.
        variables: the model's trainable variables.
        rate: the schedule's learning rate, a float32 tensor.
    """
    by_path = {v.path: gradient for v, gradient in zip(variables, gradients)}
    for share in optimizers:
        share.optimizer.learning_rate.assign(rate * tf.constant(share.multiplier))
        share.optimizer.apply_gradients(
            [(by_path[variable.path], variable) for variable in share.variables]
        )
