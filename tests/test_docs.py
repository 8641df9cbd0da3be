"""Links, paths and contents lists of the documentation."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Paths from the root, without those that a command writes.
OUR_FILE = re.compile(
    r"\b(?:keras_mobilevit|train|tflite|benchmarks|tests|docs)/[\w/]+\.(?:py|md)\b"
)
# Files that a reader would write.
EXAMPLES = {"keras_mobilevit/toynet_block.py", "train/data/gray.py"}


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text("utf-8")), re.M)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    named = set(OUR_FILE.findall(page.read_text("utf-8")))
    if page.name == "CHANGELOG.md":  # names moved files by their old paths
        return
    missing = [name for name in named - EXAMPLES if not (ROOT / name).exists()]
    assert sorted(missing) == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent != ROOT], ids=lambda page: page.name
)
def test_a_contents_list_names_every_section(page: Path):
    text = page.read_text("utf-8")
    sections = re.findall(r"^## (.+)$", without_code(text), re.M)
    listed = text[: text.index("\n## ")]
    linked = set(re.findall(r"\(#([^)]+)\)", listed))
    expected = {
        re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in sections
    }
    assert linked == expected


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
