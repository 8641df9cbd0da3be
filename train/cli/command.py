"""Runs a command: grouped help, errors in one line, and no library loaded before.

A command defines its flags without TensorFlow and Keras, and loads them in its `main`,
so that `--help` answers at once.
"""

import functools
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import app, flags, logging

from train.cli.console import set_up_logging

INTERRUPTED = 130  # exit code of a shell after Ctrl-C
USAGE_ERROR = 2  # exit code of a command line that cannot be understood
WIDTH = 88
# Run as a file: importing its package would load Keras.
TERMINAL = str(Path(__file__).parents[2] / "keras_mobilevit" / "terminal.py")
_HELP = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort")
_FULL_HELP = ("--helpfull", "-helpfull")
_VALUES = {
    "int": "INTEGER",
    "float": "NUMBER",
    "comma separated list of strings": "A,B,...",
}


def run_command(
    main: Callable[[list[str]], object],
    description: str,
    groups: Mapping[str, Callable[[], None]],
    takes_files: bool = False,
) -> None:
    """Defines the flags by heading, and calls `main` with the rest of the command line.

    `--help` prints the description and the flags, and exits with 0. A command line that
    cannot be understood prints one line and exits with 2; arguments without dashes are
    only allowed if it `takes_files`.
    """
    runpy.run_path(TERMINAL)["guard_terminal"]()
    set_up_logging()
    names = {heading: _define(define) for heading, define in groups.items()}
    parse = functools.partial(_parse, description, names, takes_files)
    app.run(functools.partial(_run, main), flags_parser=parse)


def _run(main: Callable[[list[str]], object], argv: list[str]) -> object:
    """Calls `main`; Ctrl-C and a lack of memory end it with one line."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except MemoryError as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        text = f" {error}" if str(error) else ""
        sys.exit(
            f"error: This machine has too little memory.{text} End other programs, or "
            "use fewer or smaller images."
        )


def _define(define: Callable[[], None]) -> list[str]:
    """Defines flags, and returns their names."""
    before = set(flags.FLAGS)
    define()
    return [name for name in flags.FLAGS if name not in before]


def _parse(
    description: str, names: dict[str, list[str]], takes_files: bool, argv: list[str]
) -> list[str]:
    options = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(option in _HELP + _FULL_HELP for option in options):
        if any(option in _FULL_HELP for option in options):
            ours = {name for group in names.values() for name in group}
            others = sorted(name for name in flags.FLAGS if name not in ours)
            names = names | {"Flags of the libraries": others}
        print(help_text(description, names))
        sys.exit(0)
    try:
        left = flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:  # absl refuses --noflag=value so
        _refuse(_explain(str(error)))
    if len(left) > 1 and not takes_files:
        _refuse(f"Unexpected arguments: {' '.join(left[1:])}.")
    return left


def _explain(message: str) -> str:
    """Replaces absl's sentences on required flags, which nobody has set to None."""
    missing = re.findall(r"Flag (--\w+) must have a value other than None", message)
    if missing:
        return f"This command needs {' and '.join(missing)}."
    return message if message.endswith((".", "?")) else f"{message}."


def _refuse(message: str) -> None:
    print(f"error: {message} --help lists all flags.", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def help_text(description: str, names: Mapping[str, list[str]]) -> str:
    """Lays out the help of a command: the names of its flags come by heading."""
    parts = [description.strip()]
    for heading, group in names.items():
        parts += ["", f"{heading}:"]
        parts += [_describe(flags.FLAGS[name]) for name in group]
    return "\n".join(parts)


def _describe(flag: flags.Flag) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    text = (flag.help or "").strip()
    if choices:
        text = text.removeprefix(f"<{'|'.join(choices)}>: ")
    kind = (
        "|".join(choices) if choices else _VALUES.get(flag.parser.flag_type(), "TEXT")
    )
    if choices and len(kind) > WIDTH:
        kind, text = "NAME", f"{text} One of: {', '.join(choices)}."
    head = f"--{flag.name}={kind}"
    if flag.boolean:
        is_switch = flag.parser.flag_type() == "bool"
        head = f"--[no]{flag.name}" if is_switch else f"--{flag.name}[=NAME]"
    default = flag.default
    if default not in (None, "", [], False) and "efault" not in text:
        shown = ",".join(default) if isinstance(default, list) else default
        text += f" Default: {shown}."
    return f"  {head}\n" + textwrap.fill(
        text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
