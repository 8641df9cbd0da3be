"""Shows mkdocstrings the public names as Python's `help` shows them.

An extension of griffe, which reads the source without running it.
"""

import importlib
import inspect
import re
from typing import Any

import griffe

# In this project's docstrings, an example is not indented below "Example:". Google's
# style has a section "Examples:", whose content is indented.
_EXAMPLE = re.compile(r"^Example:\n\n?(>>> .*(?:\n.+)*)", re.MULTILINE)


def _as_section(match: re.Match) -> str:
    return "Examples:\n" + re.sub("^", "    ", match[1], flags=re.MULTILINE)


def _set_defaults(obj: Any, value: Any) -> None:
    """Shows numbers in place of the names of constants, such as `COCO_CLASSES`."""
    function = value.__init__ if inspect.isclass(value) else value
    for name, parameter in inspect.signature(function).parameters.items():
        is_shown = name in obj.parameters and parameter.default is not parameter.empty
        if is_shown and not repr(parameter.default).startswith("<"):
            obj.parameters[name].default = repr(parameter.default)


class RunTime(griffe.Extension):
    """Adds what only running the library shows, and makes examples sections."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Makes a section of the example of a docstring."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_as_section, obj.docstring.value)

    def on_package(
        self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any
    ) -> None:
        """Reads functions that a call returned, such as `MobileViT_S`, and defaults."""
        inspector = griffe.Inspector(
            pkg.name,
            None,
            griffe.load_extensions(),
            docstring_parser=loader.docstring_parser,
            docstring_options=loader.docstring_options,
        )
        inspector.current = pkg
        library = importlib.import_module(pkg.path)
        for name in map(str, pkg.exports or ()):
            value = getattr(library, name)
            member: Any = pkg.members[name]
            if member.is_alias:
                member = member.final_target
            if member.is_attribute and inspect.isfunction(value):
                inspector.inspect_function(griffe.ObjectNode(value, name))
                self.on_object(obj=pkg.members[name])
            elif member.is_function or member.is_class:
                _set_defaults(member, value)
