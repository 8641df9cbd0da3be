"""The command line: its help and its errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from absl import flags

from train import main
from train.distribution.devices import Devices
from train.flags import flag_groups
from train.run.lock import LOCK
from train.run.progress import PREEMPTED

ROOT = Path(__file__).resolve().parents[2]


def run(arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "command, inside",
    [
        (["train/main.py"], True),
        (["-m", "train.main"], True),
        ([str(ROOT / "train" / "main.py")], False),
    ],
    ids=["script", "module", "elsewhere"],
)
def test_help(command, inside, tmp_path):
    result = run([*command, "--help"], ROOT if inside else tmp_path)
    assert result.returncode == 0
    assert "--sizes" in result.stdout and "Examples" in result.stdout
    assert "Traceback" not in result.stderr


LIGHT = """
import runpy, sys
sys.argv = ["train/main.py", *{arguments}]
try:
    runpy.run_path("train/main.py", run_name="__main__")
except SystemExit as end:
    print("exit:", end.code)
print("loaded:", sorted({{"keras", "numpy", "tensorflow"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["--help"], "0"),
        (["--helpfull"], "0"),
        ([], "error: Training needs --workdir"),
        (["--sise=3"], "2"),
        (["photos"], "2"),
        (["--workdir=run", "--epochs=0"], "error: `epochs` must be at least 1"),
    ],
)
def test_usage_is_answered_before_tensorflow_is_loaded(arguments, code):
    result = run(["-c", LIGHT.format(arguments=arguments)], ROOT)
    assert f"exit: {code}" in result.stdout, result.stderr
    assert "loaded: []" in result.stdout


def test_a_wrong_flag_is_one_line():
    result = run(["train/main.py", "--sise=3"], ROOT)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: Unknown command line flag 'sise'. Did you mean")


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--data=nonsense", "`digits`, `folder:PATH` or `tfds:NAME`"),
        ("--epochs=0", "`epochs` must be at least 1. Received: 0."),
        ("--sizes=0,abc", "--sizes takes integers, such as 128,160,192"),
        ("--sizes=0", "integers of at least 32. Received: 0."),
        (
            "--output_stride=8",
            "--output_stride is for segmentation, but the task is classification.",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(flag, message, tmp_path):
    workdir = tmp_path / "run"
    result = run([str(ROOT / "train/main.py"), flag, f"--workdir={workdir}"], tmp_path)
    assert result.returncode != 0
    (error,) = result.stderr.splitlines()  # nothing else, not of TensorFlow either
    assert error.startswith("error: ") and message in error
    assert not workdir.exists()


def main_here(arguments, monkeypatch) -> str:
    """Runs the command in this process, which has loaded TensorFlow; gives its end."""
    values = flags.FlagValues()
    for define in flag_groups(values).values():
        define()
    values(["main.py", *arguments])
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(main, "end_on_sigterm", lambda: None)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    with pytest.raises(SystemExit) as end:
        main.main([])
    return end.value.code


def test_an_unknown_network_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    arguments = ["--model=nonsense", f"--workdir={workdir}"]
    (line,) = main_here(arguments, monkeypatch).splitlines()
    assert line.startswith("error: ")
    assert "mobilevit_xxs, mobilevit_xs, mobilevit_s" in line
    assert not workdir.exists()


def test_a_recipe_of_another_task_does_not_blame_the_data(monkeypatch):
    recipe = "--recipe=voc_detection_small"
    arguments = ["--mode=eval", "--data=voc:roads", "--task=segmentation", recipe]
    message = "voc_detection_small is for detection, but the task is segmentation."
    assert message in main_here(arguments, monkeypatch).splitlines()[-1]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--model=runs/nope.keras", "There is no file runs/nope.keras."),
        ("--weights=nope.tflite", "There is no file nope.tflite."),
        ("--model=out/best.mlpackage", "The card beside it, a .json file, has"),
    ],
)
def test_an_evaluation_of_no_file_does_not_blame_the_data(flag, message, monkeypatch):
    arguments = ["--mode=eval", "--data=voc:roads", flag]
    assert message in main_here(arguments, monkeypatch).splitlines()[-1]


def stopped(condition, arguments, cwd) -> subprocess.Popen:
    """Sends SIGTERM to a command once its output shows a condition."""
    command = [sys.executable, str(ROOT / "train/main.py"), *arguments]
    process = subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if condition in line:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=300)
    return process


def test_sigterm_before_the_first_step_says_that_the_command_continues(tmp_path):
    """While the network is built, after the data were read."""
    workdir = tmp_path / "run"
    arguments = ["--data=digits", f"--workdir={workdir}"]
    assert stopped("digits: 10 classes", arguments, tmp_path).returncode == PREEMPTED
    assert not workdir.exists() or not (workdir / LOCK).exists()


def test_sigterm_ends_an_evaluation_as_any_program(tmp_path):
    arguments = ["--mode=eval", "--data=digits", "--model=mobilevit_xxs"]
    arguments += ["--weights=nowhere.safetensors"]
    process = stopped("digits: 10 classes", arguments, tmp_path)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("flag", "code", "message"),
    [
        ("--workdir=run", PREEMPTED, "the same command continues"),
        ("--mode=eval", -signal.SIGTERM, ""),
    ],
)
def test_sigterm_while_tensorflow_is_loaded(flag, code, message, tmp_path):
    program = (
        "import os, runpy, signal, sys\n"
        f"sys.argv = ['main.py', {flag!r}]\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tensorflow':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"runpy.run_path({str(ROOT / 'train/main.py')!r}, run_name='__main__')\n"
    )
    result = run(["-c", program], tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoding, name",
    [("ascii", "\\u732b\\xe9"), ("latin-1", "\\u732b\xe9"), ("utf-8", "\u732b\xe9")],
)
def test_names_in_any_script_are_told_in_any_locale(encoding, name, tmp_path):
    arguments = ["--data=folder:/\u732b\xe9", f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(
        [sys.executable, "-X", "utf8=0", str(ROOT / "train/main.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    (error,) = [
        line
        for line in result.stderr.decode(encoding).splitlines()
        if line.startswith("error: ")
    ]
    assert name in error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), "memory"),
        (tf.errors.InternalError(None, None, "CUDA_ERROR: out of memory"), "memory"),
        (tf.errors.InternalError(None, None, "std::bad_alloc"), "memory"),
        (tf.errors.UnavailableError(None, None, "Connection reset"), "workers"),
        (tf.errors.InvalidArgumentError(None, None, "Not a room"), "workers"),
    ],
)
def test_a_worker_is_blamed_only_where_there_are_several(error, expected, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    alone = main._explain(error, Devices())
    assert ("too little memory" in alone) == (expected == "memory")
    assert "workers" not in alone and error.message in alone
    cluster = {
        "cluster": {"worker": ["a:1", "b:2"]},
        "task": {"type": "worker", "index": 0},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    among_others = main._explain(error, Devices())
    assert ("workers" in among_others) == (expected == "workers")
    assert "workers" not in main._explain(error, Devices(cluster="none"))
