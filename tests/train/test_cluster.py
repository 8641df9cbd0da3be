"""Who trains together: TF_CONFIG, SLURM, and workers that wait for each other."""

import json
import os
import socket
import threading
import time

import pytest
import tensorflow as tf

from tests.helpers.ports import free_port
from train.distribution.cluster import Cluster, expand_node_list, find_cluster

TWO = ["a:1", "b:2"]


def tf_config(cluster, kind="worker", index=0) -> str:
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": cluster, "task": task})


@pytest.fixture
def find(monkeypatch):
    """Finds the cluster of an environment with these variables."""

    def found(**variables: str) -> Cluster | None:
        for name in [name for name in os.environ if name.startswith("SLURM")]:
            monkeypatch.delenv(name)
        monkeypatch.delenv("TF_CONFIG", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return find_cluster(os.environ)

    return found


def test_workers_of_tf_config(find):
    one = find(TF_CONFIG=tf_config({"worker": TWO}, index=1))
    assert one == Cluster(tuple(TWO), 1)
    with_chief = {"chief": ["c:3"], "worker": TWO}
    addresses = ("c:3", "a:1", "b:2")
    chief = find(TF_CONFIG=tf_config(with_chief, "chief"))
    assert chief == Cluster(addresses, 0)
    last = find(TF_CONFIG=tf_config(with_chief, "worker", 1))
    assert last == Cluster(addresses, 2)
    resolver = last.resolver()
    assert resolver.cluster_spec().as_dict() == {"worker": list(addresses)}
    assert resolver.task_id == 2


def test_workers_train_on_all_visible_gpus(monkeypatch):
    def visible(kind):
        return {"GPU": ["GPU:0", "GPU:1"]}.get(kind, [])

    monkeypatch.setattr(tf.config, "get_visible_devices", visible)
    assert Cluster(tuple(TWO), 0).resolver().num_accelerators() == {"GPU": 2}


@pytest.mark.parametrize("task", [{"index": 0}, {"type": "worker"}, {"id": "x"}])
def test_a_task_is_worker_0_unless_it_says_otherwise(find, task):
    text = json.dumps({"cluster": {"chief": ["c:3"], "worker": TWO}, "task": task})
    assert find(TF_CONFIG=text) == Cluster(("c:3", *TWO), 1)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"TF_CONFIG": ""},
        {"TF_CONFIG": "{}"},
        {"TF_CONFIG": tf_config({"worker": ["a:1"]})},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_one_process_is_no_cluster(find, variables):
    assert find(**variables) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG cannot be read.*Expected for example"),
        ("[]", "TF_CONFIG cannot be read"),
        ("null", "TF_CONFIG cannot be read"),
        ('{"cluster": {"worker": 3}}', "TF_CONFIG cannot be read"),
        ('{"cluster": {"worker": "a:1"}}', "each job must have a list of addresses"),
        ('{"cluster": {"worker": []}}', "is worker 0, which its cluster"),
        (tf_config({}), "is worker 0, which its cluster does not have"),
        (tf_config({"worker": TWO}, index=2), "is worker 2, which its cluster"),
        (tf_config({"worker": TWO}, "chief"), "is chief 0, which its cluster"),
        (tf_config({"ps": ["p:1"], "worker": TWO}), "the jobs ps, worker"),
        (tf_config({"worker": ["a:1", "a:1"]}), "Expected different addresses"),
        (tf_config({"worker": ["a:1", "b"]}), "a:1, b. Expected.*HOST:PORT"),
        (tf_config({"worker": ["a:1", "b:0"]}), "b:0. Expected.*from 1 to 65535"),
        (tf_config({"worker": ["a:1", "b:65536"]}), "b:65536. Expected.*HOST:PORT"),
        ('{"cluster": {"worker": ["a:1", "b:2"]}}', "no task: which worker is this"),
    ],
)
def test_a_cluster_that_cannot_be(find, text, message):
    with pytest.raises(ValueError, match=message):
        find(TF_CONFIG=text)


def slurm(**changes) -> dict:
    """Returns the variables of the second task on n9."""
    return {
        "SLURM_JOB_ID": "10007",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "n[9-10],x",
        "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)",
        "SLURMD_NODENAME": "n9",
        **changes,
    }


