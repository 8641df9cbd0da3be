"""Batches that other processes decode are those of this one, to the bit."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from safetensors.numpy import load_file

from tests.helpers.image_files import make_folder, pil_file
from tests.helpers.networks import build_network
from tests.helpers.ports import free_port
from train import loop
from train.config import make_config
from train.data import pipeline as data
from train.data import sampler, sources
from train.distribution import data_server, data_service
from train.run.workdir import CHECKPOINT
from train.tasks.classification.task import CLASSIFICATION

ROOT = Path(__file__).parents[2]
PORTS = 2  # of a server: its own and the next one
CONFIG = make_config(
    data="digits",
    sizes=(32,),
    base_size=32,
    batch_size=256,
    epochs=1,
    warmup_steps=2,
    eval_size=32,
)


def run(*arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_server(port: int, folder) -> subprocess.Popen:
    """Starts a server, whose temporary files are in a folder."""
    module = "-m", "train.distribution.data_server"
    return run(*module, f"--port={port}", "--host=127.0.0.1", TMPDIR=str(folder))


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The addresses of two servers, in processes of their own."""
    folder = tmp_path_factory.mktemp("servers")
    ports = [free_port(PORTS) for _ in range(2)]
    processes = [start_server(port, folder) for port in ports]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    for process, address in zip(processes, addresses):
        assert f"serving at {address}" in process.stdout.readline()
    yield addresses
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of JPEGs of noise, two of which cannot be read."""
    rng = np.random.default_rng(0)

    def photo(height, width) -> bytes:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        return tf.io.encode_jpeg(pixels).numpy()

    classes = {
        name: {f"{i}.jpg": photo(60 + i, 90 - i) for i in range(9)}
        | {"random.jpg": rng.bytes(3000)}
        for name in ("a", "b")
    }
    path = make_folder(tmp_path_factory.mktemp("photos"), classes)
    return sources.load_source(f"folder:{path}")


def schedule_of(source, batch_size, multiple=1) -> list:
    """Returns the steps of an epoch at two sizes."""
    shapes = sampler.batch_shapes((32, 48), 32, batch_size, multiple)
    return sampler.epoch_schedule(shapes, source.num_examples["train"], 1)


def assert_same_batches(servers, *arguments, expected_length: int):
    local, served = (
        list(make(*arguments).as_numpy_iterator())
        for make in (
            data.train_batches,
            functools.partial(data_service.train_batches, servers),
        )
    )
    assert len(local) == len(served) == expected_length
    for one, other in zip(local, served):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key].dtype == value.dtype
            np.testing.assert_array_equal(other[key], value)
    return local


@pytest.mark.parametrize(("count", "first_step"), [(1, 0), (2, 3)])
def test_digits(servers, count, first_step):
    digits = sources.digits_source()
    schedule = schedule_of(digits, 256)
    batches = assert_same_batches(
        *(servers[:count], digits, CONFIG, schedule, 1, first_step),
        expected_length=len(schedule) - first_step,
    )
    assert batches[-1]["weight"].min() == 0  # the last is filled up


def test_photos_of_which_some_cannot_be_read(servers, photos):
    schedule = schedule_of(photos, 3)
    batches = assert_same_batches(
        servers, photos, CONFIG, schedule, 1, expected_length=len(schedule)
    )
    names = [name for batch in batches for name in data.unreadable(_tensors(batch))]
    assert [Path(name).name for name in names] == ["random.jpg"] * 2


def _tensors(batch):
    return tf.nest.map_structure(tf.constant, batch)


@pytest.mark.parametrize(("first", "count"), [(2, 2), (1, 1)])
def test_shares_of_four_replicas(servers, photos, first, count):
    schedule = schedule_of(photos, 4, multiple=4)
    share = data.Shard(4, first, count)
    assert_same_batches(
        *(servers, photos, CONFIG, schedule, 1, 1, share),
        expected_length=count * (len(schedule) - 1),
    )


def test_a_stream_that_is_shuffled(servers):
    """Records of TensorFlow Datasets are, with the seed of an epoch."""
    digits = sources.digits_source()

    def examples(split, seed):
        return digits.examples(split, None).shuffle(500, seed=seed)

    source = dataclasses.replace(digits, examples=examples)
    schedule = schedule_of(source, 256)
    assert_same_batches(
        servers, source, CONFIG, schedule, 1, expected_length=len(schedule)
    )


def test_more_servers_than_steps_and_none_left(servers):
    digits = sources.digits_source()
    schedule = schedule_of(digits, 256)
    for left in (1, 0):
        assert_same_batches(
            *(servers, digits, CONFIG, schedule, 1, len(schedule) - left),
            expected_length=left,
        )


def test_a_run_has_the_numbers_of_one_without_servers(servers, tmp_path):
    task = dataclasses.replace(CLASSIFICATION, build_model=build_network)
    digits = sources.digits_source()
    records = []
    for name, addresses in (("local", ()), ("served", servers)):
        with data_service.connected(addresses, digits, 30.0) as batches:
            records += loop.train_and_evaluate(
                task, CONFIG, digits, tmp_path / name, train_batches=batches
            )
    for key in ("step", "train_loss", "loss", "top1", "skipped_train", "traces"):
        assert records[0][key] == pytest.approx(records[1][key], rel=1e-6), key
    one, other = (load_file(tmp_path / run / CHECKPOINT) for run in ("local", "served"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=1e-6)


def test_a_batch_that_is_lost_ends_the_epoch(servers, monkeypatch):
    """As where a server gave one away, and the network failed before it was here."""
    distribute = data_service._distribute

    def losing(dataset, server):
        return distribute(dataset.filter(lambda place, batch: place != 1), server)

    monkeypatch.setattr(data_service, "_distribute", losing)
    digits = sources.digits_source()
    batches = data_service.train_batches(
        servers[:1], digits, CONFIG, schedule_of(digits, 256), 1
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{servers[0]} was lost"):
        list(batches)


def test_a_server_that_cannot_read_the_files(servers, photos, monkeypatch):
    data_service.check_reading(servers, photos, 30.0)
    monkeypatch.setattr(tf.io.gfile, "exists", lambda path: True)
    columns = {"train": {"path": ["elsewhere/a.jpg"], "id": ["a"]}}
    source = sources.indexed_source("folder:elsewhere", ["a"], columns)
    with pytest.raises(ValueError, match="cannot read elsewhere/a.jpg, which this"):
        data_service.check_reading(servers, source, 30.0)


def test_a_server_that_is_not_there():
    address = f"127.0.0.1:{free_port(PORTS)}"
    with pytest.raises(
        ValueError, match=f"{address} cannot be reached .*refused.* 1 s"
    ):
        data_service.await_servers([address], 1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("decoder1", "such as decoder1:5050,.* Received: 'decoder1'"),
        ("decoder1:0", "Received: 'decoder1:0'"),
        ("a:1,b:2,a:1", "names one twice: a:1, b:2, a:1"),
    ],
)
def test_addresses_that_are_none(value, message):
    values = flags.FlagValues()
    data_service.define_flags(values)
    values(["main.py", f"--data_servers={value}"])
    with pytest.raises(ValueError, match=message):
        data_service.servers_from_flags(values)


def test_only_old_pipelines_are_removed(tmp_path):
    old, new = tmp_path / "datasets" / "old", tmp_path / "datasets" / "new"
    old.parent.mkdir()
    for file in (old, new):
        file.write_bytes(b"")
    os.utime(old, (time.time() - 100,) * 2)
    data_server.remove_old(tmp_path, 50)
    assert not old.exists() and new.exists()


DECODE = """
from train import data_service, sampler, sources
from train.config import make_config
servers, digits = [{address!r}], sources.digits_source()
schedule = [sampler.BatchShape(32, 32, 8)] * 180
with data_service.watched(servers, seconds=2.0):
    while True:
        config = make_config("digits")
        for _ in data_service.train_batches(servers, digits, config, schedule, 1):
            print("batch", flush=True)
