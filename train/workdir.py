"""The directory of a run, and the check that it belongs to this one."""

import dataclasses
from pathlib import Path

from keras_mobilevit.files import whole_file
from train.config import FILENAME, TrainConfig, load_config, save_config
from train.sources import Source

CHECKPOINT = "checkpoint.safetensors"
BEST_MODEL = "best.keras"
LABELS = "labels.txt"


def prepare_workdir(workdir, config: TrainConfig, source: Source) -> Path:
    """Makes a working directory, or checks that it belongs to the same run.

    Args:
        workdir: the directory.
        config: the run's configuration, saved there as `config.json`.
        source: its class names are saved there as `labels.txt`.

    Returns:
        The directory.

    Raises:
        ValueError: if the directory holds a run of another configuration or other
            classes; it is left as it was.
    """
    workdir = Path(workdir).expanduser()
    labels = "".join(f"{name}\n" for name in source.class_names)
    if (workdir / FILENAME).exists():
        _refuse_other_run(workdir, config, labels)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for half_written in workdir.glob(".*.tmp.*"):  # by a run that was killed
            half_written.unlink()
        with whole_file(workdir / LABELS) as temporary:
            temporary.write_text(labels)
        save_config(config, workdir / FILENAME)
    except OSError as error:
        raise ValueError(f"Cannot write into --workdir: {error}.") from error
    return workdir


def _refuse_other_run(workdir: Path, config: TrainConfig, labels: str) -> None:
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
    if (workdir / LABELS).exists() and (workdir / LABELS).read_text() != labels:
        raise ValueError(
            f"{workdir} holds a run with other classes, see {workdir / LABELS}. "
            "Choose another --workdir."
        )
