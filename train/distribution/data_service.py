"""Training batches that other machines decode, the same ones in the same order.

    schedule -> step % servers -> each server's steps, see `train.distribution.data_server`
             -> the steps of all servers, one after the other

A service of tf.data that has several workers gives batches twice or in another order.
So each server is a service of its own, of one worker, which makes the batches of every
n-th step, and here the steps are put together again in their order.
"""

import contextlib
import functools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import flags, logging

from train.data import images
from train.data import pipeline as data
from train.data.sampler import BatchShape
from train.data.source import Source
from train.distribution.strategies import at_most, give_up

BATCHES_AHEAD = 2  # of each server that wait here
POLL_SECONDS = 5.0
SERVED = (b".jpg", b".jpeg", b".png")  # endings of what TensorFlow itself decodes
LOST_SECONDS = 60.0  # without an answer, after which a server is given up


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flag that names the servers."""
    flags.DEFINE_list(
        "data_servers",
        [],
        "HOST:PORT,HOST:PORT of machines that decode the training's images. Each runs "
        "python -m train.distribution.data_server and reads the images by the same paths. The "
        "batches are those that this machine would make.",
        flag_values=flag_values,
    )


def servers_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> tuple[str, ...]:
    """Returns the addresses that the flag names.

    Raises:
        ValueError: if one is no `HOST:PORT`, or is there twice.
    """
    servers = tuple(flag_values["data_servers"].value)
    for server in servers:
        match = re.fullmatch(r".+:(\d+)", server)
        if not match or not 0 < int(match[1]) < 2**16:
            raise ValueError(
                "--data_servers takes addresses such as decoder1:5050,decoder2:5050. "
                f"Received: {server!r}."
            )
    if len(set(servers)) < len(servers):
        raise ValueError(f"--data_servers names one twice: {', '.join(servers)}.")
    return servers


def train_batches(
    servers: Sequence[str],
    source: Source,
    config,
    schedule: list[BatchShape],
    epoch: int,
    first_step: int = 0,
    share: data.Shard = data.WHOLE,
    load: Callable = images.train_example,
) -> tf.data.Dataset:
    """Makes the batches of `train.data.pipeline.train_batches`, decoded by servers.

    Args:
        servers: their addresses, `host:port`; step `i` is decoded by the one that has
            the place `i` modulo their number.
        source: and all that follows is as in `train.data.pipeline.train_batches`.

    Returns:
        A `tf.data.Dataset` of the same elements in the same order, whatever the number
        of servers. It ends with an error where a server lost a batch.
    """
    count = len(servers)
    parts = [share._replace(stride=count, offset=place) for place in range(count)]
    arguments = source, config, schedule, epoch, first_step
    streams = [
        _from_server(server, data.train_batches(*arguments, part, load))
        for server, part in zip(servers, parts)
    ]
    steps = np.repeat(np.arange(first_step, len(schedule)), share.count)
    order = tf.data.Dataset.from_tensor_slices(steps % count)
    batches = tf.data.Dataset.choose_from_datasets(streams, order)
    return batches.apply(tf.data.experimental.assert_cardinality(len(steps)))


def _distribute(dataset: tf.data.Dataset, server: str) -> tf.data.Dataset:
    """Lets a server make the elements; uncompressed, since photos hardly shrink."""
    service = tf.data.experimental.service
    return dataset.apply(
        service.distribute(
            service.ShardingPolicy.OFF, f"grpc://{server}", compression=None
        )
    )


def _from_server(server: str, batches: tf.data.Dataset) -> tf.data.Dataset:
    """Lets a server make batches, and checks that they come in order.

    A network that fails for a moment can lose one: the server has given it away, and
    answers the next request with the next one.
    """

    def checked(place, numbered):
        number, batch = numbered
        check = tf.debugging.assert_equal(
            number, place, f"A batch of the data server {server} was lost on the way."
        )
        with tf.control_dependencies([check]):
            return tf.nest.map_structure(tf.identity, batch)

    numbered = _distribute(batches.enumerate(), server)
    return numbered.enumerate().map(checked).prefetch(BATCHES_AHEAD)


def await_servers(servers: Sequence[str], seconds: float) -> None:
    """Waits until all servers answer.

    Args:
        servers: their addresses.
        seconds: to wait at most, for all of them together.

    Raises:
        ValueError: if one does not; the message names it.
    """
    deadline, told = time.monotonic() + seconds, set()
    for server in servers:
        while reason := _unreachable(server):
            if server not in told:
                logging.info("waiting for the data server %s: %s", server, reason)
                told.add(server)
            if time.monotonic() > deadline:
                raise ValueError(
                    f"The data server {server} cannot be reached ({reason}) in "
                    f"{seconds:.0f} s. Start python -m train.distribution.data_server --port="
                    f"{server.rpartition(':')[2]} there, or correct --data_servers; "
                    "--cluster_timeout waits longer."
                )
            time.sleep(0.5)


def _unreachable(server: str) -> str:
    """Says why nobody listens at an address; nothing if somebody does."""
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), POLL_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def check_reading(servers: Sequence[str], source: Source, seconds: float) -> None:
    """Checks that each server answers as one, and reads the source's first file.

    One that does not read the files would not end a run: its images would be skipped.

    Args:
        servers: their addresses.
        source: of the training.
        seconds: after which the process is ended, since TensorFlow waits an hour.

    Raises:
        ValueError: if a server cannot read what this process can.
    """
    example = next(iter(source.examples("train", None)))
    path = example["path"].numpy().decode() if "path" in example else ""
    is_read = bool(path) and tf.io.gfile.exists(path)
    for server in servers:
        explanation = (
            f"What listens at {server} does not answer as a data server. Does "
            "python -m train.distribution.data_server run there, is its --host a name that this "
            "machine knows, and does a firewall let the next port through too?"
        )
        with at_most(seconds, lambda text=explanation: text):
            found = list(_distribute(_file_size(path if is_read else ""), server))
        if is_read and not found:
            raise ValueError(
                f"The data server {server} cannot read {path}, which this machine "
                "reads. Put the images on storage that both have at the same path."
            )
        logging.info("data server %s: ready", server)


def check_kinds(source: Source) -> None:
    """Checks that servers can decode the training's files: JPEG and PNG.

    The other kinds are decoded by Pillow in this process, which cannot be sent.

    Raises:
        ValueError: if a file has the ending of another kind.
    """
    examples = source.examples("train", None)
    if "path" not in examples.element_spec:
        return
    paths = examples.map(lambda example: example["path"]).batch(10_000)
    others = [
        path.decode()
        for batch in paths.as_numpy_iterator()
        for path in batch
        if not path.lower().endswith(SERVED)
    ]
    if others:
        raise ValueError(
            f"Data servers decode JPEG and PNG alone, but {len(others)} of the "
            f"{source.num_examples['train']} training images of {source.name} are of "
            f"other kinds, the first is {others[0]}. Save them as JPEG or PNG, or "
            "train without --data_servers."
        )


def _file_size(path: str) -> tf.data.Dataset:
    """Makes a data set of the size of a file, or of nothing if it cannot be read."""
    files = tf.data.Dataset.from_tensors(path)
    sizes = files.map(lambda file: tf.strings.length(tf.io.read_file(file)))
    return sizes.ignore_errors()


@contextlib.contextmanager
def watched(servers: Sequence[str], seconds: float = LOST_SECONDS) -> Iterator[None]:
    """Ends the process if a server does not answer any more.

    TensorFlow asks one that has gone again and again, without a limit, in a call that
    cannot be interrupted.

    Args:
        servers: their addresses.
        seconds: for which one may be away.
    """
    end = threading.Event()
    poll = min(POLL_SECONDS, seconds / 4)

    def watch():
        seen = dict.fromkeys(servers, time.monotonic())
        while not end.wait(poll):
            for server in servers:
                reason = _unreachable(server)
                if not reason:
                    seen[server] = time.monotonic()
                elif time.monotonic() - seen[server] > seconds:
                    give_up(
                        f"The data server {server} has gone: {reason} for "
                        f"{seconds:.0f} s. Start it again, or leave it out of "
                        "--data_servers; the same command continues from the last "
                        "checkpoint."
                    )

    thread = threading.Thread(target=watch, name="data-servers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextlib.contextmanager
def connected(
    servers: Sequence[str], source: Source, seconds: float
) -> Iterator[Callable]:
    """Gives what makes the training's batches, by servers if there are any.

    Args:
        servers: their addresses; none to decode here.
        source: of the training.
        seconds: to wait for the servers.

    Yields:
        A function with the arguments and the result of `train.data.pipeline.train_batches`.

    Raises:
        ValueError: if a server does not answer, does not read the source's files, or
            cannot decode them.
    """
    if not servers:
        yield data.train_batches
        return
    check_kinds(source)
    await_servers(servers, seconds)
    check_reading(servers, source, seconds)
    with watched(servers):
        yield functools.partial(train_batches, tuple(servers))
