"""Names of files and classes do nothing to a terminal, in any command."""

import contextlib
import io
import subprocess
import sys

import keras
import pytest
from keras.src.utils import io_utils
from tqdm import tqdm

from keras_mobilevit.__main__ import main
from keras_mobilevit.terminal import guard_terminal, readable_text
from tests.helpers.commands import run_here
from train.cli.command import TERMINAL
from train.cli.console import _BarSafeStream

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
        ("end\r\n", None),
        ("end\r", "end\\r"),
        ("seen\rspoof\n", "seen\\rspoof\n"),
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


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(write, name: str) -> str:
    """Returns what `write(name)` writes to a guarded terminal."""
    stream = Terminal()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        guard_terminal()
        write(name)
    return stream.getvalue()


def draw_tqdm(name):
    for _ in tqdm(range(2), name):
        for _ in tqdm(range(2), name, leave=False):
            tqdm.write(name)


def draw_keras(name):
    bar = keras.utils.Progbar(3)
    for step in range(1, 4):
        bar.update(step, [(name, 1.0)], finalize=step == 3)


TQDM = ("\r", "\x1b[A")
KERAS = ("\x08\r", "\x1b[0m", "\x1b[1m", "\x1b[32m", "\x1b[37m")


@pytest.mark.parametrize(
    ("draw", "sequences"), [(draw_tqdm, TQDM), (draw_keras, KERAS)]
)
def test_progress_bars_are_drawn(draw, sequences):
    text = shown(draw, "photos")
    assert "\\" not in text and all(sequence in text for sequence in sequences)


@pytest.mark.parametrize("sequence", [*TQDM, *KERAS, "\x1b[A\x1b[A\x1b[A"])
@pytest.mark.parametrize(
    "write",
    [
        print,
        lambda name: print(name, "is no image"),
        lambda name: sys.stdout.writelines([name]),
        lambda name: tqdm.write(name),
        lambda name: tqdm.write(name, file=tqdm((), delay=9).fp),
        lambda name: _BarSafeStream().write(f"{name}\n"),
        lambda name: io_utils.print_msg(name),
    ],
)
def test_a_name_is_no_progress_bar(write, sequence):
    text = shown(write, sequence).replace("\r\n", "\n")
    assert "\\" in text or sequence == "\r"
    assert not set("\x1b\x08\r") & set(text)


def test_a_name_in_a_bar_of_tqdm():
    text = shown(draw_tqdm, f"{KERAS[-1]}\x1b[A\rspoof")
    assert "\x1b[37m" not in text and "\rspoof" not in text
    assert "\\x1b[37m\\x1b[A\\rspoof" in text and "\x1b[A\r" in text


def test_the_message_of_an_exit_is_written():
    """Python writes it when no function runs any more."""
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({TERMINAL!r})['guard_terminal']()\n"
        "sys.exit('error: \\x1b[31m')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.stderr == "error: \\x1b[31m\n"
    assert result.returncode == 1


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
