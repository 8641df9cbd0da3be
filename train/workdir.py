"""The directory of a run, and the check that it belongs to this one."""

import dataclasses
from pathlib import Path

from keras_mobilevit.files import whole_file
from train.config import FILENAME, TrainConfig, load_config, save_config
from train.sources import Source

CHECKPOINT = "checkpoint.safetensors"
BEST_MODEL = "best.keras"
LABELS = "labels.txt"


def prepare_workdir(workdir: Path, config: TrainConfig, source: Source) -> None:
    """Makes a working directory, or checks that it belongs to the same run.

    Args:
        workdir: the directory.
        config: the run's configuration, saved there as `config.json`.
        source: its class names are saved there as `labels.txt`.

    Raises:
        ValueError: if it cannot be written, or holds a run of another configuration
            or other classes; it is left as it was then.
    """
    check_workdir(workdir, config, source)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for half_written in workdir.glob(".*.tmp.*"):  # by a run that was killed
            half_written.unlink()
        with whole_file(workdir / LABELS) as temporary:
            temporary.write_text(_labels(source))
        save_config(config, workdir / FILENAME)
    except OSError as error:
        raise ValueError(f"Cannot write into --workdir: {error}.") from error


def _labels(source: Source) -> str:
    return "".join(f"{name}\n" for name in source.class_names)


def check_workdir(workdir: Path, config: TrainConfig, source: Source) -> None:
    """Refuses the directory of another run, and leaves it as it is.

    Raises:
        ValueError: if it has another configuration or other classes.
    """
    if not (workdir / FILENAME).exists():
        return
    saved = load_config(workdir / FILENAME)
    changes = [
        f"{field.name}: {getattr(saved, field.name)!r} there, "
        f"{getattr(config, field.name)!r} now"
        for field in dataclasses.fields(config)
        if getattr(saved, field.name) != getattr(config, field.name)
    ]
    if changes:
        raise ValueError(
            f"{workdir} holds a run of another configuration. Choose another "
            "--workdir, or the same flags to continue it.\n  " + "\n  ".join(changes)
        )
    if (workdir / LABELS).exists() and (workdir / LABELS).read_text() != _labels(
        source
    ):
        raise ValueError(
            f"{workdir} holds a run with other classes, see {workdir / LABELS}. "
            "Choose another --workdir."
        )
