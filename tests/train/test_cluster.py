"""Who trains together: TF_CONFIG, SLURM, and workers that wait for each other."""

import json
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.ports import free_port
from train.distribution.cluster import Cluster, expand_node_list, find_cluster

TWO = ["a:1", "b:2"]


def tf_config(cluster, kind="worker", index=0) -> dict:
    task = {"type": kind, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def test_workers_of_tf_config():
    assert find_cluster(tf_config({"worker": TWO}, index=1)) == Cluster(tuple(TWO), 1)
    with_chief = {"chief": ["c:3"], "worker": TWO}
    addresses = ("c:3", "a:1", "b:2")
    assert find_cluster(tf_config(with_chief, "chief")) == Cluster(addresses, 0)
    assert find_cluster(tf_config(with_chief, "worker", 1)) == Cluster(addresses, 2)
    again = find_cluster({"TF_CONFIG": Cluster(addresses, 2).to_tf_config()})
    assert again == Cluster(addresses, 2)


@pytest.mark.parametrize(
    "environment",
    [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": "{}"}, tf_config({"worker": ["a:1"]})],
)
def test_one_process_is_no_cluster(environment):
    assert find_cluster(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG cannot be read.*Expected for instance"),
        ({"TF_CONFIG": "[]"}, "TF_CONFIG cannot be read"),
        ({"TF_CONFIG": '{"cluster": {"worker": 3}}'}, "TF_CONFIG cannot be read"),
        (tf_config({}), "names no worker"),
        (tf_config({"worker": TWO}, index=2), "this is worker 2, but has.*'worker': 2"),
        (tf_config({"worker": TWO}, "chief"), "this is chief 0"),
        (tf_config({"ps": ["p:1"], "worker": TWO}), "the jobs ps, but all"),
        (tf_config({"worker": ["a:1", "a:1"]}), "an address twice"),
        (tf_config({"worker": ["a:1", "b"]}), "'b'. Expected HOST:PORT"),
        (tf_config({"worker": ["a:1", "b:99999"]}), "'b:99999'. Expected HOST:PORT"),
        (tf_config({"worker": "a:1"}), "each job has a list of addresses"),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:2"]}}'}, "which task this"),
    ],
)
def test_a_cluster_that_cannot_be(environment, message):
    with pytest.raises(ValueError, match=message):
        find_cluster(environment)


def slurm(**changes) -> dict:
    return {
        "SLURM_JOB_ID": "10007",
        "SLURM_PROCID": "2",
        "SLURM_STEP_NODELIST": "n[09-10],x",
        "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)",
        **changes,
    }


def test_tasks_of_slurm():
    addresses = ("n09:20112", "n09:20113", "n10:20112", "x:20112")
    assert find_cluster(slurm()) == Cluster(addresses, 2)
    for number in ("4", "x"):
        with pytest.raises(ValueError, match=f"PROCID={number}.*cluster=none"):
            find_cluster(slurm(SLURM_PROCID=number))
    with pytest.raises(ValueError, match="TASKS_PER_NODE is 'two'"):
        find_cluster(slurm(SLURM_STEP_TASKS_PER_NODE="two"))


@given(
    before=st.sampled_from(["n", "node-", "r1c"]),
    first=st.integers(0, 200),
    count=st.integers(1, 30),
    width=st.integers(1, 4),
    after=st.sampled_from(["", "-ib", "x[1,3]"]),
)
def test_node_lists(before, first, count, width, after):
    last = f"{first + count - 1:0{width}d}"
    names = expand_node_list(f"login,{before}[{first:0{width}d}-{last}]{after}")
    tails = ["x1", "x3"] if "[" in after else [after]
    assert names == ["login"] + [
        f"{before}{number:0{width}d}{tail}"
        for number in range(first, first + count)
        for tail in tails
    ]


@pytest.mark.parametrize("text", ["", "n[1", "n1]", "n[a-b]", "a,,b", "n[]"])
def test_what_is_no_node_list(text):
    with pytest.raises(ValueError, match="Expected a list of nodes|is no range"):
        expand_node_list(text)


def addresses(count: int) -> tuple[str, ...]:
    first = free_port(count)
    return tuple(f"127.0.0.1:{port}" for port in range(first, first + count))


def meet(names: tuple[str, ...], present: set[int], seconds: float) -> dict[int, str]:
    """Lets some of the workers meet; returns what each was told."""
    told = {}

    def worker(index: int) -> None:
        try:
            Cluster(names, index).meet(seconds)
            told[index] = ""
        except ValueError as error:
            told[index] = str(error)

    threads = [threading.Thread(target=worker, args=(i,)) for i in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_workers_meet():
    assert meet(addresses(3), {0, 1, 2}, 10.0) == {0: "", 1: "", 2: ""}


def test_all_are_told_who_did_not_come():
    names = addresses(3)
    told = meet(names, {0, 1}, 5.0)
    for index in (0, 1):
        expected = (
            f"This is worker {index} of 3. Nothing was heard of worker 2 ({names[2]})"
        )
        assert told[index].startswith(expected)


def test_a_chief_that_does_not_come():
    names = addresses(2)
    assert f"of worker 0 ({names[0]}) in 3 s" in meet(names, {1}, 3.0)[1]


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_that_is_taken(index):
    with socket.create_server(("", 0)) as taken:
        name = f"127.0.0.1:{taken.getsockname()[1]}"
        names = [name, "b:1"] if index == 0 else ["b:1", name]
        with pytest.raises(ValueError, match=f"Cannot listen at {name}"):
            Cluster(tuple(names), index).meet(1.0)


def test_what_knocks_at_the_port_is_no_worker():
    names = addresses(2)
    hello = b'[1, ["another", "run"]]\n'
    stranger = threading.Thread(target=knock, args=(names[0], hello))
    stranger.start()
    assert meet(names, {0, 1}, 10.0) == {0: "", 1: ""}
    stranger.join()


def test_a_worker_that_gave_up_is_not_counted():
    names = addresses(3)
    told = {}

    def early():
        told[1] = meet(names, {1}, 3.0)[1]

    thread = threading.Thread(target=early)
    thread.start()
    told |= meet(names, {0}, 8.0)
    thread.join()
    assert f"worker 1 ({names[1]}) and worker 2" in told[0]


def knock(address: str, hello: bytes) -> None:
    host, _, port = address.rpartition(":")
    for _ in range(50):
        try:
            with socket.create_connection((host, int(port)), 1.0) as connection:
                connection.sendall(hello)
            return
        except OSError:
            time.sleep(0.02)
