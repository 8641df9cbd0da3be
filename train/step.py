"""One step, compiled once for each shape of a batch, on one device or on many."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from train.config import TrainConfig
from train.distribution.inputs import receive
from train.models import TrainState
from train.tasks.task import Task

# Nothing here branches on tensors, and AutoGraph would rewrite every called function.
_function = functools.partial(tf.function, autograph=False)


class EvalResult(NamedTuple):
    """The result of one evaluation step."""

    sums: dict[str, Any]  # over the batch, from all replicas; `count`: of the examples
    predictions: dict[str, Any]  # of the task, `{name: [batch, ...]}`
    targets: dict[str, Any]  # numeric ones and `weight` of the same examples


def _sum_over_replicas(strategy: tf.distribute.Strategy, sums: dict) -> dict:
    return {
        name: strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
        for name, value in sums.items()
    }


def as_float32(outputs: Any) -> Any:
    """Casts outputs, so that loss and softmax are computed in float32."""
    return tf.nest.map_structure(lambda x: tf.cast(x, tf.float32), outputs)


def as_numbers(sums: dict) -> dict[str, float]:
    """Returns a step's sums as Python numbers; waits until a device has them."""
    return {name: float(value) for name, value in sums.items()}


def make_train_step(
    task: Task,
    config: TrainConfig,
    state: TrainState,
    strategy: tf.distribute.Strategy,
    jit_compile: bool | None = None,
) -> tf.types.experimental.PolymorphicFunction:
    """Makes the function of training steps, traced once for each batch shape.

    It takes a tuple of batches of one shape, the learning rates and the momentums of
    the moving average `[batches]`, and a `request`. With `jit_compile` XLA compiles the
    step on one device; on TPUs it always does. It returns sums over the batches and all
    replicas:

    - `loss`: weighted sum of the examples' losses
    - `count`: number of the examples with a weight
    - `not_finite`: steps and replicas whose loss or gradients are NaN or infinite
    - `request`: the sum of this argument over the replicas, which tells every worker
      what one of them asks for, see `train.run.progress`
    """
    one_step = _one_step(task, config, state, strategy.num_replicas_in_sync)

    def steps(batches, learning_rates, ema_momentums, request):
        results = [
            one_step(receive(batch), learning_rates[i], ema_momentums[i])
            for i, batch in enumerate(batches)
        ]
        sums = {key: tf.add_n([r[key] for r in results]) for key in results[0]}
        return {**sums, "request": tf.identity(request)}

    @_function(jit_compile=jit_compile)
    def train_step(batches, learning_rates, ema_momentums, request):
        _log_compilation(strategy, batches[0])  # runs only while the step is traced
        sums = strategy.run(steps, (batches, learning_rates, ema_momentums, request))
        return _sum_over_replicas(strategy, sums)

    return train_step


def _log_compilation(strategy: tf.distribute.Strategy, batch: dict) -> None:
    (images, *_) = strategy.experimental_local_results(batch["image"])
    _, height, width, _ = images.shape
    logging.info("compiling the step for %dx%d pixels", height, width)


def _one_step(
    task: Task, config: TrainConfig, state: TrainState, replicas: int
) -> Callable:
    """Makes the function of one step on one replica."""
    optimizer = state.optimizer
    # Traced once, called for each part of a batch; and the update is the same for every
    # shape. With several replicas a nested function cannot contain what they exchange.
    traced_once = _function if replicas == 1 else lambda function: function
    gradients_of = traced_once(_gradients(task, config, state, replicas))
    update = traced_once(_update(state))

    def one_step(batch, learning_rate, ema_momentum):
        gradients, loss = _accumulate(gradients_of, batch, config.accumulation_steps)
        is_finite = tf.math.is_finite(loss)
        is_scaled = config.precision == "mixed_float16"
        if is_scaled or config.gradient_clip:
            gradients = _mean_over_replicas(gradients, replicas)
        norm = tf.linalg.global_norm(gradients)
        if is_scaled:
            # Gradients may overflow, as long as the loss scale stays at 1 or above.
            is_finite &= optimizer.scale_loss(1.0) >= 1.0
        else:
            is_finite &= tf.math.is_finite(norm)
        if config.gradient_clip:
            # The optimizer adds up the gradients of all replicas, and then unscales.
            limit = optimizer.scale_loss(config.gradient_clip / replicas)
            gradients = _clip(gradients, norm, limit)
        update(gradients, learning_rate, ema_momentum)
        return {
            "loss": loss,
            "count": tf.reduce_sum(batch["weight"]),
            "not_finite": tf.cast(~is_finite, tf.float32),
        }

    return one_step


