"""What a program prints: no chatter of its libraries, and nothing lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train.cli.console import START_UP_LINE

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **environment) -> subprocess.CompletedProcess:
    """Runs Python code in which `quiet_libraries` is imported."""
    prelude = "import os, sys\nfrom train.cli.console import quiet_libraries\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
    )


@pytest.mark.parametrize(
    "line",
    [
        b"WARNING: All log messages before absl::InitializeLog() is called are written",
        b"I0000 00:00:1795976604.454211   17336 port.cc:153] oneDNN custom operations",
        b"W0000 00:00:1795976604.454211   17336 computation_placer.cc:177] already",
        b"2026-11-29 18:22:13.123456: I tensorflow/core/util/port.cc:153] oneDNN",
        b"To enable the following instructions: AVX2 FMA, in other operations, rebuild",
        b"E0000 00:00:1795976604.1 5 cuda_fft.cc:477] Unable to register cuFFT factory",
        b"E0000 00:00:1.1 5 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA "
        b"error: Failed call to cuInit: UNKNOWN ERROR (303)",
    ],
)
def test_lines_of_a_start(line):
    assert START_UP_LINE.match(line)


@pytest.mark.parametrize(
    "line",
    [
        b"I1129 18:30:12.726791 140039432743808 main.py:124] digits: 10 classes",
        b"W1129 18:30:12.726791 140039432743808 checks.py:124] few images",
        b"E0000 00:00:1795976604.45 17336 cuda_dnn.cc:1] Loaded runtime CuDNN library",
        b"E0000 00:00:1.1 5 x.cc:52] failed call to cuInit: CUDA_ERROR_UNKNOWN",
        b"F0000 00:00:1.1 5 x.cc:52] Check failed",
        b"Traceback (most recent call last):",
    ],
)
def test_lines_that_are_kept(line):
    assert not START_UP_LINE.match(line)


NOISE = "I0000 00:00:1795976604.454211   17336 port.cc:153] noise\\n"


def test_only_the_lines_of_a_start_are_dropped():
    code = (
        "with quiet_libraries():\n"
        f"    os.write(2, b'first\\n{NOISE}second')\n"
        "print('third', file=sys.stderr)\n"
    )
    assert run(code).stderr == b"first\nsecondthird\n"
    assert b"noise" in run(code, TF_CPP_MIN_LOG_LEVEL="0").stderr


def test_a_failed_import_says_everything():
    code = (
        "with quiet_libraries():\n"
        "    os.write(2, b'cannot open libcuda\\n')\n"
        "    import a_module_that_is_missing\n"
    )
    result = run(code)
    assert result.returncode == 1
    assert b"cannot open libcuda" in result.stderr
    assert b"No module named 'a_module_that_is_missing'" in result.stderr


def test_the_last_words_of_a_crash_are_not_lost():
    code = f"with quiet_libraries():\n    os.write(2, b'{NOISE}AVX')\n    os.abort()\n"
    result = run(code)
    assert result.returncode == -signal.SIGABRT
    assert result.stderr == b"AVX"


def test_a_process_that_outlives_the_context_does_not_delay_it():
    code = (
        "import subprocess\n"
        "with quiet_libraries():\n"
        "    sleep = 'import time; time.sleep(60)'\n"
        "    child = subprocess.Popen([sys.executable, '-c', sleep])\n"
        "print('done', flush=True)\n"
        "child.kill()\n"
    )
    assert b"done" in run(code).stdout


def test_warnings_are_logged_once_and_messages_are_short():
    code = (
        "from absl import logging\n"
        "from train.cli.console import set_up_logging\n"
        "set_up_logging()\n"
        "logging.set_verbosity(logging.INFO)\n"
        "for i in range(2):\n"
        "    logging.info('step %d', 7)\n"
        "    logging.warning('few images in %s', 'a')\n"
        "    logging.warning('few images in %s', i)\n"
    )
    output = run(code).stderr.splitlines()[1:]  # absl says that no flags were parsed
    lines = [line.partition(b" ")[2] for line in output]
    warnings = [b"warning: few images in " + name for name in (b"a", b"0", b"1")]
    assert lines == [b"step 7", *warnings[:2], b"step 7", warnings[2]]
