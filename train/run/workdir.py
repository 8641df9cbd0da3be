"""The directory of a run, and the check that it belongs to the same run."""

import dataclasses
import os
import re
import zlib
from pathlib import Path

from absl import logging

from keras_mobilevit.files import atomic_write, read_text
from train.config import FILENAME, TrainConfig, load_config, save_config
from train.data.registry import is_path_kind
from train.data.source import Source

_NAMES = 64  # names of training images in a fingerprint
CHECKPOINT = "checkpoint.safetensors"
BEST_MODEL = "best.keras"
LABELS = "labels.txt"
# Files that have a temporary copy while they are written.
_WRITTEN = (
    CHECKPOINT,
    BEST_MODEL,
    LABELS,
    FILENAME,
    "metrics.jsonl",
    "curves.png",
    "predictions.png",
)

# Flags that may change when a run continues, and the message about each. All others
# decide what the model learns, or which epoch is the best.
CHANGEABLE = {
    "data": "the images are read from there now",
    "weights": "they are not read, since the run continues from its checkpoint",
    "accumulation_steps": "batch normalization takes its statistics from parts of "
    "another size now",
    "steps_per_execution": "the sizes come in another order now",
}


def prepare_workdir(workdir: Path, config: TrainConfig, source: Source) -> None:
    """Creates a working directory with `config.json` and `labels.txt`.

    Raises a ValueError, and changes nothing, if the directory belongs to another run.
    """
    check_workdir(workdir, config, source)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _remove_half_written(workdir)
        with atomic_write(workdir / LABELS) as temporary:
            temporary.write_text(_labels(source), encoding="utf-8")
        save_config(config, workdir / FILENAME)
    except OSError as error:
        raise ValueError(f"Cannot write into --workdir: {error}.") from error


def _remove_half_written(workdir: Path) -> None:
    """Removes temporary files of killed processes, and no others."""
    for name in _WRITTEN:
        stem, suffix = re.escape(Path(name).stem), re.escape(Path(name).suffix)
        pattern = re.compile(rf"\.{stem}\.([0-9]+)(?:-[0-9]+)?\.tmp{suffix}")
        for file in workdir.iterdir():
            match = pattern.fullmatch(file.name)
            if match and not _is_running(int(match[1])):
                file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # `os.kill` would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _labels(source: Source) -> str:
    for name in source.class_names:
        is_text = name.isascii() or name.encode("utf-8", "replace").decode() == name
        if not is_text or len(name.splitlines()) != 1:
            raise ValueError(
                f"The class name {name!r} of {source.name} cannot be a line of a text "
                "file in UTF-8. Rename the class."
            )
    return "".join(f"{name}\n" for name in source.class_names)


def _is_changeable(name: str, saved, now) -> bool:
    """Tells whether a field may differ from that of the saved run."""
    if name not in CHANGEABLE:
        return False
    if name == "data":  # moved, but of the same kind
        kinds = {value.partition(":")[0] for value in (saved, now)}
        return len(kinds) == 1 and all(map(is_path_kind, kinds))
    if name == "weights":  # a file that was moved
        return Path(saved).name == Path(now).name
    return True


def check_workdir(workdir: Path, config: TrainConfig, source: Source) -> dict:
    """Refuses the directory of another run; changes nothing.

    Returns the allowed differences from the saved run: `{field: saved value}`.
    """
    if not (workdir / FILENAME).exists():
        return {}
    saved = load_config(workdir / FILENAME)
    changes = {
        field.name: (getattr(saved, field.name), getattr(config, field.name))
        for field in dataclasses.fields(config)
        if getattr(saved, field.name) != getattr(config, field.name)
    }
    refused = [
        f"--{name} was {before!r} and is {now!r}"
        for name, (before, now) in changes.items()
        if not _is_changeable(name, before, now)
    ]
    if refused:
        raise ValueError(
            f"{workdir} holds a run with another configuration. Choose another "
            "--workdir, or give the same flags to continue the run.\n  "
            + "\n  ".join(refused)
        )
    labels = workdir / LABELS
    if labels.exists() and read_text(labels) != _labels(source):
        raise ValueError(
            f"{workdir} holds a run with other classes, see {labels}. Choose another "
            "--workdir."
        )
    return {name: before for name, (before, _) in changes.items()}


def log_changes(changes: dict, config: TrainConfig) -> None:
    """Logs the changed flags of a run that continues, from `check_workdir`."""
    for name, before in changes.items():
        now = getattr(config, name)
        logging.info("--%s was %r and is %r: %s", name, before, now, CHANGEABLE[name])


def fingerprint(source: Source) -> int:
    """Returns a checksum of the names of some training images, without folders."""
    examples = source.examples("train", None).take(_NAMES)
    indices = [int(row["index"].numpy()) for row in examples]
    names = [Path(source.name_of("train", index)).name for index in indices]
    return zlib.crc32("\n".join(names).encode("utf-8", "surrogateescape"))
