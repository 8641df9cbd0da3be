"""Measuring whether a device waits for Python."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.slow_reader import parse_work

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_device_waits_less_for_a_slow_reader(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/slow_reader.py"]
    done = subprocess.run(
        [*command, "--work=0.3", "--rounds=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    headings, row = done.stdout.splitlines()
    assert headings.split() == ["work", "at", "once", "later"]
    work, at_once, later = map(float, row.split())
    assert work == 0.3 and at_once > 0.3
    # A step takes 0.1 seconds or more.
    assert later < at_once - 0.05


@pytest.mark.parametrize("texts", [["abc"], ["-1"], ["nan"], ["0", "inf"], []])
def test_work_that_is_no_time_is_refused(texts):
    received = ",".join(texts) or "none"
    with pytest.raises(ValueError, match=f"--work takes seconds.*Received: {received}"):
        parse_work(texts)
    assert parse_work(["0", "0.5"]) == [0.0, 0.5]
