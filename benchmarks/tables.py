"""Tables of what `benchmarks/training.py` measures."""

from train.cli.tables import format_table

_REFERENCES = ("bare", "timm", "torchvision")


def _speeds(records: list[dict], key: str) -> dict[str, float]:
    return {record[key]: record["images_per_second"] for record in records}


def format_steps(records: list[dict]) -> str:
    """Lays out one row per shape: images per second, and relative to timm."""
    runtimes = list(dict.fromkeys(record["runtime"] for record in records))
    others = [name for name in runtimes if name != "timm" and "timm" in runtimes]
    shapes: dict[tuple, list[dict]] = {}
    for record in records:
        shape = record["model"], record["size"], record["batch"]
        shapes.setdefault(shape, []).append(record)
    rows = []
    for shape, group in shapes.items():
        speeds = _speeds(group, "runtime")
        row = [*shape, *(speeds.get(name) for name in runtimes)]
        rows.append(row + [_ratio(speeds, name, "timm") for name in others])
    headings = ["model", "size", "batch", *runtimes]
    return format_table(headings + [f"{name}/timm" for name in others], rows)


def format_input(records: list[dict]) -> str:
    """Lays out one row per pipeline: images per second, also relative to others."""
    speeds = _speeds(records, "pipeline")
    references = [name for name in _REFERENCES if name in speeds]
    rows = []
    for record in records:
        name, speed = record["pipeline"], record["images_per_second"]
        ratios = [_ratio(speeds, name, reference) for reference in references]
        rows.append([name, speed, speed / record["threads"], *ratios])
    headings = ["pipeline", "images/s", "per core"]
    return format_table(headings + [f"/{name}" for name in references], rows)


def _ratio(speeds: dict, name: str, reference: str) -> float | None:
    if name not in speeds or reference not in speeds:
        return None
    return speeds[name] / speeds[reference]


def title(record: dict) -> str:
    """Says what the table shows, and how it was measured."""
    if record["what"] == "input":
        what = f"{record['files']} files to batches of {record['batch']} images"
        return f"{what} of {record['size']} x {record['size']}, images/s"
    what = {"step": "training step", "inference": "inference"}[record["what"]]
    xla = ", TensorFlow with XLA" if record["xla"] else ""
    return f"{what}, {record['precision']}{xla}, images/s"


def notes(records: list[dict]) -> list[str]:
    """Returns the notes below the table."""
    devices = dict.fromkeys(record["device"] for record in records)
    lines = [f"{' and '.join(devices)}, CPU threads: {records[0]['threads']}"]
    if records[0]["what"] == "input":
        return lines
    if len(devices) > 1:
        lines.append("The devices differ, so the ratios say nothing.")
    if all(record["accelerator"] == "cpu" for record in records):
        lines.append("Measured on the CPU. A GPU was not measured.")
    return lines


def show(records: list[dict]) -> None:
    """Prints the table and the notes."""
    layout = format_input if records[0]["what"] == "input" else format_steps
    print(title(records[0]))
    print(layout(records))
    print("\n".join(notes(records)))
