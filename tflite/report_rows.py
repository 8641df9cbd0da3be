"""Makes the rows of a report from the JSON lines of measurements."""

import dataclasses
import statistics
from pathlib import Path

from tflite.drivers.measurement import MEASURED, NOT_MEASURED
from tflite.records import Record
from tflite.suites.suites import PAPER, SUITES, Entry

ENTRIES = {entry.model: entry for suite in SUITES.values() for entry in suite.entries}
BASE, BASE_FORMAT = PAPER.entries[0], PAPER.formats[0]  # ratios are to this row


@dataclasses.dataclass(frozen=True)
class Row:
    """All measurements of one file in one setting on one device, as medians."""

    device: str
    model: str  # title
    format: str  # such as `fp32`
    size: str  # side of the images in pixels
    setting: str  # runtime, accelerator, threads and more flags
    median_ms: float
    low_ms: float | None  # 5th percentile
    high_ms: float | None  # 95th percentile
    init_ms: float | None
    memory_mb: float | None
    partitions: float | None
    entry: Entry | None  # published figures, if a suite has the model
    notes: tuple[str, ...]  # what makes the numbers doubtful
    # Of the median to MobileNetV2's in 32 bits in the same setting. Without a network
    # of a suite, to the first row's.
    ratio: float | None = None

    @property
    def label(self) -> str:
        """Model, format and size. A suite has one size per model."""
        size = "" if self.entry else self.size
        return " ".join(filter(None, [self.model, self.format, size]))


def name_devices(records: list[Record]) -> list[Record]:
    """Returns the records, with a number after the name of each further device."""
    numbers: dict[str, dict[str | None, int]] = {}
    named = []
    for record in records:
        device = record.get("device") or "unknown device"
        known = numbers.setdefault(device, {})
        number = known.setdefault(record.get("device_id"), len(known) + 1)
        name = device if number == 1 else f"{device} ({number})"
        named.append({**record, "device": name})
    return named


def _entry(record: Record) -> Entry | None:
    """Returns the published figures of a model at the size of its images."""
    entry = ENTRIES.get(record.get("model", ""))
    return entry if entry and entry.size == record.get("size") else None


def _file(record: Record) -> tuple[str, str, str]:
    """Returns title, format and size."""
    entry = _entry(record)
    title = entry.title if entry else Path(record["file"]).name
    return title, record.get("format") or "", str(record.get("size") or "")


def _median(records: list[Record], name: str) -> float | None:
    values = [record[name] for record in records if record.get(name) is not None]
    return statistics.median(values) if len(values) == len(records) else None


def _is_measured(record: Record) -> bool:
    return record["status"] == MEASURED and record.get("median_ms") is not None


def _row(group: list[Record], has_duplicates: bool) -> Row:
    """Makes a row of a file's measurements, without throttled ones if there are others.

    `has_duplicates` says that another file has the same title, format and size.
    """
    title, format_name, size = _file(group[0])
    if has_duplicates:
        title = f"{title} ({(group[0].get('sha256') or '')[:7]})"
    unthrottled = [r for r in group if not r.get("warnings")] or group
    notes = [note for record in unthrottled for note in record.get("notes") or []]
    if group[0].get("weights") == "none":
        notes.append("random weights")
    return Row(
        device=group[0]["device"],
        model=title,
        format=format_name,
        size=size,
        setting=group[0]["setting"],
        median_ms=statistics.median(r["median_ms"] for r in unthrottled),
        low_ms=_median(unthrottled, "p5_ms"),
        high_ms=_median(unthrottled, "p95_ms"),
        init_ms=_median(unthrottled, "init_ms"),
        memory_mb=_median(unthrottled, "peak_memory_mb"),
        partitions=_median(unthrottled, "partitions"),
        entry=_entry(group[0]),
        notes=tuple(dict.fromkeys(notes)),
    )


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Returns the rows of one setting on one device, with their ratios."""
    known = [row for row in rows if row.entry]
    bases = [row for row in known if row.entry is BASE and row.format == BASE_FORMAT]
    candidates = bases or ([] if known else rows)
    if not candidates or not candidates[0].median_ms:
        return rows
    base_ms = candidates[0].median_ms
    return [dataclasses.replace(row, ratio=row.median_ms / base_ms) for row in rows]


def _order(row: Row) -> tuple[int, int]:
    """Sorts by format and model in the order of the suite, then the other rows."""
    if not row.entry:
        return len(PAPER.formats) + 1, 0
    known = row.format in PAPER.formats
    position = PAPER.formats.index(row.format) if known else len(PAPER.formats)
    return position, list(ENTRIES.values()).index(row.entry)


def make_rows(records: list[Record]) -> list[Row]:
    """Returns the rows by device, setting and then the order of the suite."""
    groups: dict[tuple, dict[tuple, list[Record]]] = {}
    contents: dict[tuple, set] = {}
    for record in filter(_is_measured, records):
        file, sha256 = _file(record), record.get("sha256")
        group = groups.setdefault((record["device"], record["setting"]), {})
        group.setdefault((file, sha256), []).append(record)
        contents.setdefault(file, set()).add(sha256)
    rows: list[Row] = []
    for files in groups.values():
        made = [
            _row(group, has_duplicates=len(contents[file]) > 1)
            for (file, _), group in files.items()
        ]
        rows += _with_ratios(sorted(made, key=_order))
    devices = list(dict.fromkeys(row.device for row in rows))
    return sorted(rows, key=lambda row: devices.index(row.device))


def not_measured(records: list[Record]) -> list[tuple[str, str, str]]:
    """Returns `(device, what, why)` of everything without a number.

    This includes files of a suite that only other devices have measured.
    """
    found: dict[tuple[str, str, str], None] = {}
    measured: dict[str, set[str]] = {}
    labels: dict[str, None] = {}
    for record in records:
        device, (model, format_name, size) = record["device"], _file(record)
        if not _is_measured(record):
            parts = [model, format_name, size, record["setting"]]
            reason = record.get("reason") or NOT_MEASURED
            found[device, " ".join(filter(None, parts)), reason] = None
        elif _entry(record):
            label = f"{model} {format_name}"
            measured.setdefault(device, set()).add(label)
            labels[label] = None
    for device, own in measured.items():
        refused = [what for name, what, _ in found if name == device]
        for label in labels:
            if label not in own and not any(x.startswith(label) for x in refused):
                found[device, label, "not tried"] = None
    return list(found)


def facts_of(records: list[Record], device: str) -> dict[str, str]:
    """Returns what the last record of a device says about it."""
    record = [r for r in records if r["device"] == device][-1]
    facts = record.get("facts") or {}
    is_this_machine = record.get("target") in ("host", "coreml")
    known = {
        "Cores": facts.get("cores") or "",
        "Frequencies, MHz": ", ".join(map(str, facts.get("max_mhz") or [])),
        "ABI": facts.get("abi", ""),
        "Build": facts.get("fingerprint", ""),
        "Browser": record.get("user_agent", ""),
        "GPU": record.get("gpu", ""),
        "System": record.get("measured_by", "") if is_this_machine else "",
        "Measured": record.get("time", ""),
    }
    return {name: str(value) for name, value in known.items() if value}
