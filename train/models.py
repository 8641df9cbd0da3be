"""The model that is trained, its moving average, and which parts are frozen."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from keras_mobilevit.weights.hub import weights_file
from train.config import TrainConfig
from train.data.source import Source
from train.optimizers import make_optimizer
from train.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class TrainState:
    """The variables that a training step updates."""

    model: keras.Model  # computes in `config.precision`
    ema_model: keras.Model  # average of weights and statistics, in float32
    optimizer: keras.optimizers.Optimizer

    def groups(self) -> dict:
        """Returns the parts by the names that they have in a checkpoint."""
        return {
            "model": self.model,
            "average": self.ema_model,
            "optimizer": self.optimizer,
        }


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Builds layers with another dtype policy, such as `mixed_bfloat16`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_state(
    task: Task, config: TrainConfig, source: Source, is_fresh: bool
) -> TrainState:
    """Builds model, moving average and optimizer, within a strategy's scope."""
    model, ema_model = build_models(task, config, source, is_fresh)
    optimizer = make_optimizer(config, model, task.is_head)
    return TrainState(model, ema_model, optimizer)


def build_models(
    task: Task, config: TrainConfig, source: Source, is_fresh: bool
) -> tuple[keras.Model, keras.Model]:
    """Builds a task's model and its moving average, within a strategy's scope.

    The model computes in `config.precision`, and its batch normalization takes the
    statistics of all replicas. The moving average has the same weights in float32.
    """
    keras.utils.set_random_seed(config.seed)
    with dtype_policy(config.precision):
        model = task.build_model(config, source)
    # Not frozen: the user of best.keras expects to train it further.
    ema_model = task.build_model(config, source)
    if config.freeze == "backbone":
        freeze_backbone(model, task.is_head)
    if is_fresh and config.weights:
        file = weights_file(config.weights, config.model)
        task.load_pretrained(model, file)
    ema_model.set_weights(model.get_weights())
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    return model, ema_model


def freeze_backbone(model: keras.Model, is_head: Callable[[str], bool]) -> None:
    """Leaves only the head of a model trainable.

    Frozen batch normalization keeps its statistics, and the backbone's dropout is off,
    so that its features are deterministic.
    """
    for layer in model.layers:
        layer.trainable = is_head(f"{layer.name}/")
        if isinstance(layer, keras.layers.Dropout) and not layer.trainable:
            layer.rate = 0.0


def separate_seeds(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Lets each replica draw other dropout masks; call it once, before the first step.

    Keras gives all replicas the same random state, so that they would drop the same
    positions of their examples. The first replica keeps its state, which is the one
    that a checkpoint saves.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    seeds = [v for v in model.variables if v.path.endswith("seed_generator_state")]

    def shift():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for seed in seeds:
            seed.assign(seed + tf.cast(tf.stack([replica, 0]), seed.dtype))

    tf.function(lambda: strategy.run(shift), autograph=False)()
