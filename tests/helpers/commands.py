"""Runs the commands of this repository in the process of the tests.

A process of its own takes seconds to load TensorFlow. It is for tests of the process
itself; how a command answers its flags shows here too.
"""

import contextlib
import io
import logging
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

# A command may choose a backend: Keras must have that of the tests before.
import keras  # noqa: F401
from absl import app, flags
from absl import logging as absl_logging

ROOT = Path(__file__).parents[2]


def run_here(script: str, *arguments, folder: Path = ROOT) -> CompletedProcess:
    """Runs a script in a folder, as `python script arguments` would.

    The result has what the script prints. An error that the script does not catch is
    one of the test.
    """
    command = [str(ROOT / script), *map(str, arguments)]
    output, errors = io.StringIO(), io.StringIO()
    code = None
    with everything_restored():
        sys.argv = command
        os.chdir(folder)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                runpy.run_path(command[0], run_name="__main__")
            except SystemExit as ended:
                code = ended.code
    if isinstance(code, str):  # which Python prints at the end of a process
        errors.write(f"{code}\n")
        code = 1
    return CompletedProcess(command, code or 0, output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def everything_restored() -> Iterator[None]:
    """Takes back what a command changes in its process, such as absl's flags."""
    app.define_help_flags()  # once in a process, and not by the command
    known, was_parsed = set(flags.FLAGS), flags.FLAGS.is_parsed()
    verbosity = absl_logging.get_verbosity()
    root, logger = logging.getLogger(), absl_logging.get_absl_logger()
    handler = absl_logging.get_absl_handler().python_handler
    stream, formatter = handler.stream, handler.formatter
    lists = [sys.path, root.handlers, logger.filters]
    before = [list(values) for values in lists]
    levels = root.level, logger.level
    environment, argv, folder = dict(os.environ), sys.argv, os.getcwd()
    try:
        yield
    finally:
        os.chdir(folder)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        if was_parsed:
            flags.FLAGS.mark_as_parsed()
        absl_logging.set_verbosity(verbosity)
        handler.stream = stream
        handler.setFormatter(formatter)
        for values, restored in zip(lists, before):
            values[:] = restored
        root.setLevel(levels[0])
        logger.setLevel(levels[1])
