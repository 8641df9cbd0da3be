"""Files to which a command adds JSON lines, such as measurements."""

import os
from collections.abc import Iterable
from pathlib import Path


def check_output(output: str, inputs: Iterable[str] = ()) -> None:
    """Raises a ValueError unless JSON lines can be added to the file of `--output`.

    To add them to one of the `inputs`, such as a model, would damage it.
    """
    if not Path(output).absolute().parent.is_dir():
        raise ValueError(f"There is no folder for --output={output}.")
    if Path(output).suffix != ".jsonl":
        raise ValueError(
            f"--output must end in .jsonl. Received: {output}. JSON lines are added to "
            "this file, which would damage any other."
        )
    for path in inputs:
        if os.path.exists(output) and os.path.samefile(output, path):
            raise ValueError(
                f"--output={output} is the same file as the input {path}. Name another."
            )


def append_text(path: str, text: str) -> None:
    """Adds text to a file. An OSError names the file, also if the disk is full."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