def test_tasks_of_slurm_find_themselves_by_their_address(find):
    """Also if SLURM deals the tasks out to the nodes in turn."""
    addresses = ("n9:20112", "n9:20113", "n10:20112", "x:20112")
    assert find(**slurm()) == Cluster(addresses, 1)
    assert find(**slurm(SLURM_PROCID="3")) == Cluster(addresses, 1)
    on_x = slurm(SLURM_PROCID="3", SLURM_LOCALID="0", SLURMD_NODENAME="x")
    assert find(**on_x) == Cluster(addresses, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURMD_NODENAME": "other"},
        {"SLURM_LOCALID": "7"},
        {"SLURM_STEP_TASKS_PER_NODE": "two"},
        {"SLURM_STEP_NODELIST": "n[1"},
        {"SLURM_STEP_NUM_TASKS": "9"},
        {"SLURM_STEP_TASKS_PER_NODE": "2,2"},
    ],
)
def test_variables_of_slurm_that_do_not_fit_together(find, changes):
    with pytest.raises(ValueError, match="not describe a cluster.*cluster=none"):
        find(**slurm(**changes))


def test_racks_of_nodes_with_the_same_number_of_tasks(find):
    variables = slurm(
        SLURM_STEP_NODELIST="r[1-2]n[1-2]",
        SLURM_STEP_TASKS_PER_NODE="1(x4)",
        SLURM_LOCALID="0",
        SLURMD_NODENAME="r2n1",
    )
    addresses = tuple(f"{node}:20112" for node in ("r1n1", "r1n2", "r2n1", "r2n2"))
    assert find(**variables) == Cluster(addresses, 2)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("a,n[08-10]-x", ["a", "n08-x", "n09-x", "n10-x"]),
        ("n[9-10,12]", ["n9", "n10", "n12"]),
        ("n[1,3]-[01-02],b", ["n1-01", "n1-02", "n3-01", "n3-02", "b"]),
    ],
)
def test_node_lists(text, nodes):
    assert expand_node_list(text) == nodes


@pytest.mark.parametrize("text", ["", "n[1", "n1]", "n[a-b]", "a,,b", "n[]", "n[1-]"])
def test_what_is_no_node_list(text):
    with pytest.raises(ValueError, match="expected nodes such as"):
        expand_node_list(text)


def addresses(count: int) -> tuple[str, ...]:
    first = free_port(count)
    return tuple(f"127.0.0.1:{port}" for port in range(first, first + count))


def rendezvous(
    names: tuple[str, ...], present: set[int], seconds: float
) -> dict[int, str]:
    """Starts some of the workers; returns the error of each, or an empty text."""
    errors = {}

    def worker(index: int) -> None:
        try:
            Cluster(names, index).rendezvous(seconds)
            errors[index] = ""
        except ValueError as error:
            errors[index] = str(error)

    threads = [threading.Thread(target=worker, args=(i,)) for i in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_workers_wait_for_each_other():
    assert rendezvous(addresses(3), {0, 1, 2}, 10.0) == {0: "", 1: "", 2: ""}


def test_all_are_told_who_did_not_come():
    names = addresses(3)
    errors = rendezvous(names, {0, 1}, 2.0)
    for index in (0, 1):
        expected = f"This is worker {index} of 3. Not heard from worker 2 ({names[2]})"
        assert errors[index].startswith(expected)


def test_a_chief_that_does_not_come():
    names = addresses(2)
    assert f"from worker 0 ({names[0]}) in 1 s" in rendezvous(names, {1}, 1.0)[1]


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_that_is_taken(index):
    with socket.create_server(("", 0)) as taken:
        name = f"127.0.0.1:{taken.getsockname()[1]}"
        names = [name, "b:1"] if index == 0 else ["b:1", name]
        with pytest.raises(ValueError, match=f"Cannot listen at {name}"):
            Cluster(tuple(names), index).rendezvous(1.0)


def test_a_connection_of_another_run_is_ignored():
    names = addresses(2)
    handshake = b'[1, ["another", "run"]]\n'
    stranger = threading.Thread(target=connect, args=(names[0], handshake))
    stranger.start()
    assert rendezvous(names, {0, 1}, 10.0) == {0: "", 1: ""}
    stranger.join()


def test_a_worker_that_gave_up_is_not_counted():
    names = addresses(3)
    errors = {}

    def early():
        errors[1] = rendezvous(names, {1}, 1.0)[1]

    thread = threading.Thread(target=early)
    thread.start()
    errors |= rendezvous(names, {0}, 3.5)
    thread.join()
    assert f"worker 1 ({names[1]}) and worker 2" in errors[0]


def connect(address: str, handshake: bytes) -> None:
    host, _, port = address.rpartition(":")
    for _ in range(50):
        try:
            with socket.create_connection((host, int(port)), 1.0) as connection:
                connection.sendall(handshake)
            return
        except OSError:
            time.sleep(0.02)
