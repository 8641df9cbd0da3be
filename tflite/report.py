"""Writes a page of measurements, with several models and devices side by side.

Examples:
  python tflite/report.py latency.jsonl --output=latency.html
  python tflite/report.py phone.jsonl laptop.jsonl --output=latency.html

Reads the JSON lines of tflite/benchmark.py. Writes a page with embedded pictures, and
the same tables as Markdown beside it (latency.md). Several measurements of one file in
one setting become one row of medians. Measurements with a warning, such as heat, count
only if all of the row have one. Replaces earlier pages of this command, and no other
file.
"""

import importlib.util
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    # TensorFlow is slow to load and not needed, but Keras's NumPy backend takes JAX.
    has_jax = importlib.util.find_spec("jax") is not None
    os.environ["KERAS_BACKEND"] = "numpy" if has_jax else "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import html
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from tflite.records import Record, read_measurements
from tflite.report_rows import (
    Row,
    facts_of,
    make_rows,
    name_devices,
    not_measured,
)
from train.cli.command import run_command
from train.cli.console import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"fp32": "o", "fp16": "^", "int8-mixed": "s", "int8": "D"}
PICTURE_STYLE: dict[Any, Any] = {  # settings of matplotlib
    "text.parse_math": False,  # the name of a device may look like a formula
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same rows give the same file
}

MAX_LABEL = 60  # characters, of a name in a picture that is 9 inches wide
MISSING_COLUMNS = ("device", "what", "why")