"""


def test_a_server_that_dies_ends_the_training_with_its_name(tmp_path):
    port = free_port(PORTS)
    server = start_server(port, tmp_path)
    client = run("-c", DECODE.format(address=f"127.0.0.1:{port}"))
    assert "serving" in server.stdout.readline()
    assert client.stdout.readline() == "batch\n"
    server.kill()
    _, errors = client.communicate(timeout=60)
    server.communicate()
    assert client.returncode == 1, errors
    assert f"error: The data server 127.0.0.1:{port} has gone" in errors


def test_sigterm_ends_a_server(tmp_path):
    server = start_server(free_port(PORTS), tmp_path)
    assert "serving" in server.stdout.readline()
    assert list(tmp_path.iterdir())
    server.send_signal(signal.SIGTERM)
    output, errors = server.communicate(timeout=60)
    assert server.returncode == 0, errors
    assert output == "ended\n" and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken(servers, tmp_path):
    port = int(servers[0].rpartition(":")[2])
    message = f"Cannot listen at port {port}: Address already in use. A server takes"
    with pytest.raises(ValueError, match=message):
        with data_server.serving("127.0.0.1", port - 1, tmp_path):
            pass
    server = start_server(port, tmp_path)
    _, errors = server.communicate(timeout=60)
    assert server.returncode == 1
    assert errors.splitlines()[-1].startswith(f"error: {message}"), errors


def test_kinds_of_images_that_servers_cannot_decode_are_refused(tmp_path):
    jpeg, webp = (pil_file("RGB", "red", kind) for kind in ("JPEG", "WEBP"))
    classes = {"a": {"1.jpg": jpeg, "2.WEBP": webp}, "b": {"1.jpg": jpeg}}
    source = sources.load_source(f"folder:{make_folder(tmp_path / 'odd', classes)}")
    with pytest.raises(ValueError, match=r"but 1 of the 3 training .*a/2\.WEBP\. Save"):
        with data_service.connected(("localhost:1",), source, 1.0):
            pass
    classes["a"].pop("2.WEBP")
    source = sources.load_source(f"folder:{make_folder(tmp_path / 'usual', classes)}")
    data_service.check_kinds(source)
