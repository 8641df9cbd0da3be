"""From the JSON lines of measurements to the rows of a report."""

import dataclasses
import json
import math
import statistics
import sys
from pathlib import Path

from tflite.drivers.measurement import MEASURED
from tflite.suites.suites import PAPER, SUITES, Entry

ENTRIES = {entry.model: entry for suite in SUITES.values() for entry in suite.entries}
BASE, BASE_FORM = PAPER.entries[0], PAPER.formats[0]  # what ratios are to
TEXTS = ("file", "status", "setting")
NUMBERS = (
    "median_ms",
    "mean_ms",
    "p5_ms",
    "p95_ms",
    "init_ms",
    "peak_memory_mb",
    "partitions",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One file in one setting on one device: all of its measurements as one.

    Attributes:
        device: name.
        model: title.
        form: precision.
        size: side of the images in pixels, as text.
        setting: runtime, accelerator, threads and further flags.
        median_ms, low_ms, high_ms: medians of the median and of the 5 and 95 %.
        init_ms, memory_mb, partitions: medians, or `None`.
        entry: what is published of the model, if it is one of a suite.
        notes: what makes the numbers doubtful.
        ratio: of the median to MobileNetV2's in 32 bits in the same setting; without
            any network of a suite there, to the first one's.
    """

    device: str
    model: str
    form: str
    size: str
    setting: str
    median_ms: float
    low_ms: float | None
    high_ms: float | None
    init_ms: float | None
    memory_mb: float | None
    partitions: float | None
    entry: Entry | None
    notes: tuple[str, ...]
    ratio: float | None = None

    @property
    def label(self) -> str:
        size = "" if self.entry else self.size
        return " ".join(filter(None, [self.model, self.form, size]))


def read_measurements(path) -> list[dict]:
    """Reads JSON lines. One that a kill has cut is left out, and told on stderr.

    Raises:
        ValueError: if a line is something else, with its number.
    """
    from keras_mobilevit.files import read_text  # loads Keras

    records = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            print(f"left out: {path}, line {number}: {error}", file=sys.stderr)
            continue
        if not _is_measurement(record):
            raise ValueError(
                f"{path}, line {number} is no measurement of tflite/benchmark.py."
            )
        records.append(record)
    return records


def _is_measurement(record) -> bool:
    if not isinstance(record, dict):
        return False
    texts = [record.get(name) for name in TEXTS]
    numbers = [record.get(name) for name in NUMBERS]
    return all(isinstance(text, str) for text in texts) and all(
        number is None or (type(number) in (int, float) and math.isfinite(number))
        for number in numbers
    )


def name_devices(records: list[dict]) -> list[dict]:
    """Returns the records with a number for each further device of the same name."""
    ids = {}
    for record in records:
        known = ids.setdefault(record.get("device") or "unknown device", [])
        if record.get("device_id") not in known:
            known.append(record.get("device_id"))
    named = []
    for record in records:
        device = record.get("device") or "unknown device"
        number = ids[device].index(record.get("device_id")) + 1
        name = device if number == 1 else f"{device} ({number})"
        named.append({**record, "device": name})
    return named


def _entry(record: dict) -> Entry | None:
    """Returns what is published of a model at the size of its images."""
    entry = ENTRIES.get(record.get("model"))
    return entry if entry and entry.size == record.get("size") else None


def _file(record: dict) -> tuple[str, str, str]:
    entry = _entry(record)
    title = entry.title if entry else Path(record["file"]).name
    return title, record.get("format") or "", str(record.get("size") or "")


def _median(records: list[dict], name: str) -> float | None:
    values = [record.get(name) for record in records]
    return None if None in values else statistics.median(values)


def _is_measured(record: dict) -> bool:
    return record["status"] == MEASURED and record.get("median_ms") is not None


def _row(group: list[dict], has_namesakes: bool) -> Row:
    """Makes a row of the measurements of a file, of calm ones if there are any."""
    title, form, size = _file(group[0])
    if has_namesakes:  # of another content
        title = f"{title} ({(group[0].get('sha256') or '')[:7]})"
    calm = [record for record in group if not record.get("warnings")] or group
    notes = [note for record in calm for note in record.get("notes") or []]
    if group[0].get("weights") == "none":
        notes.append("random weights")
    return Row(
        device=group[0]["device"],
        model=title,
        form=form,
        size=size,
        setting=group[0]["setting"],
        median_ms=_median(calm, "median_ms"),
        low_ms=_median(calm, "p5_ms"),
        high_ms=_median(calm, "p95_ms"),
        init_ms=_median(calm, "init_ms"),
        memory_mb=_median(calm, "peak_memory_mb"),
        partitions=_median(calm, "partitions"),
        entry=_entry(group[0]),
        notes=tuple(dict.fromkeys(notes)),
    )


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Returns the rows of one setting on one device with their ratios."""
    known = [row for row in rows if row.entry]
    bases = [row for row in known if row.entry is BASE and row.form == BASE_FORM]
    base = (bases or ([] if known else rows) or [None])[0]
    if base is None or not base.median_ms:
        return rows
    return [
        dataclasses.replace(row, ratio=row.median_ms / base.median_ms) for row in rows
    ]


def _order(row: Row) -> tuple[int, int]:
    """Formats and models in the order of their suite, others as they came."""
    models = list(ENTRIES.values())
    form = PAPER.formats.index(row.form) if row.form in PAPER.formats else 99
    return (form, models.index(row.entry)) if row.entry else (100, 0)


def make_rows(records: list[dict]) -> list[Row]:
    """Returns what was measured, by device, setting and then the order of the suite.

    Args:
        records: whose devices have been named.
    """
    groups, contents = {}, {}
    for record in records:
        if _is_measured(record):
            place = record["device"], record["setting"]
            key = *_file(record), record.get("sha256")
            groups.setdefault(place, {}).setdefault(key, []).append(record)
            contents.setdefault(_file(record), set()).add(record.get("sha256"))
    rows = []
    for files in groups.values():
        here = [
            _row(group, has_namesakes=len(contents[key[:3]]) > 1)
            for key, group in files.items()
        ]
        rows += _with_ratios(sorted(here, key=_order))
    devices = list(dict.fromkeys(row.device for row in rows))
    return sorted(rows, key=lambda row: devices.index(row.device))


def not_measured(records: list[dict]) -> list[tuple[str, str, str]]:
    """Returns `(device, what, why)` of everything without a number.

    Of a suite also what one device has and another that began it has not.

    Args:
        records: whose devices have been named.
    """
    found, measured = {}, {}
    for record in records:
        device, (model, form, size) = record["device"], _file(record)
        if not _is_measured(record):
            what = " ".join(filter(None, [model, form, size, record["setting"]]))
            found[device, what, _why(record)] = None
        elif _entry(record):
            measured.setdefault(device, {})[f"{model} {form}"] = None
    everywhere = {label: None for labels in measured.values() for label in labels}
    for device, labels in measured.items():
        for label in everywhere:
            told = any(d == device and what.startswith(label) for d, what, _ in found)
            if label not in labels and not told:
                found[device, label, "nobody tried"] = None
    return list(found)


def _why(record: dict) -> str:
    if record.get("reason"):
        return record["reason"]
    return f"its log has no median; the mean is {record.get('mean_ms')} ms"


def facts_of(records: list[dict], device: str) -> dict[str, str]:
    """Returns what the last record of a device knows of it."""
    record = [r for r in records if r["device"] == device][-1]
    facts = record.get("facts") or {}
    is_this = record.get("target") in ("host", "coreml")
    known = {
        "Cores": facts.get("cores") or "",
        "Frequencies, MHz": ", ".join(map(str, facts.get("max_mhz") or [])),
        "ABI": facts.get("abi", ""),
        "Build": facts.get("fingerprint", ""),
        "Browser": record.get("user_agent", ""),
        "GPU": record.get("gpu", ""),
        "System": record.get("measured_by", "") if is_this else "",
        "Measured": record.get("time", ""),
    }
    return {name: str(value) for name, value in known.items() if value}
