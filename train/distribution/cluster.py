"""The processes that train together: the addresses of all workers, and our index.

They come from `TF_CONFIG` (https://www.tensorflow.org/guide/distributed_training) or
from SLURM, read by TensorFlow's resolvers.
"""

import contextlib
import dataclasses
import json
import re
import select
import socket
import time
from collections.abc import Mapping

import tensorflow as tf

FIRST_PORT, PORTS = 20_000, 10_000  # for workers of SLURM
PORTS_PER_JOB = 16  # and tasks per node; other jobs on the node have other ports
POLL_SECONDS = 0.5
MAX_HANDSHAKE = 2**20  # bytes
EXAMPLE = (
    'Expected for example {"cluster": {"worker": ["a:12345", "b:12345"]}, '
    '"task": {"type": "worker", "index": 0}}.'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run."""

    addresses: tuple[str, ...]  # HOST:PORT of each
    index: int  # of this process; 0 is the chief

    def resolver(self) -> tf.distribute.cluster_resolver.ClusterResolver:
        """Returns what `MultiWorkerMirroredStrategy` takes."""
        return tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(self.addresses)}),
            task_type="worker",
            task_id=self.index,
            rpc_layer="grpc",
        )

    def rendezvous(self, seconds: float) -> None:
        """Waits until all workers have started, or raises a ValueError.

        TensorFlow waits too, but without a limit, and in a call that neither a thread
        nor a signal can interrupt. So each worker first sends a handshake to the chief,
        at the address where TensorFlow's own server listens afterwards.
        """
        deadline = time.monotonic() + seconds
        if self.index == 0:
            missing = self._await_handshakes(deadline)
        else:
            missing = self._send_handshake(deadline)
        if missing:
            names = [f"worker {i} ({self.addresses[i]})" for i in missing]
            raise ValueError(
                f"This is worker {self.index} of {len(self.addresses)}. Not heard from "
                f"{' and '.join(names)} in {seconds:.0f} s. Start the command on each "
                "of them; raise --cluster_timeout to wait longer, or give "
                "--cluster=none to train in one process alone."
            )

    def _handshake(self) -> bytes:
        """Returns the message of a worker, which differs from that of another run."""
        return json.dumps([self.index, self.addresses]).encode() + b"\n"

    def _await_handshakes(self, deadline: float) -> list[int]:
        """Returns the missing workers, and reports them to the others."""
        expected = {
            dataclasses.replace(self, index=index)._handshake(): index
            for index in range(1, len(self.addresses))
        }
        present: dict[int, socket.socket] = {}
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(_listen(self.addresses[0]))
            server.settimeout(POLL_SECONDS)
            while len(present) < len(expected) and time.monotonic() < deadline:
                with contextlib.suppress(OSError):  # no connection, or not a worker
                    connection = stack.enter_context(server.accept()[0])
                    connection.settimeout(POLL_SECONDS)
                    handshake = connection.makefile("rb").readline(MAX_HANDSHAKE)
                    if handshake in expected:
                        present[expected[handshake]] = connection
                # After its handshake only the end of a worker makes it readable. The
                # server is there for Windows, where `select` takes no empty list.
                ended = select.select([server, *present.values()], [], [], 0)[0]
                present = {i: c for i, c in present.items() if c not in ended}
            missing = sorted(set(expected.values()) - set(present))
            for connection in present.values():
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(missing).encode())
        return missing

    def _send_handshake(self, deadline: float) -> list[int]:
        """Returns the missing workers, as far as this worker knows."""
        chief = self.addresses[0]
        host = chief.rpartition(":")[0].strip("[]")
        # TensorFlow's server needs this port, or all other workers wait forever.
        with _listen(self.addresses[self.index]):
            while (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(OSError, ValueError):
                    with socket.create_connection((host, _port(chief)), left) as line:
                        line.sendall(self._handshake())
                        # The chief answers when all have come, or the time is over.
                        line.settimeout(deadline - time.monotonic() + 2 * POLL_SECONDS)
                        return json.loads(line.recv(MAX_HANDSHAKE))
                time.sleep(POLL_SECONDS / 2)
        return [0]


def _listen(address: str) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", _port(address)), family=socket.AF_INET6, dualstack_ipv6=True
            )
        return socket.create_server(("", _port(address)))
    except OSError as error:
        raise ValueError(f"Cannot listen at {address}: {error}.") from error


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def find_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """Finds the workers that `os.environ` names; `None` if this is the only process."""
    if environment.get("TF_CONFIG"):
        cluster = _from_tf_config()
    elif int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        cluster = _from_slurm(environment)
    else:
        return None
    return cluster if cluster and len(cluster.addresses) > 1 else None


def _from_tf_config() -> Cluster | None:
    """Reads `TF_CONFIG`; a chief becomes the first of the workers."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        jobs = resolver.cluster_spec().as_dict()
        job, index = resolver.task_type, resolver.task_id
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"TF_CONFIG cannot be read: {error}. {EXAMPLE}") from error
    addresses = [*jobs.get("chief", []), *jobs.get("worker", [])]
    if not jobs and not job:
        return None
    if set(jobs) - {"chief", "worker"}:
        raise ValueError(
            f"TF_CONFIG has the jobs {', '.join(jobs)}. A training has workers, and "
            f"one of them may be called chief. {EXAMPLE}"
        )
    if index is None:
        if len(addresses) == 1:
            return None
        raise ValueError(f"TF_CONFIG has no task: which worker is this? {EXAMPLE}")
    if not 0 <= index < len(jobs.get(job, [])):
        raise ValueError(
            f"TF_CONFIG says that this process is {job} {index}, which its cluster "
            f"does not have. {EXAMPLE}"
        )
    is_valid = all(re.fullmatch(r".+:\d{1,5}", address) for address in addresses)
    if not is_valid or len(set(addresses)) < len(addresses):
        raise ValueError(
            f"TF_CONFIG names the workers {', '.join(addresses)}. Expected different "
            "addresses HOST:PORT."
        )
    offset = len(jobs.get("chief", [])) if job == "worker" else 0
    return Cluster(tuple(addresses), offset + index)


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """Reads the variables that SLURM sets for the tasks of a job step.

    The resolver sorts the nodes by name, so that its own task index is wrong where
    SLURM has n9 before n10: a worker finds itself by its address instead.
    """
    job = environment.get("SLURM_JOB_ID", "")
    first = FIRST_PORT + int(job if job.isdigit() else 0) * PORTS_PER_JOB % PORTS
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=first,
            # `train.distribution.strategies` chooses GPUs; one per task is a
            # placeholder, without which the resolver calls nvidia-smi.
            gpus_per_node=int(environment["SLURM_STEP_NUM_TASKS"]),
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        addresses = resolver.cluster_spec().as_dict()["worker"]
        port = first + int(environment["SLURM_LOCALID"])
        own = f"{environment['SLURMD_NODENAME']}:{port}"
        return Cluster(tuple(addresses), addresses.index(own))
    except (ValueError, KeyError, RuntimeError) as error:
        names = [name for name in sorted(environment) if name.startswith("SLURM")]
        found = ", ".join(f"{name}={environment[name]}" for name in names)
        raise ValueError(
            f"SLURM's variables do not describe a cluster ({error}): {found}. "
            "--cluster=none trains in this process alone."
        ) from error
