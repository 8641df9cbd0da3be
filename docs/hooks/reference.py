"""Makes a page of the reference for each name in `keras_mobilevit.__all__`.

A name, an argument or a method without documentation is a warning, with which
`mkdocs build --strict` fails.
"""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = "keras_mobilevit"
OVERVIEW = "api/index.md"

# The groups of the overview.
NETWORKS, CLASSES = "Networks", "Layers, losses and metrics"
FUNCTIONS, DATA = "Functions", "Data"

log = logging.getLogger("mkdocs.hooks.reference")
os.environ.setdefault("KERAS_BACKEND", "numpy")  # Keras starts fast with it

_pages: dict[str, str] = {}  # the Markdown of the pages, by their paths


def load_package(root: Path) -> Any:
    """Reads the library's source as mkdocstrings does."""
    sys.path.insert(0, str(root))  # the classifiers are functions that a call returns
    return griffe.load(
        PACKAGE,
        search_paths=[root],
        docstring_parser="google",
        extensions=griffe.load_extensions(str(root / "docs/hooks/docstrings.py")),
    )


def public_objects(package: griffe.Module) -> dict[str, Any]:
    """Returns what the names in `__all__` stand for, in this order."""
    names = sorted(map(str, package.exports or ()), key=str.lower)
    objects = {name: package[name] for name in names}
    # An import is an alias of what it imports.
    return {name: x.final_target if x.is_alias else x for name, x in objects.items()}


def _described(obj: Any) -> set[str]:
    """Returns the arguments that the section `Args:` of a docstring describes."""
    sections = obj.docstring.parsed if obj.docstring else []
    return {
        argument.name
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for argument in section.value
    }


def _arguments(obj: Any) -> list[str]:
    """Returns the arguments of a function or of a class's constructor."""
    kind = griffe.ParameterKind
    variable = (kind.var_positional, kind.var_keyword)
    return [
        parameter.name
        for parameter in getattr(obj, "parameters", ())
        if parameter.name != "self" and parameter.kind not in variable
    ]


def undocumented(name: str, obj: Any) -> Iterator[str]:
    """Yields a sentence for each part of a public name that lacks documentation."""
    if not obj.docstring:
        yield f"`{name}` has no docstring"
    else:
        for argument in _arguments(obj):
            if argument not in _described(obj):
                yield f"`{name}` does not describe `{argument}` in its section `Args:`"
    if obj.is_class:
        for method in obj.functions.values():
            if method.is_public and not method.is_special and not method.docstring:
                yield f"`{name}.{method.name}` has no docstring"


def _group(name: str, obj: Any) -> str:
    if obj.is_class:
        bases = {str(base).rpartition(".")[2] for base in obj.bases}
        return NETWORKS if "Model" in bases else CLASSES
    if obj.is_function:
        return NETWORKS if name[0].isupper() else FUNCTIONS
    return DATA


def _overview(objects: dict[str, Any]) -> str:
    """Returns the page that lists all names, with a line about each."""
    lines = ["# API", "", f"All public names are in `{PACKAGE}`.", ""]
    for group in (NETWORKS, CLASSES, FUNCTIONS, DATA):
        found = {name: x for name, x in objects.items() if _group(name, x) == group}
        if found:
            lines += [f"## {group}", "", "| name | |", "|---|---|"]
            lines += [
                f"| [`{name}`]({name}.md) | {_first_line(obj)} |"
                for name, obj in found.items()
            ]
            lines.append("")
    return "\n".join(lines)


def _first_line(obj: Any) -> str:
    return obj.docstring.value.partition("\n")[0] if obj.docstring else ""


def on_config(config: MkDocsConfig) -> None:
    """Adds the pages to the navigation, and warns of what is not documented."""
    objects = public_objects(load_package(Path(config.config_file_path).parent))
    for name, obj in objects.items():
        for fault in undocumented(name, obj):
            log.warning(f"{fault}. Document it in {obj.relative_filepath}.")
    names = {name: f"api/{name}.md" for name in objects}
    _pages.clear()
    _pages[OVERVIEW] = _overview(objects)
    _pages.update({page: f"::: {PACKAGE}.{name}\n" for name, page in names.items()})
    api = next(section["API"] for section in config.nav or [] if "API" in section)
    api += [{name: page} for name, page in names.items()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages of the reference."""
    for path, text in _pages.items():
        files.append(File.generated(config, path, content=text))
