"""Many devices and many workers give the numbers of one device."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from safetensors import safe_open
from safetensors.numpy import load_file

from train.distribution import devices, strategies
from train.run.workdir import CHECKPOINT

ROOT = Path(__file__).parents[2]
STEPS, LONG = 20, 54


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ""),
        (["--tpu"], devices.THIS_MACHINE),
        (["--tpu=pod"], "pod"),
        (["--notpu"], ""),
    ],
)
def test_a_tpu_has_a_name_or_none(arguments, expected):
    values = flags.FlagValues()
    devices.define_flags(values)
    values(["main.py", *arguments])
    assert devices.devices_from_flags(values) == devices.Devices(tpu=expected)


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="--gpus=99, but TensorFlow finds"):
        strategies.make_strategy(devices.Devices(gpus=99))
    with pytest.raises(ValueError, match="number of seconds. Received: nan"):
        strategies.make_strategy(devices.Devices(cluster_timeout=float("nan")))
    with pytest.raises(ValueError, match="exclude each other"):
        strategies.make_strategy(devices.Devices(tpu="pod", gpus=1))
    monkeypatch.setenv("TF_CONFIG", tf_config(("a:1", "b:1"), 0))
    with pytest.raises(
        ValueError,
        match="--tpu was given, but the environment names a cluster of 2 workers",
    ):
        strategies.make_strategy(devices.Devices(tpu="pod"))


def test_one_device_is_the_default_strategy_and_its_chief():
    strategy = strategies.make_strategy(devices.Devices(cluster="none", gpus=0))
    assert strategy is tf.distribute.get_strategy()
    assert strategies.is_chief(strategy)


def start(
    workdir, network: str, devices: int, steps=STEPS, tf_config="", save_seconds=""
):
    arguments = map(str, (workdir, network, devices, steps, save_seconds))
    return start_module("tests.helpers.train_worker", *arguments, tf_config=tf_config)


def start_module(*command: str, tf_config: str):
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
    }
    environment |= {"TF_CONFIG": tf_config} if tf_config else {}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes) -> None:
    for process in processes:
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, output


def start_workers(workdir, network: str, count: int) -> list:
    return [
        start(workdir, network, 1, tf_config=config) for config in tf_configs(count)
    ]


def tf_config(addresses: tuple[str, ...], index: int) -> str:
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def tf_configs(count: int) -> list[str]:
    """Returns the clusters of some workers on this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    names = tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    for one in sockets:
        one.close()
    return [tf_config(names, i) for i in range(count)]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    def run(network: str) -> Path:
        workdir = tmp_path_factory.mktemp("one") / network
        finish(start(workdir, network, 1))
        return workdir

    return run


