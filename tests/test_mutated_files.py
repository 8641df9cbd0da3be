"""Files with random changes are read, or refused in one line that names them.

Nothing hangs, takes gigabytes or is written anywhere. The changes are drawn from fixed
seeds; each example is one changed file.
"""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import keras_mobilevit
from keras_mobilevit.image_models import image_model_from_file
from keras_mobilevit.weights.file_formats import load_model_file, read_pt
from tests.helpers.hostile_files import build_tiny
from tests.helpers.one_line import one_line
from tflite import report
from tflite.formats import conversion
from tflite.records import read_measurements
from tflite.report_rows import make_rows, name_devices

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="It limits time and memory by Linux"),
]

EXAMPLES = 350  # of each of the six kinds
# Lengths, offsets and flags at their limits, and what JSON and pickle treat specially.
WORDS = [
    *(n.to_bytes(4, "little") for n in (0, 1, 255, 2**16, 2**28, 2**31 - 1, 2**32 - 1)),
    (2**63 - 1).to_bytes(8, "little"),
    *(
        b"null",
        b"-1",
        b"1e999",
        b"[[[[",
        b'"a"',
        b"../",
        b"{}",
        b"NaN",
        b"\x00",
        b"\xff",
    ),
]

# Where (a fraction of the file), what, and with which bytes.
change = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(("overwrite", "insert", "remove", "cut")),
    st.sampled_from(WORDS) | st.binary(min_size=1, max_size=4),
)
changes = st.lists(change, min_size=1, max_size=4)


def mutate(content: bytes, drawn: list) -> bytes:
    """Returns a file with the drawn changes."""
    for place, kind, new in drawn:
        at = int(place * len(content))
        if kind == "cut":
            content = content[:at] if place > 0.5 else content
        else:
            end = at if kind == "insert" else at + len(new)
            content = content[:at] + (b"" if kind == "remove" else new) + content[end:]
    return content


def mutate_member(content: bytes, drawn: list, choice: float) -> bytes:
    """Changes one member of an archive; its checksum is right again."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as archive,
        zipfile.ZipFile(target, "w") as changed,
    ):
        names = archive.namelist()
        chosen = names[int(choice * len(names))]
        for name in names:
            member = archive.read(name)
            changed.writestr(name, mutate(member, drawn) if name == chosen else member)
    return target.getvalue()


def check(read: Callable[[str], object], path: Path, content: bytes) -> None:
    """Reads a changed file; any error must be one line that names the file."""
    path.write_bytes(content)
    with one_line(path.parent, path.name, path.stem):
        read(str(path))
    assert os.listdir(path.parent) == [path.name]


def mutations(kind: str) -> Callable:
    """Decorates a test of the changes of one kind of file."""

    def decorate(test: Callable) -> Callable:
        drawn = given(drawn=changes, choice=st.floats(0, 1, exclude_max=True))(test)
        return seed(26)(
            settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(drawn)
        )

    return decorate


@pytest.fixture(scope="module")
def model():
    return build_tiny()


@pytest.fixture(scope="module")
def places(tmp_path_factory, model) -> tuple[Path, Path]:
    """A folder with a good file of each kind, and one for the changed file."""
    outer = tmp_path_factory.mktemp("outer")
    good, folder = outer / "good", outer / "folder"
    good.mkdir()
    folder.mkdir()
    model.save(good / "a.keras")
    model.save_weights(good / "a.weights.h5")
    tensors = {f"layer{i}": np.ones((2, 3), np.float32) for i in range(5)}
    save_file(tensors, good / "a.safetensors")
    (good / "a.tflite").write_bytes(conversion.prepare(model, 8).float32)
    record = {
        "file": "out/a.tflite",
        "status": "measured",
        "setting": "litert cpu x1",
        "device": "Laptop",
        "median_ms": 10.5,
        "p5_ms": 9.5,
        "facts": {"cores": 9, "max_mhz": [1704]},
        "notes": ["hot"],
        "size": 256,
        "sha256": "abc",
    }
    lines = [json.dumps(record), json.dumps(record | {"status": "not measured"})]
    (good / "a.jsonl").write_text("\n".join(lines))
    return good, folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(places, monkeypatch):
    """What a file makes a reader write would appear in or above this folder."""
    _, folder = places
    for path in folder.iterdir():
        path.unlink()
    monkeypatch.chdir(folder)


@mutations("safetensors")
def test_safetensors(drawn, choice, places, model):
    good, folder = places
    content = mutate((good / "a.safetensors").read_bytes(), drawn)
    check(
        lambda path: keras_mobilevit.load_weights(model, path),
        folder / "a.safetensors",
        content,
    )


@mutations("weights.h5")
def test_weights_h5(drawn, choice, places, model):
    good, folder = places
    content = mutate((good / "a.weights.h5").read_bytes(), drawn)
    before = model.get_weights()

    def load(path):
        try:
            keras_mobilevit.load_weights(model, path)
        except BaseException:
            for old, new in zip(before, model.get_weights()):
                np.testing.assert_array_equal(old, new)
            raise

    check(load, folder / "a.weights.h5", content)
    model.set_weights(before)


@mutations("keras")
def test_keras(drawn, choice, places):
    good, folder = places
    content = mutate_member((good / "a.keras").read_bytes(), drawn, choice)
    check(load_model_file, folder / "a.keras", content)


@mutations("pt")
def test_pt(drawn, choice, places):
    torch = pytest.importorskip("torch", reason="a .pt file requires PyTorch")
    _, folder = places
    buffer = io.BytesIO()
    torch.save({f"layer{i}": torch.ones(2, 3) for i in range(3)}, buffer)
    content = buffer.getvalue()
    change_inside = choice < 0.9
    content = (
        mutate_member(content, drawn, choice / 0.9)
        if change_inside
        else mutate(content, drawn)
    )
    check(read_pt, folder / "a.pt", content)


@mutations("tflite")
def test_tflite(drawn, choice, places):
    good, folder = places
    content = mutate((good / "a.tflite").read_bytes(), drawn)

    def run(path):
        found = image_model_from_file(path)
        found.run(np.zeros((*found.sides, 3), np.float32))

    check(run, folder / "a.tflite", content)


@mutations("records")
def test_records(drawn, choice, places):
    good, folder = places

    def render(path):
        records = name_devices(read_measurements(path))
        rows = make_rows(records)
        report.render_markdown(records, rows)
        if choice < 0.03:  # pictures take half a second
            report.render_html(records, rows)

    check(render, folder / "a.jsonl", mutate((good / "a.jsonl").read_bytes(), drawn))
