"""The model that is trained, and the moving average of its weights."""

import contextlib
import dataclasses
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_mobilevit.weights.hub import weights_file
from train.config import TrainConfig
from train.data.source import Source
from train.tasks.task import Task


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Builds layers of another dtype policy, such as `mixed_bfloat16`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_models(
    task: Task, config: TrainConfig, source: Source, is_fresh: bool
) -> tuple[keras.Model, keras.Model]:
    """Builds a task's model and its moving average, within a strategy's scope.

    Args:
        task: what to train.
        config: the run's configuration.
        source: on what.
        is_fresh: whether a run starts, so that pretrained weights have to be loaded.

    Returns:
        The model, which computes in `config.precision` and whose batch normalization
        has the statistics of all replicas; and a model of the same weights in float32.
    """
    keras.utils.set_random_seed(config.seed)
    with dtype_policy(config.precision):
        model = task.build_model(config, source)
    # Trainable and with all its dropout, as the user of best.keras expects.
    average = task.build_model(dataclasses.replace(config, freeze="none"), source)
    if is_fresh and config.weights:
        file = weights_file(config.weights, config.model)
        task.load_pretrained(model, file)
    average.set_weights(model.get_weights())
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        _synchronize_batch_norm(model)
    return model, average


def _synchronize_batch_norm(model: keras.Model) -> None:
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def separate_seeds(model: keras.Model, strategy) -> None:
    """Lets each replica draw other dropout masks; call it once, before the first step.

    Keras gives all replicas the same random state, so that they would drop the same
    places of their examples. The first replica keeps it: it is what a checkpoint saves.

    Args:
        model: whose random state is set.
        strategy: the `tf.distribute.Strategy` in whose scope it was made.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    seeds = [v for v in model.variables if v.path.endswith("seed_generator_state")]

    def shift():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for seed in seeds:
            seed.assign(seed + tf.cast(tf.stack([replica, 0]), seed.dtype))

    tf.function(lambda: strategy.run(shift), autograph=False)()
