"""Command lines that cannot be understood."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "This command needs --model and --output_dir."),
        (["--model=a.keras"], "This command needs --output_dir."),
        (["--epochs=1"], "Unknown command line flag 'epochs'."),
    ],
)
def test_one_line_says_what_is_wrong(arguments: list[str], message: str):
    command = [sys.executable, str(ROOT / "tflite/convert.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == f"error: {message} --help lists all flags.\n"
