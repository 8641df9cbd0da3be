"""Command lines that cannot be understood."""

import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from keras_mobilevit import VARIANTS
from tests.helpers.commands import everything_restored
from train.cli.command import help_text, run_command
from train.cli.networks import variant_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "This command needs --model and --output_dir."),
        (["--model=a.keras"], "This command needs --output_dir."),
        (["--epochs=1"], "Unknown command line flag 'epochs'."),
        (["--nocheck_gpu=true"], "--nocheck_gpu=true does not take an argument."),
    ],
)
def test_one_line_says_what_is_wrong(arguments: list[str], message: str):
    command = [sys.executable, str(ROOT / "tflite/convert.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == f"error: {message} --help lists all flags.\n"


def test_names_of_the_networks_need_no_keras():
    assert variant_names() == tuple(VARIANTS)
    code = (
        "import sys\n"
        "from train.cli.networks import variant_names\n"
        "variant_names()\n"
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (["fp32", "int8"], "  --toy=fp32|int8\n      A toy."),
        (
            list(VARIANTS),
            "  --toy=NAME\n      A toy. One of: mobilevit_xxs, mobilevit_xs",
        ),
    ],
)
def test_many_choices_do_not_widen_the_help(choices, expected, monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_enum("toy", None, choices, "A toy.", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    text = help_text("", {"Flags": ["toy"]})
    assert expected in text
    assert max(map(len, text.splitlines())) <= 88


def test_memory_that_runs_out_is_one_line(monkeypatch):
    def main(argv):
        del argv
        raise MemoryError("Unable to allocate 90.0 GiB")

    monkeypatch.setattr("absl.app.run", lambda main, flags_parser: main([]))
    with everything_restored(), pytest.raises(SystemExit) as ended:
        run_command(main, "", {})
    text = "error: This machine has too little memory. Unable to allocate 90.0 GiB End"
    assert str(ended.value).startswith(text)
