"""Decodes images for trainings on other machines: a tf.data service of one worker.

Examples:
  python -m train.distribution.data_server --port=5050
  python -m train.distribution.data_server --port=5050 --host=10.0.0.7

Start one on every machine that shall decode, and name them all to the training:

  python train/main.py --data=folder:/shared/photos --workdir=/shared/run \\
      --data_servers=decoder1:5050,decoder2:5050

A server opens the images by the paths that the training has, so they lie on storage
that both read. It uses all cores, no GPU, and two ports: --port and the next one. It
takes the same version of TensorFlow as the training, and one server can serve several
trainings. SIGTERM or Ctrl-C ends it. It asks for no password, and whoever reaches it
can have any file of the machine read: run it only in a network that you trust.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

# As train/main.py has them, since the images shall be those that it would make itself.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags

DEFAULT_PORT = 5050
CHECK_SECONDS = 60.0
KEEP_SECONDS = 3600.0  # of a training's pipeline, which is read when an epoch begins


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of a server."""
    flags.DEFINE_integer(
        "port",
        DEFAULT_PORT,
        "Port for trainings, as in their --data_servers; the next one is taken too.",
        lower_bound=1,
        upper_bound=2**16 - 2,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "host",
        socket.gethostname(),
        "Name or address by which the trainings reach this machine.",
        flag_values=flag_values,
    )


def refuse_taken(port: int) -> None:
    """Checks that nobody listens at a port.

    TensorFlow shares a port with another server of its kind, and says nothing.

    Raises:
        ValueError: if somebody does.
    """
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise ValueError(
            f"Cannot listen at port {port}: {os.strerror(error.errno)}. A server takes "
            "--port and the next one; give another, or end what uses this one."
        ) from error


@contextlib.contextmanager
def serving(host: str, port: int, folder: Path):
    """Serves until the context ends.

    Args:
        host: by which the trainings reach this machine.
        port: for them; the next one is the worker's.
        folder: where the pipelines of the trainings are kept while they start.

    Raises:
        ValueError: if one of the ports is taken.
    """
    for one in (port, port + 1):
        refuse_taken(one)
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer(
        service.DispatcherConfig(port=port, protocol="grpc", work_dir=str(folder))
    )
    worker = service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=f"127.0.0.1:{port}",
            worker_address=f"{host}:{port + 1}",
            port=port + 1,
            protocol="grpc",
        )
    )
    try:
        yield
    finally:
        worker.stop()
        dispatcher.stop()


def remove_old(folder: Path, seconds: float = KEEP_SECONDS) -> None:
    """Removes the pipelines that were sent longer ago.

    Each has the list of all files, for every epoch anew, and TensorFlow keeps them all.
    """
    for file in folder.rglob("*"):
        if file.is_file() and time.time() - file.stat().st_mtime > seconds:
            file.unlink()


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    host, port = flags.FLAGS.host, flags.FLAGS.port
    tf.config.set_visible_devices([], "GPU")  # a training may have them
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with tempfile.TemporaryDirectory() as folder, serving(host, port, Path(folder)):
            print(
                f"serving at {host}:{port} and {port + 1}; Ctrl-C ends it", flush=True
            )
            while not stop.wait(CHECK_SECONDS):
                remove_old(Path(folder))
    except (ValueError, OSError, tf.errors.OpError) as error:
        sys.exit(f"error: {error}")
    print("ended", flush=True)


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(sys.modules[__name__])  # so that --help shows them
    app.run(main)
