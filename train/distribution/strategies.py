"""Makes the `tf.distribute.Strategy` of the devices that train."""

import contextlib
import faulthandler
import math
import os
import sys
import threading
from collections.abc import Iterator

import tensorflow as tf
from absl import logging

from train.distribution.cluster import Cluster, find_cluster
from train.distribution.devices import THIS_MACHINE, Devices


def make_strategy(devices: Devices) -> tf.distribute.Strategy:
    """Makes the strategy of a training; no other TensorFlow call may come before."""
    if not math.isfinite(devices.cluster_timeout):
        raise ValueError(
            "--cluster_timeout must be a number of seconds. Received: "
            f"{devices.cluster_timeout}."
        )
    if devices.tpu and devices.gpus is not None:
        raise ValueError("--tpu and --gpus exclude each other. Remove one.")
    cluster = find_cluster(os.environ) if devices.cluster == "auto" else None
    if devices.tpu:
        if cluster:
            raise ValueError(
                "--tpu was given, but the environment names a cluster of "
                f"{len(cluster.addresses)} workers. The hosts of a TPU need no "
                "cluster: add --cluster=none."
            )
        return _tpu_strategy(devices)
    gpus = _use_gpus(devices.gpus)
    if cluster:
        return _multi_worker_strategy(cluster, devices.cluster_timeout)
    if len(gpus) > 1:
        # By name, since without it TensorFlow looks for other workers too.
        names = [f"GPU:{index}" for index in range(len(gpus))]
        return tf.distribute.MirroredStrategy(names)
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether this process writes the files of the run; only one does."""
    return not has_workers(strategy) or strategy.cluster_resolver.task_id == 0


def has_workers(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether several processes run the training loop together."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _use_gpus(count: int | None) -> list:
    found = tf.config.list_physical_devices("GPU")
    if count is not None and count > len(found):
        raise ValueError(
            f"--gpus={count}, but TensorFlow finds {len(found)} GPUs on this machine."
        )
    gpus = found[:count]
    if len(gpus) < len(found):
        tf.config.set_visible_devices(gpus, "GPU")
    return gpus


@contextlib.contextmanager
def at_most(seconds: float, explain) -> Iterator[None]:
    """Ends the process with an explanation if something takes longer.

    Some calls of TensorFlow wait in C++, and Python cannot interrupt them.
    """

    def give_up() -> None:
        print(f"error: {explain()}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tpu_strategy(devices: Devices) -> tf.distribute.Strategy:
    name = None if devices.tpu == THIS_MACHINE else devices.tpu
    name = name or os.environ.get("TPU_NAME") or THIS_MACHINE

    def explain(error="") -> str:
        return (
            f"No TPU. Looked for {name!r} for at most {devices.cluster_timeout:.0f} s. "
            "Name another one with --tpu=NAME, or remove --tpu to train on GPUs or "
            f"the CPU. {error}"
        )

    with at_most(devices.cluster_timeout, explain):
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
            if name != THIS_MACHINE:
                tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver)
        except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(explain(f"TensorFlow said: {reason}")) from error


def _multi_worker_strategy(cluster: Cluster, timeout: float):
    own = cluster.addresses[cluster.index]
    logging.info("worker %d of %d: %s", cluster.index, len(cluster.addresses), own)
    cluster.rendezvous(timeout)
    # TensorFlow would wait without a limit for a worker that has stopped since, in a
    # call that blocks Python's threads. The thread of faulthandler is not one of them.
    logging.info("all workers have started; joining them for at most %.0f s", timeout)
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster.resolver())
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Worker {own} cannot join the others: {reason}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
