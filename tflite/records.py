"""Reads the JSON lines that `tflite/benchmark.py` writes.

Anyone may have changed such a file, and phones and pages give themselves any name.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tflite.drivers.measurement import MEASURED, NOT_MEASURED, printable

Record = dict[str, Any]  # one measurement

MAX_TEXT = 500  # characters of a name or a note; the page allows as many
MAX_NUMBER = 1e12  # of milliseconds, 30 years; larger ones cannot be drawn


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    # Comparing also takes integers that no float can hold.
    return type(value) in (int, float) and 0 <= value <= MAX_NUMBER


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_facts(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("max_mhz") or [], list)


def _is_status(value: Any) -> bool:
    return value in (MEASURED, NOT_MEASURED)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < MAX_NUMBER


_Check = Callable[[Any], bool]
REQUIRED: dict[str, _Check] = {
    "file": lambda x: _is_text(x) and bool(Path(x).name),
    "status": _is_status,
    "setting": _is_text,
}
OPTIONAL: dict[str, _Check] = {  # may be absent or null
    **dict.fromkeys(
        (
            *("device", "device_id", "format", "gpu", "measured_by", "model", "reason"),
            *("sha256", "target", "time", "user_agent", "weights"),
        ),
        _is_text,
    ),
    **dict.fromkeys(
        (
            *("median_ms", "mean_ms", "p5_ms", "p95_ms", "init_ms", "peak_memory_mb"),
            *("first_ms", "warmup_ms", "partitions", "runs", "num_threads"),
        ),
        _is_number,
    ),
    "facts": _is_facts,
    "notes": _is_texts,
    "size": _is_size,
    "warnings": _is_texts,
}


def read_measurements(path: str | Path) -> list[Record]:
    """Reads JSON lines. Skips and reports a line that an interrupted run left open.

    Texts have no characters that control a terminal, and at most `MAX_TEXT`. Raises a
    ValueError if a line is something else than a measurement.
    """
    from keras_mobilevit.files import read_text  # loads Keras

    records = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            cleaned = _cleaned(record)
        except json.JSONDecodeError as error:
            print(f"skipped: {path}, line {number}: {error}", file=sys.stderr)
            continue
        except (ValueError, RecursionError) as error:  # huge numbers, deep lists
            raise ValueError(
                f"{path}, line {number} cannot be read: {error}. Remove this line, or "
                "measure again."
            ) from None
        wrong = _wrong_entry(record)
        if wrong is not None:
            raise ValueError(
                f"{path}, line {number} is not a measurement of tflite/benchmark.py"
                f"{wrong}. Remove this line, or measure again."
            )
        records.append(cleaned)
    return records


def _wrong_entry(record: object) -> str | None:
    """Returns words on what is wrong with a record; `None` if nothing is."""
    if not isinstance(record, dict):
        return ""
    for name, is_valid in REQUIRED.items():
        if name not in record:
            return f": it has no {name!r}"
        if not is_valid(record[name]):
            return f": its {name!r} is {_shown(record[name])}"
    for name, is_valid in OPTIONAL.items():
        if record.get(name) is not None and not is_valid(record[name]):
            return f": its {name!r} is {_shown(record[name])}"
    return None


def _shown(value: Any) -> str:
    """Returns a short text of a value, which may be a number of any length."""
    if type(value) is int and abs(value) > MAX_NUMBER:
        return "too large"
    return ascii(value)[:80]


def _cleaned(value: Any) -> Any:
    """Returns a value whose texts can be shown anywhere."""
    if isinstance(value, str):
        return printable(" ".join(value.split()))[:MAX_TEXT]
    if isinstance(value, list):
        return [_cleaned(x) for x in value]
    if isinstance(value, dict):
        return {name: _cleaned(x) for name, x in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