def _cells(row: Row) -> dict[str, str]:
    """Returns the texts of a row by the headings of their columns."""

    def text(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    spread = f"{text(row.low_ms, 2)} to {text(row.high_ms, 2)}"
    return {
        "model": row.model,
        "format": row.format,
        "size": row.size,
        "top-1 %": text(row.entry.top1 if row.entry else None),
        "setting": row.setting,
        "median ms": text(row.median_ms, 2),
        "5 to 95 %": "" if row.low_ms is None or row.high_ms is None else spread,
        "ratio": text(row.ratio, 2),
        "init ms": text(row.init_ms),
        "memory MB": text(row.memory_mb),
        "partitions": text(row.partitions, 0),
        "parameters": f"{row.entry.millions} M" if row.entry else "",
        "notes": "; ".join(row.notes),
    }


def _short(text: str) -> str:
    """Returns a text that leaves a picture room for its bars."""
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"


def plot_latency(rows: Sequence[Row]) -> "Figure":
    """Draws medians as bars, with error bars from the 5th to the 95th percentile."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    settings = list(dict.fromkeys(row.setting for row in rows))
    medians = [row.median_ms for row in rows]
    lows = [m if row.low_ms is None else row.low_ms for m, row in zip(medians, rows)]
    highs = [m if row.high_ms is None else row.high_ms for m, row in zip(medians, rows)]
    errors = [
        [max(0.0, median - low) for median, low in zip(medians, lows)],
        [max(0.0, high - median) for median, high in zip(medians, highs)],
    ]
    colors = [f"C{settings.index(row.setting) % 10}" for row in rows]
    bars = axes.barh(range(len(rows)), medians, color=colors, xerr=errors)
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=8)
    names = [_short(f"{row.label}, {row.setting}") for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds for one image, median and 5 to 95 %")
    axes.margins(x=0.1, y=0.01)
    return figure


def _has_neighbor(row: Row, top1: float, points: list[tuple[Row, float]]) -> bool:
    """Tells whether a label above the point would cover another point."""
    return any(
        row.median_ms < other.median_ms < 1.6 * row.median_ms
        and 0 <= accuracy - top1 < 0.6
        for other, accuracy in points
    )


def plot_accuracy(rows: Iterable[Row]) -> "Figure | None":
    """Draws latency against published accuracy. Returns `None` without any accuracy."""
    from matplotlib.figure import Figure

    known = [(row, row.entry.top1) for row in rows if row.entry]
    if not known:
        return None
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    groups: dict[tuple[str, str, str], list[tuple[Row, float]]] = {}
    for row, top1 in known:
        key = (row.device, row.setting, row.format)
        groups.setdefault(key, []).append((row, top1))
    for position, (key, points) in enumerate(groups.items()):
        axes.scatter(
            [row.median_ms for row, _ in points],
            [top1 for _, top1 in points],
            label=_short(" / ".join(filter(None, key))),
            color=f"C{position % 10}",
            marker=MARKERS.get(key[-1], "o"),
        )
    labeled = next(iter(groups.values()))
    for row, top1 in labeled:
        axes.annotate(
            _short(row.model),
            (row.median_ms, top1),
            xytext=(5, -10 if _has_neighbor(row, top1, labeled) else 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(
        xlabel="milliseconds for one image (logarithmic)",
        ylabel="published ImageNet-1k top-1, %",
        xscale="log",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(x=0.12, y=0.08)
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside lower left")
    return figure


def _svg(figure: "Figure", description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    picture = buffer.getvalue()
    label = html.escape(description, quote=True)
    return picture[picture.index("<svg") :].replace(
        "<svg", f'<svg role="img" aria-label="{label}"', 1
    )


def _html_table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


# What starts markup of Markdown in foreign text. Within a word, `_` is only a letter.
_MARKUP = re.compile(r"[\\`*\[\]~$|]|(?<![^\W_])_|_(?![^\W_])|:(?=/)|(?<=www)\.", re.I)


def _markdown(text: str) -> str:
    """Returns foreign text in one line, without markup, links and pictures."""
    escaped = _MARKUP.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
    # An address of mail becomes a link in spite of a backslash, not of a comment.
    return escaped.replace("@", "<!-- -->@")


def _markdown_table(columns: Sequence[str], lines: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(_markdown, cells)) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, lines)])


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff; }
.wide { overflow-x: auto; }
svg { width: 100%; max-width: 64rem; height: auto; }
img { max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
"""
TITLE = "Latency"
ABOUT = (
    "Times are for one image. Partitions are the parts of the graph that the delegate "
    "runs; one is best. Ratios are to MobileNetV2 in 32 bits in the same setting, or "
    "to the first row of a setting without networks of the suite. Accuracies are "
    "published figures of different training recipes and were not measured here."
)


def _by_device(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups = itertools.groupby(rows, lambda row: row.device)
    return {device: list(group) for device, group in groups}


def render_html(records: list[Record], rows: list[Row]) -> str:
    """Returns the page."""
    import matplotlib

    with matplotlib.rc_context(PICTURE_STYLE):
        return html_page(TITLE, "\n".join(_html_parts(records, rows)))


def html_page(title: str, body: str) -> str:
    """Returns a page; the title is text, the body HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</html>\n"
    )


def _html_parts(records: list[Record], rows: list[Row]) -> list[str]:
    parts = [f"<p>{ABOUT}</p>"]
    accuracy = plot_accuracy(rows)
    if accuracy:
        parts.append("<h2>Latency and accuracy</h2>")
        parts.append(_svg(accuracy, "Latency against published accuracy"))
    for device, measured in _by_device(rows).items():
        parts.append(f"<h2>{html.escape(device)}</h2>")
        facts = facts_of(records, device)
        parts.append(_html_table(("device", "value"), facts.items()))
        cells = [_cells(row) for row in measured]
        table = _html_table(cells[0], [row.values() for row in cells])
        parts.append(f'<div class="wide">{table}</div>')
        parts.append(_svg(plot_latency(measured), f"Latencies on {device}"))
    missing = not_measured(records)
    if missing:
        parts.append("<h2>Not measured</h2>")
        parts.append(_html_table(MISSING_COLUMNS, missing))
    return parts


def render_markdown(records: list[Record], rows: list[Row]) -> str:
    """Returns the page as Markdown, without pictures."""
    parts = [f"# {TITLE}", ABOUT]
    for device, measured in _by_device(rows).items():
        parts.append(f"## {_markdown(device)}")
        facts = facts_of(records, device).items()
        parts.append(
            "\n".join(f"- {name}: {_markdown(value)}" for name, value in facts)
        )
        cells = [_cells(row) for row in measured]
        parts.append(_markdown_table([*cells[0]], [row.values() for row in cells]))
    missing = not_measured(records)
    if missing:
        parts.append("## Not measured")
        parts.append(_markdown_table(MISSING_COLUMNS, missing))
    return "\n\n".join(parts) + "\n"


def _refuse_others(output: Path) -> None:
    """Raises a ValueError if a page would replace a file of somebody else."""
    starts = {
        output: html_page(TITLE, "").partition("<style>")[0],
        output.with_suffix(".md"): f"# {TITLE}\n\n{ABOUT.partition('.')[0]}",
    }
    for path, start in starts.items():
        if not os.path.lexists(path):
            continue
        with open(path, "rb") as file:
            is_ours = file.read(len(start)) in (start.encode(), b"")
        if not is_ours:
            raise ValueError(
                f"{path} was not written by this command, and would be replaced. Name "
                "another --output, or remove the file."
            )


def write_report(paths: Sequence[str | Path], output: Path) -> list[Row]:
    """Writes the page (`.html`), and the Markdown beside it. Returns their rows."""
    if output.suffix != ".html":
        raise ValueError(f"--output must end in .html. Received: {output}.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent}.")
    _refuse_others(output)
    records = name_devices([r for path in paths for r in read_measurements(path)])
    if not records:
        names = ", ".join(map(str, paths))
        raise ValueError(f"There is no measurement in {names}.")
    rows = make_rows(records)
    pages = {
        output: render_html(records, rows),
        output.with_suffix(".md"): render_markdown(records, rows),
    }
    from keras_mobilevit.files import atomic_write  # loads Keras

    for path, text in pages.items():
        with atomic_write(path) as temporary:
            temporary.write_text(readable(text), "utf-8")
    return rows


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("output", "latency.html", "Path of the page.")


def main(argv: list[str]) -> None:
    """Writes the report of the files that the command line names."""
    output = Path(flags.FLAGS.output).expanduser()
    try:
        if len(argv) < 2:
            raise ValueError("Name at least one file of tflite/benchmark.py --output.")
        rows = write_report(argv[1:], output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {output} and {output.with_suffix('.md')}")
    if not rows:
        print("Nothing was measured. The page says why.")


if __name__ == "__main__":
    run_command(main, __doc__ or "", {"Flags": define_flags}, takes_files=True)
