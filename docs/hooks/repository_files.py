"""Makes pages of the files outside `docs/` that pages link to.

The links are written as GitHub resolves them: relative to the file in the repository.
On the site, `docs/` is at the top, `README.md` is the start page, and a source file is
a page that shows its code, and a notebook one with its text and pictures.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from notebooks import notebook_markdown

START = "README.md"
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)\s#]+)")

_paths: dict[str, str] = {}  # of the pages in the repository, by their path on the site


def _target(path: str, link: str) -> str:
    """Returns the path in the repository that a link in the file `path` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _site_path(path: str) -> str:
    """Returns the path on the site of a file in the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == START:
        return "index.md"
    return path if path.endswith(".md") else f"{path}.md"


def _linked_files(root: Path, pages: list[str]) -> list[str]:
    """Returns the files outside `docs/` to which pages lead, in one step or more."""
    found = list(pages)
    for path in found:  # which grows
        if path.endswith(".md"):
            text = (root / path).read_text("utf-8")
            targets = [_target(path, link) for link in _LINK.findall(text)]
            found += [
                target
                for target in dict.fromkeys(targets)
                if target not in found
                and not target.startswith(("docs/", "../"))
                and (root / target).is_file()
            ]
    return [path for path in found if not path.startswith("docs/")]


def _page(config: MkDocsConfig, root: Path, path: str) -> File:
    if path.endswith(".md"):
        return File.generated(config, _site_path(path), abs_src_path=str(root / path))
    text, language = (root / path).read_text("utf-8"), Path(path).suffix[1:]
    if language == "ipynb":
        content = notebook_markdown(text)
    else:
        content = f"# {path}\n\n~~~~{language}\n{text}~~~~\n"
    return File.generated(
        config, _site_path(path), content=content, inclusion=InclusionLevel.NOT_IN_NAV
    )


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages of files outside `docs/`."""
    root = Path(config.config_file_path).parent
    _paths.clear()
    _paths.update(
        {
            file.src_uri: f"docs/{file.src_uri}"
            for file in files.documentation_pages()
            if file.generated_by is None
        }
    )
    for path in _linked_files(root, [START, *_paths.values()]):
        files.append(_page(config, root, path))
        _paths[_site_path(path)] = path


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Makes links of the repository links of the site."""
    path = _paths.get(page.file.src_uri)
    if path is None:  # a page of the reference
        return markdown
    folder = posixpath.dirname(page.file.src_uri) or "."
    root = Path(config.config_file_path).parent

    def on_site(match: re.Match) -> str:
        target = _target(path, match[1])
        if not (root / target).is_file():  # MkDocs warns of the link, unless it is code
            return match[0]
        return posixpath.relpath(_site_path(target), folder)

    return _LINK.sub(on_site, markdown)
