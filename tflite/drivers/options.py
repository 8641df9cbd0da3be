"""Options of the targets of `tflite/benchmark.py`.

Each target has a frozen dataclass. Each of its fields is an option, from which the
command makes a flag of the same name.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

_DEFINE: dict[Any, Callable] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    str: flags.DEFINE_string,
    tuple[str, ...]: flags.DEFINE_list,
}


def option(default: Any, help_text: str, is_path: bool = False, **limits: Any) -> Any:
    """Returns a dataclass field from which a flag of its type is made.

    In a path `~` is the home directory. `limits` are further arguments of the function
    of `absl.flags` that defines the flag.
    """
    metadata = {"help": help_text, "is_path": is_path, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every target that runs `.tflite` files."""

    num_threads: int = option(1, "Number of CPU threads.", lower_bound=1)
    runs: int = option(50, "Measured runs of each file.", lower_bound=1)
    warmup_runs: int = option(
        5, "Runs of each file before the measured ones.", lower_bound=1
    )


def check_choices(name: str, values: tuple[str, ...], allowed: Iterable[str]) -> None:
    """Raises a ValueError if a list option is empty or has an unknown value."""
    if not values or set(values) - set(allowed):
        raise ValueError(
            f"Expected --{name} to list some of: {', '.join(allowed)}. "
            f"Received: --{name}={','.join(values)}."
        )


_Users = list[tuple[str, dataclasses.Field]]  # targets, and their fields of one name


def flag_groups(classes: dict[str, type]) -> dict[str, Callable[[], None]]:
    """Returns functions that define the flags of all targets, by a heading.

    A group has the flags of the same targets.
    """
    users: dict[str, _Users] = {}
    for target, options in classes.items():
        for field in dataclasses.fields(options):
            users.setdefault(field.name, []).append((target, field))
    groups: dict[str, list[_Users]] = {}
    for rows in users.values():
        heading = f"For --target={', '.join(target for target, _ in rows)}"
        groups.setdefault(heading, []).append(rows)
    return {
        heading: functools.partial(_define_flags, rows)
        for heading, rows in groups.items()
    }


def _define_flags(group: list[_Users]) -> None:
    for users in group:
        texts: dict[str, list[str]] = {}
        for target, field in users:
            texts.setdefault(_help_text(field), []).append(target)
        parts = [f"{', '.join(targets)}: {text}" for text, targets in texts.items()]
        field = users[0][1]
        limits = field.metadata["limits"]
        define = next(_DEFINE[x] for x in _DEFINE if field.type in (x, x | None))
        if "enum_values" in limits:
            define = flags.DEFINE_enum
        help_text = " ".join(parts if len(parts) > 1 else texts)
        define(field.name, default=None, help=help_text, **limits)


def _help_text(field: dataclasses.Field) -> str:
    default = field.default
    if default in (None, "", (), False):
        return field.metadata["help"]
    text = ",".join(default) if isinstance(default, tuple) else default
    return f"{field.metadata['help']} Default: {text}."


def read_flags(options: type, values: flags.FlagValues) -> Any:
    """Returns the options of a target, a dataclass, as the flags give them."""
    given = {}
    for field in dataclasses.fields(options):
        value = values[field.name].value
        if value is None:
            continue
        if field.metadata["is_path"]:
            value = os.path.expanduser(value)
        given[field.name] = tuple(value) if isinstance(value, list) else value
    return options(**given)