def assert_same_run(one: Path, other: Path) -> None:
    """Losses of all steps within 1e-4, all weights together within 1e-3."""
    losses = [
        np.array(json.loads((run / "losses.json").read_text())) for run in (one, other)
    ]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    weights = [load_file(run / CHECKPOINT) for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    parts = [
        np.concatenate(
            [
                w[name].ravel()
                for name in sorted(w)
                if name.startswith("model/") and "/seed_" not in name
            ]
        )
        for w in weights
    ]
    distance = np.linalg.norm(parts[1] - parts[0]) / np.linalg.norm(parts[0])
    assert distance <= 1e-3
    print(
        f"losses {np.max(abs(losses[1] / losses[0] - 1)):.1e}, weights {distance:.1e}"
    )


@pytest.mark.slow
def test_devices_draw_masks_of_their_own_and_continue_with_them(tmp_path):
    command = [sys.executable, "-m", "tests.helpers.train_masks", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    *steps, again = json.loads(result.stdout.splitlines()[-1])
    masks = [json.dumps(mask) for step in steps for mask in step]
    assert len(set(masks)) == len(masks) == 6  # three steps of two devices
    assert again == steps[-1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_gradients_of_two_devices_are_clipped_together(precision):
    command = [sys.executable, "-m", "tests.helpers.train_clipped", precision]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    two, one = np.array(json.loads(result.stdout.splitlines()[-1]))
    # Two steps move the weights by 0.1 at most.
    assert np.linalg.norm(two - one) < (1e-3 if precision == "mixed_float16" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["small", "mobilevit_xxs"])
def test_two_workers_and_two_devices_are_as_one(network, one_device, tmp_path):
    expected = one_device(network)
    finish(*start_workers(tmp_path / "workers", network, 2))
    assert_same_run(expected, tmp_path / "workers")
    finish(start(tmp_path / "devices", network, 2))
    assert_same_run(expected, tmp_path / "devices")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_workers_that_are_asked_to_stop_continue_with_the_same_bits(asked, tmp_path):
    """Both, whichever is asked, stop after the same step."""

    def start_both(workdir: Path) -> list[subprocess.Popen]:
        return [
            start(workdir, "small", 1, LONG, tf_config, save_seconds=0.0)
            for tf_config in tf_configs(2)
        ]

    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    workers = start_both(stopped)
    while not (stopped / CHECKPOINT).exists() and workers[0].poll() is None:
        time.sleep(0.01)
    workers[asked].send_signal(signal.SIGTERM)
    outputs = [worker.communicate(timeout=1200)[0] for worker in workers]
    steps = [re.findall(r"Preempted: .* after step (\d+)", text) for text in outputs]
    assert steps[0] == steps[1] and len(steps[0]) == 1, outputs
    with safe_open(stopped / CHECKPOINT, framework="numpy") as file:
        progress = json.loads(file.metadata()["progress"])
    assert 0 < progress["step"] == progress["epoch_step"] == int(steps[0][0])

    for workdir in (stopped, undisturbed):
        finish(*start_both(workdir))
    found, expected = (load_file(run / CHECKPOINT) for run in (stopped, undisturbed))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_a_run_that_mixes_images_continues_with_the_same_bits(tmp_path):
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    process = start(stopped, "augmented", 1, LONG, save_seconds=0.0)
    while not (stopped / CHECKPOINT).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=1200)
    assert "Preempted" in output, output
    for workdir in (stopped, undisturbed):
        finish(start(workdir, "augmented", 1, LONG, save_seconds=0.0))
    found, expected = (load_file(run / CHECKPOINT) for run in (stopped, undisturbed))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def evaluated(tf_configs=("",), devices: int = 1) -> list[dict]:
    """Returns what each of some workers finds, of each task."""
    workers = [
        start_module("tests.helpers.evaluation_worker", str(devices), tf_config=config)
        for config in tf_configs
    ]
    outputs = [worker.communicate(timeout=1200)[0] for worker in workers]
    assert not any(worker.returncode for worker in workers), outputs
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.fixture(scope="module")
def evaluated_once():
    (found,) = evaluated()
    assert found["segmentation"]["pixel_accuracy"] > 0
    assert found["detection"]["skipped_validation"] == 3
    return found


def assert_same_evaluation(found: dict, expected: dict) -> None:
    for task, metrics in expected.items():
        # The loss of detection is a mean over the objects of each part of a batch.
        assert found[task].pop("loss") == pytest.approx(metrics["loss"], rel=1e-3)
        of_others = {name: value for name, value in metrics.items() if name != "loss"}
        assert found[task] == pytest.approx(of_others, rel=1e-5), task
    # What is counted is exact.
    assert found["segmentation"]["mIoU"] == expected["segmentation"]["mIoU"]


@pytest.mark.slow
def test_two_devices_evaluate_as_one(evaluated_once):
    """Masks of their own sizes are counted on the host, boxes are exchanged."""
    (found,) = evaluated(devices=2)
    assert_same_evaluation(found, evaluated_once)


@pytest.mark.slow
def test_two_workers_evaluate_as_one(evaluated_once):
    for found in evaluated(tf_configs(2)):
        assert_same_evaluation(found, evaluated_once)
