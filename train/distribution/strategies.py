"""Which devices train, as a `tf.distribute.Strategy`; one device is a strategy too."""

import contextlib
import dataclasses
import faulthandler
import math
import os
import sys
import threading
from collections.abc import Iterator

import tensorflow as tf
from absl import flags, logging

from train.distribution.cluster import Cluster, find_cluster

LONGEST_TIMEOUT = 7 * 24 * 3600.0  # seconds
THIS_MACHINE = "local"  # the TPU that `--tpu` without a name means


@dataclasses.dataclass(frozen=True)
class Devices:
    """What to train on.

    Attributes:
        tpu: its name, or `"local"`; empty without one.
        tpu_zone: Google Cloud's zone.
        tpu_project: Google Cloud's project.
        cluster: `"auto"` looks for other workers, `"none"` does not.
        cluster_timeout: seconds to wait for a TPU, the other workers or the servers of
            `train.distribution.data_service`.
        gpus: how many to use; `None` for all there are.
    """

    tpu: str = ""
    tpu_zone: str | None = None
    tpu_project: str | None = None
    cluster: str = "auto"
    cluster_timeout: float = 300.0
    gpus: int | None = None


class _TPUParser(flags.ArgumentParser):
    """Reads `--tpu` as well as `--tpu=NAME`."""

    syntactic_help = "the TPU's name, or nothing"

    def parse(self, argument):
        return {"true": THIS_MACHINE, "false": "", None: ""}.get(argument, argument)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of `Devices`."""
    flags.DEFINE_flag(
        flags.Flag(
            _TPUParser(),
            flags.ArgumentSerializer(),
            "tpu",
            "",
            "Train on the TPU of this name, of $TPU_NAME or of this machine. Without, "
            "on all GPUs of this machine, or on the CPU.",
            boolean=True,
        ),
        flag_values=flag_values,
    )
    for name, what in (("tpu_zone", "zone"), ("tpu_project", "project")):
        help_text = f"The TPU's {what} in Google Cloud."
        flags.DEFINE_string(name, None, help_text, flag_values=flag_values)
    flags.DEFINE_enum(
        "cluster",
        "auto",
        ("auto", "none"),
        "auto trains with all workers that $TF_CONFIG or SLURM names, each of which "
        "runs this command; --workdir must be storage that they share. none is this "
        "process alone.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "cluster_timeout",
        Devices.cluster_timeout,
        "Seconds to wait for a TPU, for the other workers, or for --data_servers.",
        lower_bound=1.0,
        upper_bound=LONGEST_TIMEOUT,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "gpus",
        None,
        "GPUs to use, of each worker and as many on all. Default: all that it sees; "
        "with several tasks a node, srun --gpus-per-task deals them out.",
        lower_bound=0,
        flag_values=flag_values,
    )


def devices_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Devices:
    """Returns the `Devices` that the flags name."""
    names = [field.name for field in dataclasses.fields(Devices)]
    return Devices(**{name: flag_values[name].value for name in names})


def make_strategy(devices: Devices) -> tf.distribute.Strategy:
    """Makes the strategy of a training. Call it before anything else of TensorFlow.

    Args:
        devices: what to train on.

    Returns:
        `TPUStrategy`; `MultiWorkerMirroredStrategy` with more than one worker;
        `MirroredStrategy` with more than one GPU; or the default, of one device.

    Raises:
        ValueError: if there are no such devices, or the environment does not describe
            a cluster, or a worker does not come within the timeout; the message says
            what was looked for.
    """
    if not math.isfinite(devices.cluster_timeout):
        raise ValueError(
            "--cluster_timeout is a number of seconds. Received: "
            f"{devices.cluster_timeout}."
        )
    if (devices.tpu_zone or devices.tpu_project) and not devices.tpu:
        raise ValueError("--tpu_zone and --tpu_project go with --tpu=NAME.")
    if devices.tpu and devices.gpus is not None:
        raise ValueError("--tpu and --gpus exclude each other.")
    cluster = find_cluster(os.environ) if devices.cluster == "auto" else None
    if devices.tpu:
        if cluster:
            raise ValueError(
                f"--tpu, and a cluster of {len(cluster.addresses)} workers in the "
                "environment. A TPU's hosts need no cluster: add --cluster=none."
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
    """Tells whether this is the one process that writes files."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    return (
        strategy.cluster_resolver.task_id == 0
    )  # of workers, see `train.distribution.cluster`


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


def give_up(message: str) -> None:
    """Ends the process from any thread.

    TensorFlow's calls wait in C++, some of them without a limit, and cannot be
    interrupted from Python.
    """
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


@contextlib.contextmanager
def at_most(seconds: float, explain) -> Iterator[None]:
    """Ends the process with an explanation if something takes longer."""
    timer = threading.Timer(seconds, lambda: give_up(explain()))
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
            f"No TPU. Looked for {name!r} (zone {devices.tpu_zone}, project "
            f"{devices.tpu_project}) for at most {devices.cluster_timeout:.0f} s. "
            "Name it by --tpu=NAME, --tpu_zone and --tpu_project, or remove --tpu "
            f"to train on GPUs or the CPU. {error}"
        )

    with at_most(devices.cluster_timeout, explain):
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
                name, zone=devices.tpu_zone, project=devices.tpu_project
            )
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
    cluster.meet(timeout)
    os.environ["TF_CONFIG"] = cluster.to_tf_config()
    # TensorFlow now waits without a limit for a worker that has died since, in a call
    # that keeps Python's threads from running; this one is none of Python's.
    logging.info("all workers are there; joining them takes %.0f s at most", timeout)
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Worker {own} cannot join the others: {reason}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
