"""Names of files and classes do nothing to a terminal, in any command."""

import io
import sys

import pytest

from keras_mobilevit.__main__ import main
from keras_mobilevit.terminal import guard_terminal, readable_text
from tests.helpers.commands import run_here

BAD = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202eb\rc\x08"
NAME = BAD.replace("\r", "")  # some file systems refuse it


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202etxt", "\\u202etxt"),
        ("line\u2028line", "line\\u2028line"),
        ("\udcff", "\\udcff"),
        ("K\u00e4fer \u867b \U0001f41e\u200d a\u00a0b\tc\n", None),
        ("\rspoof\n", None),  # as a progress bar
        ("seen\rspoof\n", "seen\\rspoof\n"),
        ("\x1b[A", None),  # tqdm
        ("\x1b[Aspoof", "\\x1b[Aspoof"),
        (
            "\x08\x08\r\x1b[1m3/9\x1b[0m \x1b[32m\u2501\x1b[0m\x1b[37m\u2501\x1b[0m",
            None,
        ),
    ],
)
def test_controls_are_shown_and_letters_kept(text, shown):
    assert readable_text(text) == (text if shown is None else shown)


def test_a_stream_is_guarded_once(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    guard_terminal()
    guard_terminal()
    print("\x1b[31m")
    assert stream.getvalue() == "\\x1b[31m\n"


COMMANDS = {
    "tflite/convert.py": ("--model={name}.keras", "--output_dir=out"),
    "tflite/benchmark.py": ("{name}.tflite",),
    "tflite/report.py": ("{name}.jsonl",),
    "tflite/run_report.py": ("--workdir={name}", "--tflite={name}.tflite"),
    "train/main.py": ("--data=folder:{name}", "--workdir=out"),
}


@pytest.mark.parametrize("script", COMMANDS)
def test_names_of_files_in_errors(script, tmp_path):
    arguments = [text.format(name=NAME) for text in COMMANDS[script]]
    result = run_here(script, *arguments, folder=tmp_path)
    assert result.returncode and "\\x1b" in result.stdout + result.stderr
    assert not set("\x1b\x9b\u202e\x07") & set(result.stdout + result.stderr)


def test_names_of_images_and_classes_in_predict(tmp_path, monkeypatch, capsys):
    from tests.keras_mobilevit.test_predict import save_head

    weights = save_head(tmp_path, "softmax", [0, 3.0], f"{NAME}\ncat\n")
    photo = (tmp_path / "photo.jpg").rename(tmp_path / f"{NAME}.jpg")
    arguments = ["keras_mobilevit", "predict", str(photo), f"--weights={weights}"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    text = capsys.readouterr().out
    assert text.count("\\x1b]0;owned\\x07") == 2
    assert not set("\x1b\x9b\u202e\x07") & set(text)
