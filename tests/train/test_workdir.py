"""The directory of a run: whose it is, what may differ, and what is cleared away."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from keras_mobilevit.files import temporary_path
from tests.helpers.runs import CLASSIFIER as NETWORK
from tests.helpers.runs import SMALL
from tests.helpers.runs import TWO_EPOCHS_OF_DIGITS as CONFIG
from train import loop
from train.checks import batch_multiple
from train.config import FILENAME, make_config, save_config
from train.data.digits import digits_source
from train.data.source import indexed_source
from train.run import lock, start
from train.run.lock import LOCK, only_training
from train.run.progress import PREEMPTED, Progress
from train.run.workdir import (
    CHANGEABLE,
    CHECKPOINT,
    LABELS,
    check_workdir,
    fingerprint,
    log_changes,
    prepare_workdir,
)

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from train.run.lock import only_training
with only_training(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that trains in `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()  # closes the pipe


def test_a_second_training_is_refused_until_the_first_is_dead(other_process, tmp_path):
    workdir = tmp_path / "run"
    message = rf"Another training \(process {other_process.pid} on .+\) writes into"
    with pytest.raises(ValueError, match=message):
        loop.train_and_evaluate(SMALL, CONFIG, digits_source(), workdir)
    assert [file.name for file in workdir.iterdir()] == [LOCK]
    other_process.kill()
    other_process.wait()
    assert (workdir / LOCK).exists()  # and holds nobody up
    with only_training(workdir):
        assert json.loads((workdir / LOCK).read_text())["process"] == os.getpid()
        with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
            with only_training(workdir):
                pass
    assert not workdir.joinpath(LOCK).exists()


def test_a_directory_is_removed_again_only_if_nothing_came_into_it(tmp_path):
    with only_training(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    with only_training(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("kept")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]
    (tmp_path / "empty").mkdir()
    with only_training(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Cannot write into --workdir"):
        with only_training(tmp_path / "file" / "run"):
            pass


@pytest.mark.skipif(os.name == "nt", reason="Windows follows links")
def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "other.txt").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "other.txt")
    with pytest.raises(ValueError, match="Cannot write into --workdir: .*lock"):
        with only_training(tmp_path / "run"):
            pass
    assert (tmp_path / "other.txt").read_text() == "kept"


def test_an_exit_while_it_is_locked_leaves_nothing(tmp_path, monkeypatch):
    """SIGTERM exits at any line."""
    fcntl = pytest.importorskip("fcntl")
    locked = fcntl.flock

    def flock(*arguments):
        locked(*arguments)
        raise SystemExit(PREEMPTED)

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(SystemExit), only_training(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_storage_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with caplog.at_level("WARNING", "absl"), lock.only_training(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text


def test_only_what_a_dead_run_has_left_is_removed(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def temporary(name: str, process: int = dead.pid) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: process)
            return temporary_path(tmp_path / name).name

    kept = [
        ".notes.tmp.txt",
        ".best.tmp.keras",
        temporary("mine.keras"),
        temporary("config.json") + ".bak",
        f".best.{dead.pid}-1.mine.tmp.keras",
        temporary("best.keras", os.getppid()),  # of a process that still runs
    ]
    left = [temporary(name) for name in ("best.keras", CHECKPOINT, "metrics.jsonl")]
    for name in (*kept, *left):
        (tmp_path / name).write_text("x")
    prepare_workdir(tmp_path, CONFIG, digits_source())
    found = {file.name for file in tmp_path.iterdir()}
    assert found == {*kept, FILENAME, LABELS}


def folder(path: str, names, classes=("a", "b")):
    """A source of files that need not be there."""
    files = [f"{path}/train/{name}" for name in names]
    columns = {"train": {"id": files}, "validation": {"id": files[:2]}}
    return indexed_source(f"folder:{path}", classes, columns)


FOLDER = make_config(data="folder:/old/photos", weights="/old/start.keras")
PHOTOS = folder("/old/photos", ["1.jpg", "2.jpg", "3.jpg"])


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "folder:/new/place"},
        {"weights": "/new/start.keras"},
        {"accumulation_steps": 2},
        {"steps_per_execution": 4},
    ],
)
def test_what_may_change_is_told_in_a_line(changes, tmp_path, caplog):
    prepare_workdir(tmp_path, FOLDER, PHOTOS)
    config = dataclasses.replace(FOLDER, **changes)
    found = check_workdir(tmp_path, config, PHOTOS)
    assert found == {name: getattr(FOLDER, name) for name in changes}
    with caplog.at_level("INFO", "absl"):
        log_changes(found, config)
    ((name, value),) = changes.items()
    (record,) = caplog.records
    was = getattr(FOLDER, name)
    assert (
        record.getMessage()
        == f"--{name} was {was!r} and is {value!r}: " + (CHANGEABLE[name])
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "tfds:other"},
        {"weights": "/old/another.keras"},
        {"weights": "imagenet"},
        {"batch_size": 32},
        {"epochs": 31},
        {"precision": "mixed_bfloat16"},
        {"warmup_learning_rate": 1e-5},
        {"seed": 1},
    ],
)
def test_what_decides_what_is_learned_may_not_change(changes, tmp_path):
    prepare_workdir(tmp_path, FOLDER, PHOTOS)
    ((name, value),) = changes.items()
    message = f"--{name} was {getattr(FOLDER, name)!r} and is {value!r}"
    with pytest.raises(ValueError, match=message):
        check_workdir(tmp_path, dataclasses.replace(FOLDER, **changes), PHOTOS)


def test_a_run_knows_its_images_in_another_folder(tmp_path):
    changes = {"data": "folder:/old/photos"}
    began = Progress(num_examples=3, images=fingerprint(PHOTOS))
    config = dataclasses.replace(FOLDER, data="folder:/new/place")

    def run_on(names: list[str]) -> start.Run:
        source = folder("/new/place", names)
        strategy = tf.distribute.get_strategy()
        return start.Run(SMALL, config, source, tmp_path, strategy)

    moved = run_on(["1.jpg", "2.jpg", "3.jpg"])
    start._refuse_other_images(moved, began, changes)
    old = Progress(num_examples=3)  # saved by a version that did not know the names
    start._refuse_other_images(moved, old, changes)
    for names, message in (
        (["1.jpg", "2.jpg"], "folder:/new/place has 2 training images instead of 3"),
        (["1.jpg", "2.jpg", "4.jpg"], "as many training images, but with other names"),
    ):
        with pytest.raises(ValueError, match=message):
            start._refuse_other_images(run_on(names), began, changes)


@pytest.mark.slow
def test_moved_images_continue_with_fewer_parts(tmp_path, caplog):
    """A whole run of two epochs, stopped after one and continued otherwise."""
    source = digits_source()
    config = dataclasses.replace(CONFIG, data="folder:/old", accumulation_steps=2)

    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        write = _once(loop.RecordWriter.write, stopped)
        patch.setattr(loop.RecordWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            loop.train_and_evaluate(NETWORK, config, source, tmp_path)
    changed = dataclasses.replace(config, data="folder:/new", accumulation_steps=1)
    with caplog.at_level("INFO", "absl"):
        records = loop.train_and_evaluate(NETWORK, changed, source, tmp_path)
    assert [record["epoch"] for record in records] == [1, 2]
    assert "--data was 'folder:/old' and is 'folder:/new'" in caplog.text
    assert "--accumulation_steps was 2 and is 1: batch normalization" in caplog.text
    assert json.loads((tmp_path / FILENAME).read_text())["data"] == "folder:/new"


def _once(function, then):
    """Makes a function that does as another the first time, and then as `then`."""
    functions = iter([function])
    return lambda *args: next(functions, then)(*args)


def test_an_epoch_with_sizes_in_another_order_begins_again(caplog):
    progress = Progress(epoch_step=3, seen=9, multiple=1, num_examples=40, repeats=1)
    progress.check_schedule(1, 40, 1)
    assert progress.epoch_step == 3
    progress.check_schedule(1, 40, 4)
    assert progress.epoch_step == progress.seen == 0 and progress.repeats == 4
    assert "epoch 1 starts again" in caplog.text
    old = Progress(epoch_step=3, multiple=1, num_examples=40)
    old.check_schedule(1, 40, 4)
    assert old.epoch_step == 3  # of an earlier version, which refused the change


@pytest.mark.parametrize(
    ("epoch", "grow_epochs", "epoch_step"), [(1, 2, 0), (2, 2, 3), (1, 0, 3)]
)
def test_an_epoch_begun_with_fewer_sizes_begins_again(
    epoch, grow_epochs, epoch_step, tmp_path, caplog, monkeypatch
):
    save_config(CONFIG, tmp_path / FILENAME)
    values = json.loads((tmp_path / FILENAME).read_text())
    values["grow_epochs"] = grow_epochs
    (tmp_path / FILENAME).write_text(json.dumps(values))
    (tmp_path / CHECKPOINT).touch()
    source, strategy = digits_source(), tf.distribute.get_strategy()
    run = start.Run(SMALL, CONFIG, source, tmp_path, strategy)
    saved = Progress(
        epoch=epoch,
        epoch_step=3,
        seen=9,
        loss=2.0,
        multiple=batch_multiple(CONFIG, strategy),
        num_examples=source.num_examples["train"],
    )
    monkeypatch.setattr(start, "_continue", lambda *_: saved)
    _, progress = start.start_or_continue(run, {})
    assert progress.epoch_step == epoch_step
    assert (progress.seen, progress.loss) == ((9, 2.0) if epoch_step else (0, 0.0))
    assert ("epoch 2 starts again" in caplog.text) == (epoch_step == 0)


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "caf\udce9", ""])
def test_a_class_name_that_is_no_line_of_text_is_refused(name, tmp_path):
    source = folder("/old", ["1.jpg", "2.jpg"], ("a", name))
    with pytest.raises(ValueError, match="The class name .* cannot be a line"):
        prepare_workdir(tmp_path, CONFIG, source)
    assert not list(tmp_path.iterdir())


def test_labels_are_utf_8_and_may_have_been_saved_by_an_editor(tmp_path):
    names = ("Katze", "кошка", "猫", "chat\u00a0noir")
    source = folder("/old", ["1.jpg", "2.jpg"], names)
    prepare_workdir(tmp_path, CONFIG, source)
    text = (tmp_path / LABELS).read_bytes().decode("utf-8")
    assert text.splitlines() == list(names)
    (tmp_path / LABELS).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    check_workdir(tmp_path, CONFIG, source)


def test_a_run_that_another_version_began_is_not_continued(tmp_path):
    save_config(CONFIG, tmp_path / FILENAME)
    values = json.loads((tmp_path / FILENAME).read_text())
    (tmp_path / FILENAME).write_text(json.dumps({**values, "later_flag": 0.1}))
    with pytest.raises(ValueError, match="Unknown keys in .*config.json: later_flag"):
        check_workdir(tmp_path, CONFIG, digits_source())
