"""The notebooks run, and were saved with the outputs of a run."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# A tiny schedule: settings and what they are set to.
TINY = {
    "finetune": {"EPOCHS": "1, 1"},
    "detector": {
        "EPOCHS": "1",
        "SCENES": "{'train': 32, 'val': 8}",
        "SCORE": "0.05",  # what so short a training finds
    },
}
MOST_BYTES = 300_000  # of both notebooks


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def with_settings(notebook: nbformat.NotebookNode, settings: dict[str, str]):
    """Replaces the lines that assign settings; each must be there once."""
    for name, value in settings.items():
        count = 0
        for cell in notebook.cells:
            cell.source, found = re.subn(
                rf"^{name} = .*$", f"{name} = {value}", cell.source, flags=re.M
            )
            count += found
        assert count == 1, name
    return notebook


def printed(cell: nbformat.NotebookNode, stream: str = "stdout") -> str:
    return "".join(x.text for x in cell.outputs if x.get("name") == stream)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def check_outputs(notebook: nbformat.NotebookNode) -> None:
    """Checks that all cells ran, in order, and that LiteRT and Keras agree."""
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    kinds = {x.output_type for cell in cells for x in cell.outputs}
    assert kinds <= {"stream", "display_data"}
    same, every = re.search(r"^(\d+) of (\d+) ", printed(cells[-1])).groups()
    assert same == every and int(every) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_notebook_runs(name: str, tmp_path: Path):
    settings = TINY[name] | {"RUN": f"Path({tmp_path.as_posix()!r})"}
    notebook = with_settings(read(name), settings)
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}}
    )
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})  # raises a cell's error
    check_outputs(notebook)


@pytest.mark.parametrize("name", TINY)
def test_a_notebook_was_saved_with_its_outputs(name: str):
    notebook = read(name)
    check_outputs(notebook)
    cells = code_cells(notebook)
    assert not any(printed(cell, "stderr") for cell in cells)
    assert any(
        "image/jpeg" in x.get("data", {}) for cell in cells for x in cell.outputs
    )
    paths = re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users)\b", str(cells))
    assert not paths


def test_the_notebooks_are_small():
    files = list(EXAMPLES.glob("*.ipynb"))
    assert {file.stem for file in files} == set(TINY)
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
