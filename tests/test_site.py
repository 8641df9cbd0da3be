"""The documentation's site: what fails its build. `make docs` builds the whole site."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="The site takes `pip install '.[docs]'`.")
pytest.importorskip("mkdocstrings", reason="The site takes `pip install '.[docs]'`.")

import markdown
from markdown_it import MarkdownIt
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
# Pages of the site. Those of the reference are made from docstrings.
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

LIBRARY = '''
"""A library."""

__all__ = ["Network", "bare", "good", "half"]

def good(image: int) -> int:
    """Returns an image.

    Args:
        image: an image.

    Returns:
        An image.

    Example:
    >>> good(1)
    1
    """
    return image

def bare(image: int) -> int:
    return image

def half(image: int, size: int = 3) -> int:
    """Returns an image.

    Args:
        image: an image.
        other: not an argument.
    """
    return image

class Network:
    """A network."""

    def fit(self) -> None:
        pass
'''
PAGE = """# Page

[start](../README.md#section), [code](../examples/code.py), [text](other.md#part)
[notebook](../examples/notebook.ipynb)

```python
layers[0](x)
```
"""
NOTEBOOK = {
    "cells": [
        {
            "cell_type": "markdown",
            "source": ["# Notebook\n", "[a page](../docs/page.md)"],
        },
        {
            "cell_type": "code",
            "source": "draw(1)",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["drawn\n"]},
                {"output_type": "display_data", "data": {"image/png": "iVBORw0K\n"}},
            ],
        },
    ]
}
BROKEN = """# Other

## Part

[file](../examples/gone.py), [page](gone.md), [anchor](page.md#gone)
[anchor of the start](../README.md#gone)
"""


def build(folder: Path, **files: str) -> tuple[int, str]:
    """Builds a site with this project's settings; returns exit code and messages."""
    files = {
        "mkdocs.yml": f"INHERIT: {ROOT / 'mkdocs.yml'}\nnav:\n  - Start: index.md\n"
        "  - Page: page.md\n  - Other: other.md\n  - API: [Overview: api/index.md]\n",
        "README.md": "# Start\n\n## Section\n\n[page](docs/page.md#page)\n",
        "examples/code.py": "print(1)\n",
        "examples/notebook.ipynb": json.dumps(NOTEBOOK),
        "docs/page.md": PAGE,
        "docs/site.css": "",
        "keras_mobilevit/__init__.py": LIBRARY,
        **files,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    shutil.copytree(ROOT / "docs/hooks", folder / "docs/hooks")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> tuple[int, str]:
    """Builds a site with a fault of each kind."""
    files = {"docs/other.md": BROKEN, "docs/lost.md": "# Lost\n"}
    return build(tmp_path_factory.mktemp("broken"), **files)


@pytest.mark.parametrize(
    "message",
    [
        "a link '../examples/gone.py', but the target",
        "a link 'gone.md', but the target",
        "a link 'page.md#gone', but the doc 'page.md' does not contain an anchor",
        "a link 'index.md#gone', but the doc 'index.md' does not contain an anchor",
        'not included in the "nav" configuration:\n  - lost.md',
        "`bare` has no docstring. Document it in keras_mobilevit/__init__.py.",
        "`half` does not describe `size` in its section `Args:`. Document it in",
        "Parameter 'other' does not appear in the function signature",
        "`Network.fit` has no docstring. Document it in",
    ],
)
def test_a_fault_fails_the_build(broken, message: str):
    code, messages = broken
    assert code == 1 and "Aborted with" in messages
    assert message in messages


def test_a_good_site_is_built(tmp_path: Path):
    library = LIBRARY.replace('"Network", "bare", "good", "half"', '"good"')
    other = "# Other\n\n## Part\n"
    files = {"docs/other.md": other, "keras_mobilevit/__init__.py": library}
    code, messages = build(tmp_path, **files)
    assert code == 0 and "WARNING" not in messages
    page = (tmp_path / "site/page.html").read_text("utf-8")
    assert 'href="index.html#section"' in page
    assert 'href="examples/code.py.html"' in page
    assert 'href="page.html#page"' in (tmp_path / "site/index.html").read_text("utf-8")
    assert "layers" in page and "x.md" not in page  # code is not a link
    notebook = (tmp_path / "site/examples/notebook.ipynb.html").read_text("utf-8")
    assert 'src="data:image/png;base64,iVBORw0K"' in notebook
    assert 'href="../page.html"' in notebook and "drawn" in notebook
    overview = (tmp_path / "site/api/index.html").read_text("utf-8")
    assert 'href="good.html"' in overview
    reference = (tmp_path / "site/api/good.html").read_text("utf-8")
    assert "Examples:" in reference and "highlight" in reference


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_same_structure_as_on_github(page: Path):
    # The site's Markdown starts a list where GitHub's does not, for example.
    config = load_config(str(ROOT / "mkdocs.yml"))
    text = page.read_text("utf-8")
    site = markdown.markdown(
        text,
        extensions=config.markdown_extensions,
        extension_configs=config.mdx_configs,
    )
    github = MarkdownIt("commonmark").enable("table").render(text)
    for tag in ("h2", "h3", "ul", "ol", "li", "table", "tr", "pre"):
        count = [len(re.findall(f"<{tag}[ >]", html)) for html in (site, github)]
        assert count[0] == count[1], tag