def _gradients(
    task: Task, config: TrainConfig, state: TrainState, replicas: int
) -> Callable:
    """Makes the function from a part of a batch to gradients and the sum of losses."""
    variables = state.model.trainable_variables

    def gradients_of(batch):
        with tf.GradientTape() as tape:
            outputs = state.model(tf.cast(batch["image"], tf.float32), training=True)
            losses = task.loss(config, batch, as_float32(outputs)) * batch["weight"]
            # The mean over the nominal batch: an example has the same weight in every
            # step, also in the last one, which may contain padding.
            examples = tf.size(losses) * config.accumulation_steps * replicas
            loss = tf.reduce_sum(losses) / tf.cast(examples, tf.float32)
            loss = state.optimizer.scale_loss(loss)
        return tape.gradient(loss, variables), tf.reduce_sum(losses)

    return gradients_of


def _update(state: TrainState) -> Callable:
    """Makes the function that moves the weights, and their average after them."""
    variables = state.model.trainable_variables

    def update(gradients, learning_rate, ema_momentum):
        state.optimizer.learning_rate.assign(learning_rate)
        state.optimizer.apply(gradients, variables)
        for mean, value in zip(state.ema_model.weights, state.model.weights):
            _move_average(mean, value, ema_momentum)

    return update


def _move_average(mean, value, momentum) -> None:
    """Sets `mean` to `momentum * mean + (1 - momentum) * value`, in one kernel."""
    tf.raw_ops.ResourceApplyGradientDescent(
        var=mean.value.handle, alpha=1 - momentum, delta=mean - value
    )


def _accumulate(gradients_of: Callable, batch: dict, parts: int) -> tuple[list, Any]:
    """Sums gradients and losses over equal parts of a batch, one after the other."""
    size = batch["image"].shape[0] // parts
    gradients: list = []
    loss = 0.0
    for i in range(parts):
        # In parallel the parts would take the memory of the whole batch.
        with tf.control_dependencies(gradients):
            part = {key: value[i * size :][:size] for key, value in batch.items()}
            part_gradients, part_loss = gradients_of(part)
        if gradients:
            gradients = [a + b for a, b in zip(gradients, part_gradients)]
        else:
            gradients = list(part_gradients)
        loss += part_loss
    return gradients, loss


def _clip(gradients: list, norm, limit) -> list:
    """Scales gradients down to the limit of their norm; NaN and infinity stay NaN."""
    factor = tf.where(norm <= limit, 1.0, limit / norm)
    return [factor * gradient for gradient in gradients]


def _mean_over_replicas(gradients: list, replicas: int) -> list:
    """Gives every replica the mean of the gradients.

    Keras's optimizer for scaled losses decides on each replica whether they overflow,
    before it sums them. Replicas that decide differently would diverge. And a norm is
    clipped right only if it is that of the whole batch.
    """
    if replicas == 1:
        return gradients
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)


def _as_numeric(value):
    """Copies a target, bools as int32: several devices exchange numbers only."""
    is_bool = value.dtype == tf.bool
    return tf.cast(value, tf.int32) if is_bool else tf.identity(value)


def make_eval_step(task: Task, model, strategy: tf.distribute.Strategy) -> Callable:
    """Makes the function from a batch and a `request` to an `EvalResult`.

    Its sums over all replicas are `loss` (times the examples' weights), and `count` and
    `request` as in `make_train_step`. Predictions and targets stay on their replica if
    the task's statistics are summable, else each worker gets those of all replicas.
    """

    def one_step(batch, request):
        batch = receive(batch)
        images = tf.cast(batch["image"], tf.float32)
        outputs = as_float32(model(images, training=False))
        losses = batch["weight"] * task.validation_loss(batch, outputs)
        sums = {
            "loss": tf.reduce_sum(losses),
            "count": tf.reduce_sum(batch["weight"]),
            "request": tf.identity(request),
        }
        targets = {
            name: _as_numeric(value) for name, value in batch.items() if name != "image"
        }
        return sums, task.predictions(outputs, images.shape[1]), targets

    def gathered(values: dict) -> dict:
        return {name: strategy.gather(value, axis=0) for name, value in values.items()}

    @_function
    def eval_step(batch, request):
        sums, predictions, targets = strategy.run(one_step, (batch, request))
        if not task.summable:
            predictions, targets = gathered(predictions), gathered(targets)
        return EvalResult(_sum_over_replicas(strategy, sums), predictions, targets)

    return eval_step
