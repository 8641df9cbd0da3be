"""Which processes train together: the addresses of all workers, and which one this is.

They come from `TF_CONFIG` (https://www.tensorflow.org/guide/distributed_training) or
from the variables that SLURM sets for the tasks of a job step.
"""

import contextlib
import dataclasses
import json
import re
import socket
import time
from collections.abc import Mapping

FIRST_PORT, PORTS = 20_000, 10_000  # of SLURM's workers
POLL_SECONDS = 0.5
MAX_HELLO = 2**20  # bytes
TASKS_PER_NODE = 16  # that a job can have without meeting the ports of the next


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
        addresses: `host:port` of each.
        index: of this process among them; the first is the chief.
    """

    addresses: tuple[str, ...]
    index: int

    def to_tf_config(self) -> str:
        """Returns the value of `TF_CONFIG` for this process."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": self.addresses}, "task": task})

    def meet(self, seconds: float) -> None:
        """Waits until all workers are there.

        TensorFlow waits too, but without a limit, and in a call that neither a thread
        nor a signal can interrupt. So the workers first say hello to the chief, at the
        address where TensorFlow's own server listens afterwards.

        Args:
            seconds: to wait at most.

        Raises:
            ValueError: if a worker did not come; the message names it.
        """
        deadline = time.monotonic() + seconds
        if self.index == 0:
            missing = self._await_hellos(deadline)
        else:
            missing = self._say_hello(deadline)
        if missing:
            names = [f"worker {i} ({self.addresses[i]})" for i in missing]
            raise ValueError(
                f"This is worker {self.index} of {len(self.addresses)}. Nothing was "
                f"heard of {' and '.join(names)} in {seconds:.0f} s. Start the command "
                "for each; --cluster_timeout waits longer, and --cluster=none trains "
                "in one process alone."
            )

    def _hello(self) -> bytes:
        """Returns what a worker says, which one of another run does not."""
        return json.dumps([self.index, self.addresses]).encode() + b"\n"

    def _await_hellos(self, deadline: float) -> list[int]:
        """Returns the workers that did not come, and tells it to those that did."""
        expected = {
            dataclasses.replace(self, index=index)._hello(): index
            for index in range(1, len(self.addresses))
        }
        present = {}
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(_listen(self.addresses[0]))
            server.settimeout(POLL_SECONDS)
            while len(present) < len(expected) and time.monotonic() < deadline:
                with contextlib.suppress(OSError):  # nobody, or what is no worker
                    connection = stack.enter_context(server.accept()[0])
                    connection.settimeout(POLL_SECONDS)
                    hello = connection.makefile("rb").readline(MAX_HELLO)
                    if hello in expected:
                        present[expected[hello]] = connection
                present = {i: c for i, c in present.items() if _is_open(c)}
            missing = sorted(set(expected.values()) - set(present))
            for connection in present.values():
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(missing).encode())
        return missing

    def _say_hello(self, deadline: float) -> list[int]:
        """Returns the workers that did not come, as far as this one knows."""
        chief = self.addresses[0]
        host = chief.rpartition(":")[0].strip("[]")
        # TensorFlow's server must have this port, or all others wait for it forever.
        with _listen(self.addresses[self.index]):
            while (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(OSError, ValueError):
                    with socket.create_connection((host, _port(chief)), left) as line:
                        line.sendall(self._hello())
                        # The answer comes when the chief has heard of all, or gives up.
                        line.settimeout(deadline - time.monotonic() + 2 * POLL_SECONDS)
                        return json.loads(line.recv(MAX_HELLO))
                time.sleep(POLL_SECONDS / 2)
        return [0]


def _is_open(connection: socket.socket) -> bool:
    """Tells whether the other end still waits: it says nothing after its hello."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(POLL_SECONDS)


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
    """Finds the workers that the environment names.

    Args:
        environment: such as `os.environ`; `TF_CONFIG` comes before SLURM.

    Returns:
        The `Cluster`, or `None` if there is no more than this one process.

    Raises:
        ValueError: if the variables do not describe a cluster of workers.
    """
    if environment.get("TF_CONFIG"):
        cluster = _from_tf_config(environment["TF_CONFIG"])
    elif "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        cluster = _from_slurm(environment)
    else:
        return None
    return cluster if cluster and len(cluster.addresses) > 1 else None


def _from_tf_config(text: str) -> Cluster | None:
    example = (
        'Expected for instance {"cluster": {"worker": ["a:12345", "b:12345"]}, '
        '"task": {"type": "worker", "index": 0}}.'
    )
    try:
        values = json.loads(text)
        jobs, task = values.get("cluster", {}), values.get("task", {})
        if not all(isinstance(addresses, list) for addresses in jobs.values()):
            raise ValueError("each job has a list of addresses")
        if not task and sum(map(len, jobs.values())) > 1:
            raise ValueError("it does not say which task this process is")
        job, index = task.get("type", "worker"), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"TF_CONFIG cannot be read: {error}. {example}") from error
    unknown = sorted(set(jobs) - {"chief", "worker"})
    if unknown:
        raise ValueError(
            f"TF_CONFIG has the jobs {', '.join(unknown)}, but all processes of a "
            f"training are workers, of which one may be called chief. {example}"
        )
    addresses = jobs.get("chief", []) + jobs.get("worker", [])
    if not addresses:
        if jobs or task:
            raise ValueError(f"TF_CONFIG names no worker. {example}")
        return None
    _check_addresses(addresses)
    if not 0 <= index < len(jobs.get(job, [])):
        raise ValueError(
            f"TF_CONFIG says that this is {job} {index}, but has the jobs "
            f"{ {job: len(addresses) for job, addresses in jobs.items()} }. {example}"
        )
    offset = len(jobs.get("chief", [])) if job == "worker" else 0
    return Cluster(tuple(addresses), offset + index)


def _check_addresses(addresses: list) -> None:
    for address in addresses:
        match = re.fullmatch(r".+:(\d+)", str(address))
        if not match or not 0 < int(match[1]) < 2**16:
            raise ValueError(
                f"TF_CONFIG has the address {address!r}. Expected HOST:PORT."
            )
    if len(set(addresses)) < len(addresses):
        raise ValueError(f"TF_CONFIG names an address twice: {', '.join(addresses)}.")


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    nodes = expand_node_list(environment["SLURM_STEP_NODELIST"])
    counts = _expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    counts = counts * len(nodes) if len(counts) == 1 else counts
    number = environment["SLURM_PROCID"]
    index = int(number) if number.isdigit() else -1
    if len(counts) != len(nodes) or not 0 <= index < sum(counts):
        raise ValueError(
            "SLURM's variables do not fit together: SLURM_STEP_NODELIST="
            f"{environment['SLURM_STEP_NODELIST']}, SLURM_STEP_TASKS_PER_NODE="
            f"{environment.get('SLURM_STEP_TASKS_PER_NODE')}, SLURM_PROCID={number}. "
            "--cluster=none trains in this process alone."
        )
    # SLURM numbers the tasks of a step node by node: srun --distribution=block.
    job = environment.get("SLURM_JOB_ID", "")
    job = int(job) if job.isdigit() else 0
    first = FIRST_PORT + job * TASKS_PER_NODE % PORTS
    addresses = [
        f"{node}:{first + i}"
        for node, count in zip(nodes, counts)
        for i in range(count)
    ]
    return Cluster(tuple(addresses), index)


def _expand_counts(text: str) -> list[int]:
    """Expands SLURM's `2(x3),1` to `[2, 2, 2, 1]`."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise ValueError(
                f"SLURM_STEP_TASKS_PER_NODE is {text!r}. Expected such as 2(x3),1."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def expand_node_list(text: str) -> list[str]:
    """Expands SLURM's list of nodes.

    Args:
        text: names and ranges, such as `login,node[01-03,07]`.

    Returns:
        The names, in order.

    Raises:
        ValueError: if the text is no such list.

    Example:
    >>> expand_node_list("a,n[08-10]-x")
    ['a', 'n08-x', 'n09-x', 'n10-x']
    """
    part = r"(?:[^,\[\]]|\[[^\[\]]*\])+"  # commas within brackets do not separate
    if not re.fullmatch(f"{part}(,{part})*", text):
        raise ValueError(f"Expected a list of nodes such as a,n[01-03]. Got {text!r}.")
    return [
        name for one in re.findall(part, text) for name in _expand_ranges(one, text)
    ]


def _expand_ranges(name: str, text: str) -> list[str]:
    before, bracket, rest = name.partition("[")
    if not bracket:
        return [before]
    ranges, _, after = rest.partition("]")
    numbers = []
    for item in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if not match:
            raise ValueError(f"{item!r} is no range of nodes, in {text!r}.")
        first, last = match[1], match[2] or match[1]
        numbers += [
            f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)
        ]
    return [
        f"{before}{number}{tail}"
        for number in numbers
        for tail in (_expand_ranges(after, text) if after else [""])
    ]
