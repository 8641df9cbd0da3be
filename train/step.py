"""One step, compiled once for each shape of a batch, on one device or on many."""

import functools

import tensorflow as tf

from train.config import TrainConfig
from train.tasks.task import Task

# Nothing here branches on tensors, and AutoGraph would rewrite all that is called.
_function = functools.partial(tf.function, autograph=False)


def _sum_over_replicas(strategy, sums: dict) -> dict:
    return {
        name: strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
        for name, value in sums.items()
    }


def _as_float32(outputs):
    """Loss and softmax are computed in float32, whatever layers compute in."""
    return tf.nest.map_structure(lambda x: tf.cast(x, tf.float32), outputs)


def as_numbers(sums: dict) -> dict[str, float]:
    """Returns a step's sums as Python numbers."""
    return {name: float(value) for name, value in sums.items()}


def make_train_step(
    task: Task, config: TrainConfig, model, average, optimizer, strategy
):
    """Makes the function of training steps, traced once for each batch shape.

    Args:
        task: gives the loss.
        config: the run's configuration.
        model: what is trained.
        average: a model of the same weights that follows as a moving average,
            statistics of batch normalization included.
        optimizer: from `train.optimizers.make_optimizer`.
        strategy: the `tf.distribute.Strategy` in whose scope they were made.

    Returns:
        A `tf.function` from a tuple of batches of one shape, the learning rates and
        the momenta of the average `[batches]`, and a number, to a dict of sums over
        the batches and all replicas:

        - `loss`: of the examples, each times its weight
        - `count`: of the examples that count
        - `not_finite`: steps and replicas whose loss or gradients are no numbers
        - `stop`: the number; so each worker learns that another was asked to stop
    """
    replicas = strategy.num_replicas_in_sync
    # Traced for one shape, called for each part of a batch; and the update is the same
    # for every shape. With several replicas, what they exchange cannot stand in a
    # function of its own.
    traced_once = _function if replicas == 1 else lambda function: function
    gradients_of = traced_once(_gradients(task, config, model, optimizer, replicas))
    update = traced_once(_update(model, average, optimizer))

    def one_step(batch, learning_rate, momentum):
        gradients, loss = _accumulate(gradients_of, batch, config.accumulation_steps)
        is_finite = tf.math.is_finite(loss)
        if config.precision == "mixed_float16":
            # Gradients may overflow, but not until nothing is left of the loss's scale.
            gradients = _agree(gradients, replicas)
            is_finite &= optimizer.scale_loss(1.0) >= 1.0
        else:
            is_finite &= tf.math.is_finite(tf.linalg.global_norm(gradients))
        update(gradients, learning_rate, momentum)
        return {
            "loss": loss,
            "count": tf.reduce_sum(batch["weight"]),
            "not_finite": tf.cast(~is_finite, tf.float32),
        }

    def steps(batches, learning_rates, momenta, stop):
        results = [
            one_step(batch, learning_rates[i], momenta[i])
            for i, batch in enumerate(batches)
        ]
        sums = {key: tf.add_n([r[key] for r in results]) for key in results[0]}
        return {**sums, "stop": tf.identity(stop)}

    is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)  # compiles by itself

    @_function(jit_compile=(config.xla and not is_tpu) or None)
    def train_step(batches, learning_rates, momenta, stop):
        sums = strategy.run(steps, (batches, learning_rates, momenta, stop))
        return _sum_over_replicas(strategy, sums)

    return train_step


def _gradients(task: Task, config: TrainConfig, model, optimizer, replicas: int):
    """Makes the function from a part of a batch to gradients and the sum of losses."""
    variables = model.trainable_variables

    def gradients_of(batch):
        with tf.GradientTape() as tape:
            outputs = model(tf.cast(batch["image"], tf.float32), training=True)
            losses = task.loss(config, batch, _as_float32(outputs)) * batch["weight"]
            # A mean over the nominal batch: examples weigh the same in every step,
            # also in the last one, which may be partly filling.
            examples = tf.size(losses) * config.accumulation_steps * replicas
            loss = tf.reduce_sum(losses) / tf.cast(examples, tf.float32)
            loss = optimizer.scale_loss(loss)
        return tape.gradient(loss, variables), tf.reduce_sum(losses)

    return gradients_of


def _update(model, average, optimizer):
    """Makes the function that moves the weights, and their average after them."""
    variables = model.trainable_variables

    def update(gradients, learning_rate, momentum):
        optimizer.learning_rate.assign(learning_rate)
        optimizer.apply(gradients, variables)
        for mean, value in zip(average.weights, model.weights):
            _move_average(mean, value, momentum)

    return update


def _move_average(mean, value, momentum) -> None:
    """Sets `mean` to `momentum * mean + (1 - momentum) * value`, in one kernel."""
    tf.raw_ops.ResourceApplyGradientDescent(
        var=mean.value.handle, alpha=1 - momentum, delta=mean - value
    )


def _accumulate(gradients_of, batch: dict, parts: int):
    """Sums gradients and losses over equal parts of a batch, one after the other."""
    size = batch["image"].shape[0] // parts
    gradients, loss = None, 0.0
    for i in range(parts):
        # Not side by side, which would take the memory of the whole batch.
        with tf.control_dependencies(gradients or []):
            part = {key: value[i * size :][:size] for key, value in batch.items()}
            part_gradients, part_loss = gradients_of(part)
        pairs = zip(gradients, part_gradients) if gradients else None
        gradients = [a + b for a, b in pairs] if pairs else list(part_gradients)
        loss += part_loss
    return gradients, loss


def _agree(gradients, replicas: int):
    """Gives every replica the mean of the gradients.

    Keras's optimizer for scaled losses decides on each replica whether they overflow,
    before it sums them, and replicas that decide differently would drift apart.
    """
    if replicas == 1:
        return gradients
    context = tf.distribute.get_replica_context()
    return [
        gradient / replicas
        for gradient in context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    ]


def make_eval_step(task: Task, model, strategy):
    """Makes the function of one evaluation step.

    Args:
        task: gives the metrics.
        model: what is evaluated.
        strategy: the `tf.distribute.Strategy` in whose scope it was made.

    Returns:
        A `tf.function` from a batch and a number to two dicts: sums over all replicas
        of each metric times the examples' weights, with `count` and `stop` as in
        `make_train_step`; and the task's predictions with the examples' `weight`, for
        all examples of all replicas, or where the task counts, of each replica.
    """

    def one_step(batch, stop):
        outputs = model(tf.cast(batch["image"], tf.float32), training=False)
        outputs = _as_float32(outputs)
        values = task.metrics(batch, outputs)
        sums = {
            name: tf.reduce_sum(batch["weight"] * value)
            for name, value in values.items()
        }
        sums |= {"count": tf.reduce_sum(batch["weight"]), "stop": tf.identity(stop)}
        predictions = task.predictions(batch, outputs)
        if predictions:
            predictions |= {"weight": batch["weight"]}
        return sums, predictions

    @_function
    def eval_step(batch, stop):
        sums, predictions = strategy.run(one_step, (batch, stop))
        if task.count is None:
            predictions = {
                name: strategy.gather(value, axis=0)
                for name, value in predictions.items()
            }
        return _sum_over_replicas(strategy, sums), predictions

    return eval_step
