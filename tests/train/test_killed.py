"""Runs that are killed at any moment end with the bits of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from train.run.workdir import CHECKPOINT

ROOT = Path(__file__).parents[2]
KILLS = 10


def start(workdir) -> subprocess.Popen:
    """Trains the digits, deterministically, with a checkpoint after each step."""
    flags = (
        "--data=digits --sizes=32,48 --base_size=32 --batch_size=200 --epochs=2 "
        "--eval_size=32 --warmup_steps=4 --save_minutes=0 --deterministic"
    )
    command = [sys.executable, "train/main.py", *flags.split(), f"--workdir={workdir}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    with open(f"{workdir}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def await_writing(workdir: Path, process: subprocess.Popen) -> bool:
    """Waits until a checkpoint is half written."""
    while process.poll() is None:
        if any(workdir.glob(".checkpoint.*.tmp.safetensors")):
            return True
    return False


def kill_at_random(workdir: Path, rng: random.Random, at_writing: bool) -> str:
    """Continues a run and kills it; says when."""
    process = start(workdir)
    before = (workdir / CHECKPOINT).stat().st_mtime_ns if workdir.exists() else 0
    while process.poll() is None:  # a run that is killed before its step gets nowhere
        file = workdir / CHECKPOINT
        if file.exists() and file.stat().st_mtime_ns != before:
            break
        time.sleep(0.01)
    if at_writing:
        moment = "writing" if await_writing(workdir, process) else "done"
    else:
        time.sleep(rng.uniform(0, 2))
        moment = "between"
    if process.poll() is not None:
        return "done"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return moment


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed).wait(900) == 0, Path(f"{undisturbed}.log").read_text(
        "utf-8"
    )

    rng = random.Random(0)
    moments = [kill_at_random(killed, rng, i % 2 == 0) for i in range(KILLS)]
    assert start(killed).wait(900) == 0, Path(f"{killed}.log").read_text("utf-8")

    assert moments.count("writing") >= 2 and moments.count("between") >= 2, moments
    expected, found = (load_file(run / CHECKPOINT) for run in (undisturbed, killed))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    records = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (undisturbed, killed)
    ]
    for key in ("step", "train_loss", "skipped_train", "loss", "top1"):
        one, other = ([record[key] for record in run] for run in records)
        assert one == other, key
    leftovers = {file.name for file in killed.iterdir()}
    assert leftovers == {file.name for file in undisturbed.iterdir()}
