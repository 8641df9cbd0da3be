"""Names in any language, on any system; `~` in flags."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_mobilevit.litert import read_card
from tflite import models
from tflite import options as convert_options
from tflite.records import read_measurements

ROOT = Path(__file__).parents[2]
# No UTF-8 anywhere, as on an old server or in a bare container.
PLAIN = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "PYTHONPATH": str(ROOT),
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
NAMES = ["Käse", "rødgrød", "寿司"]
BOM = b"\xef\xbb\xbf"
TEXTS = {  # as editors write the same three names
    "plain": "\n".join(NAMES).encode(),
    "with a mark": BOM + "\n".join(NAMES).encode() + b"\n",
    "of Windows": BOM + "\r\n".join(NAMES).encode() + b"\r\n",
}


def run(script: str, *arguments, home="/") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / f"tflite/{script}.py", *map(str, arguments)],
        env=os.environ | PLAIN | {"HOME": str(home)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A folder with the converted files of a model with such names."""
    folder = tmp_path_factory.mktemp("home") / "Gerät"
    folder.mkdir()
    layers = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)
    keras.Sequential([keras.Input((32, 32, 3)), *layers]).save(folder / "käse.keras")
    (folder / "labels.txt").write_bytes(TEXTS["of Windows"])
    result = run(
        "convert",
        "--model=~/Gerät/käse.keras",
        *("--output_dir=~/Gerät", "--size=32", "--eval_images=8"),
        home=folder.parent,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_a_conversion_does_not_depend_on_the_locale(converted):
    content = (converted / "käse_32_fp32.json").read_bytes().decode("utf-8")
    assert json.loads(content)["labels"] == NAMES
    assert all(name in content for name in NAMES)  # for people too
    assert read_card(converted / "käse_32_fp32.tflite")["labels"] == NAMES


@pytest.mark.slow
def test_a_report_does_not_depend_on_the_locale(converted, tmp_path):
    latency, page = tmp_path / "latency.jsonl", tmp_path / "latency.html"
    file = converted / "käse_32_fp32.tflite"
    measured = run(
        "benchmark", file, "--runs=1", "--output=~/latency.jsonl", home=tmp_path
    )
    assert measured.returncode == 0, measured.stderr
    (record,) = read_measurements(latency)
    device = json.dumps(record | {"device": "Telefon für Käse"}, ensure_ascii=False)
    latency.write_bytes(BOM + device.encode() + b"\r\n")
    reported = run("report", latency, f"--output={page}")
    assert reported.returncode == 0, reported.stderr
    for path in (page, page.with_suffix(".md")):
        assert "Telefon für Käse" in path.read_bytes().decode("utf-8")


@pytest.mark.parametrize("text", TEXTS)
def test_labels_are_read_in_one_encoding(text, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes(TEXTS[text])
    assert models.labels_beside(tmp_path / "best.keras", 3) == NAMES


def test_labels_in_another_encoding_are_named(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\n".join(NAMES[:2]).encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels.txt is not text in UTF-8. Save it"):
        models.labels_beside(tmp_path / "best.keras", 2)


@pytest.mark.parametrize("content", ["[1]", "{", "\x00", '"card"'])
def test_something_else_in_place_of_a_card_is_named(content, tmp_path):
    assert read_card(tmp_path / "a.tflite") == {}
    (tmp_path / "a.json").write_text(content, "utf-8")
    with pytest.raises(ValueError, match="a.json is no"):
        read_card(tmp_path / "a.tflite")


def test_the_home_folder_is_meant_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    args = type("Args", (), {"model": "mobilevit_s", "weights": "~/mine.pt"})
    assert convert_options.weights_from_flags(args) == "/home/ada/mine.pt"
