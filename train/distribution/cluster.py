"""The processes that train together: the addresses of all workers, and our index.

They come from `TF_CONFIG` (https://www.tensorflow.org/guide/distributed_training) or
from the variables that SLURM sets for the tasks of a job step.
"""

import contextlib
import dataclasses
import itertools
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
            # Without this number TensorFlow trains on the CPU. To count logical
            # devices would start TensorFlow, before it knows the other workers.
            num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
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
        cluster = _from_tf_config(environment["TF_CONFIG"])
    elif int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        cluster = _from_slurm(environment)
    else:
        return None
    return cluster if cluster and len(cluster.addresses) > 1 else None


def _from_tf_config(text: str) -> Cluster | None:
    """Reads `TF_CONFIG`; a chief becomes the first of the workers."""
    try:
        values = json.loads(text)
        jobs, task = values.get("cluster", {}), values.get("task", {})
        if not all(isinstance(addresses, list) for addresses in jobs.values()):
            raise ValueError("each job must have a list of addresses")
        job, index = str(task.get("type", "worker")), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"TF_CONFIG cannot be read: {error}. {EXAMPLE}") from error
    addresses = [*jobs.get("chief", []), *jobs.get("worker", [])]
    if not jobs and not task:
        return None
    if set(jobs) - {"chief", "worker"}:
        raise ValueError(
            f"TF_CONFIG has the jobs {', '.join(jobs)}. A training has workers, and "
            f"one of them may be called chief. {EXAMPLE}"
        )
    if not task and len(addresses) > 1:
        raise ValueError(f"TF_CONFIG has no task: which worker is this? {EXAMPLE}")
    if (task or not addresses) and not 0 <= index < len(jobs.get(job, [])):
        raise ValueError(
            f"TF_CONFIG says that this process is {job} {index}, which its cluster "
            f"does not have. {EXAMPLE}"
        )
    is_valid = all(map(_is_address, addresses))
    if not is_valid or len(set(addresses)) < len(addresses):
        raise ValueError(
            f"TF_CONFIG names the workers {', '.join(map(str, addresses))}. Expected "
            "different addresses HOST:PORT, with ports from 1 to 65535."
        )
    offset = len(jobs.get("chief", [])) if job == "worker" else 0
    return Cluster(tuple(addresses), offset + index)


def _is_address(value: object) -> bool:
    match = re.fullmatch(r".+:([0-9]{1,5})", value) if isinstance(value, str) else None
    return match is not None and 0 < int(match[1]) < 2**16


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """Reads the variables that SLURM sets for the tasks of a job step.

    A worker finds itself by its address, since `srun --distribution` decides whether
    SLURM numbers the tasks node by node.
    """
    job = environment.get("SLURM_JOB_ID", "")
    first = FIRST_PORT + int(job if job.isdigit() else 0) * PORTS_PER_JOB % PORTS
    try:
        nodes = expand_node_list(environment["SLURM_STEP_NODELIST"])
        counts = _expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        counts = counts * len(nodes) if len(counts) == 1 else counts
        addresses = [
            f"{node}:{first + task}"
            for node, count in zip(nodes, counts, strict=True)
            for task in range(count)
        ]
        if len(addresses) != int(environment["SLURM_STEP_NUM_TASKS"]):
            raise ValueError(f"the nodes have {len(addresses)} tasks")
        port = first + int(environment["SLURM_LOCALID"])
        own = f"{environment['SLURMD_NODENAME']}:{port}"
        return Cluster(tuple(addresses), addresses.index(own))
    except (ValueError, KeyError) as error:
        names = [name for name in sorted(environment) if name.startswith("SLURM")]
        found = ", ".join(f"{name}={environment[name]}" for name in names)
        raise ValueError(
            f"SLURM's variables do not describe a cluster ({error}): {found}. "
            "--cluster=none trains in this process alone."
        ) from error


def _expand_counts(text: str) -> list[int]:
    """Expands SLURM's `2(x3),1` to `[2, 2, 2, 1]`."""
    if not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", text):
        raise ValueError(f"expected counts such as 2(x3),1, received {text!r}")
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def expand_node_list(text: str) -> list[str]:
    """Expands SLURM's list of nodes, in its order.

    >>> expand_node_list("a,n[08-10]-x")
    ['a', 'n08-x', 'n09-x', 'n10-x']
    """
    item = r"\d+(?:-\d+)?"
    name = rf"(?:[^,\[\]]|\[{item}(?:,{item})*\])+"
    if not re.fullmatch(f"{name}(,{name})*", text):
        raise ValueError(f"expected nodes such as a,n[01-03], received {text!r}")
    nodes = []
    for node in re.findall(name, text):
        parts = re.split(r"\[(.+?)\]", node)  # every second part was in brackets
        choices = [_numbers(p) if i % 2 else [p] for i, p in enumerate(parts)]
        nodes += ["".join(chosen) for chosen in itertools.product(*choices)]
    return nodes


def _numbers(ranges: str) -> list[str]:
    """Expands `08-10,12` to `["08", "09", "10", "12"]`."""
    ends = [item.partition("-")[::2] for item in ranges.split(",")]
    return [
        f"{number:0{len(first)}d}"
        for first, last in ends
        for number in range(int(first), int(last or first) + 1)
    ]
