"""The command line: its help and its errors."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
    assert result.returncode in (0, 1)
    assert "--sizes" in result.stdout and "Examples" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--model=nonsense", "mobilevit_xxs, mobilevit_xs, mobilevit_s"),
        ("--data=nonsense", "`digits`, `folder:PATH` or `tfds:NAME`"),
        ("--epochs=0", "`epochs` must be at least 1. Received: 0."),
        ("--sizes=0,abc", "--sizes takes integers, such as 128,160,192"),
        ("--sizes=0", "integers of at least 32. Received: 0."),
        ("--rotation=9", "--rotation is for segmentation; this is classification."),
    ],
)
def test_errors_are_one_line_and_leave_nothing(flag, message, tmp_path):
    workdir = tmp_path / "run"
    result = run([str(ROOT / "train/main.py"), flag, f"--workdir={workdir}"], tmp_path)
    assert result.returncode != 0
    errors = [s for s in result.stderr.splitlines() if s.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in result.stderr
    assert not workdir.exists()


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--model=runs/nope.keras", "There is no file runs/nope.keras."),
        ("--weights=nope.tflite", "There is no file nope.tflite."),
        ("--model=out/best.mlpackage", "its card, the .json beside it, has what"),
        ("--recipe=boxes", "--recipe=boxes is for detection; this is segmentation."),
    ],
)
def test_an_evaluation_of_no_file_does_not_blame_the_data(flag, message, tmp_path):
    flags = ["--mode=eval", "--data=voc:roads", flag]
    if "recipe" in flag:
        flags.append("--task=segmentation")
    result = run([str(ROOT / "train/main.py"), *flags], tmp_path)
    assert result.returncode != 0
    assert message in result.stderr.splitlines()[-1]
