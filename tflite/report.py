"""Makes one page of measurements: several models, several devices side by side.

Examples:
  python tflite/report.py latency.jsonl --output=latency.html
  python tflite/report.py phone.jsonl laptop.jsonl --output=latency.html

Takes the JSON lines of tflite/benchmark.py. Writes a page that holds its pictures
itself, and the same tables as Markdown beside it (latency.md). Of several measurements
of one file in one setting, the median counts; those that came with a warning, of heat
for example, only if all did.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "numpy"  # nothing is computed, and TensorFlow is slow

import html
import io

import matplotlib
from absl import app, flags
from matplotlib.figure import Figure

from tflite.report_rows import (
    Row,
    facts_of,
    make_rows,
    name_devices,
    not_measured,
    read_measurements,
)
from train.run.console import print_any_name, readable

MARKERS = {"fp32": "o", "fp16": "^", "int8-mixed": "s", "int8": "D"}
# A device may call itself anything, also what looks like a formula.
matplotlib.rcParams["text.parse_math"] = False

COLUMNS = (
    "model",
    "format",
    "size",
    "top-1 %",
    "setting",
    "median ms",
    "5 to 95 %",
    "ratio",
    "init ms",
    "memory MB",
    "partitions",
    "parameters",
    "notes",
)


def _cells(row: Row) -> list[str]:
    def shown(value, digits=1) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    spread = f"{shown(row.low_ms, 2)} to {shown(row.high_ms, 2)}"
    return [
        row.model,
        row.form,
        row.size,
        shown(row.entry and row.entry.top1),
        row.setting,
        shown(row.median_ms, 2),
        "" if row.low_ms is None or row.high_ms is None else spread,
        shown(row.ratio, 2),
        shown(row.init_ms),
        shown(row.memory_mb),
        shown(row.partitions, 0),
        f"{row.entry.millions} M" if row.entry else "",
        "; ".join(row.notes),
    ]


def table_of(rows: list[Row]) -> list[list[str]]:
    """Returns the cells of one device's table, below `COLUMNS`."""
    return [_cells(row) for row in rows]


def plot_latency(rows: list[Row]) -> Figure:
    """Draws medians as bars, and the middle 90 % of the runs as a line on each."""
    figure = Figure(figsize=(9, 1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    settings = list(dict.fromkeys(row.setting for row in rows))
    names = [f"{row.label}, {row.setting}" for row in rows][::-1]
    for place, row in enumerate(rows[::-1]):
        axes.barh(place, row.median_ms, color=f"C{settings.index(row.setting) % 10}")
        if row.low_ms is not None and row.high_ms is not None:
            axes.plot([row.low_ms, row.high_ms], [place, place], color="black", lw=1)
        end = max(row.median_ms, row.high_ms or 0)
        axes.annotate(
            f"{row.median_ms:.2f}",
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="milliseconds for one image, median and 5 to 95 %")
    axes.margins(x=0.1, y=0.01)
    return figure


def plot_accuracy(rows: list[Row]) -> Figure | None:
    """Draws latency against published accuracy; `None` without any."""
    known = [row for row in rows if row.entry]
    if not known:
        return None
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    settings = list(dict.fromkeys((r.device, r.setting, r.form) for r in known))
    for place, key in enumerate(settings):
        points = [r for r in known if (r.device, r.setting, r.form) == key]
        axes.scatter(
            [r.median_ms for r in points],
            [r.entry.top1 for r in points],
            label=" / ".join(filter(None, key)),
            color=f"C{place % 10}",
            marker=MARKERS.get(key[2], "o"),
        )
        if place == 0:
            for r in points:
                axes.annotate(
                    r.model,
                    (r.median_ms, r.entry.top1),
                    xytext=(5, 4),
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


def _svg(figure: Figure, description: str) -> str:
    buffer = io.StringIO()
    # Letters as letters, and no time of day in the file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    picture = buffer.getvalue()
    label = html.escape(description, quote=True)
    return picture[picture.index("<svg") :].replace(
        "<svg", f'<svg role="img" aria-label="{label}"', 1
    )


def _html_table(columns, lines: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _markdown(text: str) -> str:
    """Returns words from elsewhere as nothing but words, in one line."""
    return html.escape(" ".join(text.split()), quote=False)


def _markdown_table(columns, lines: list[list[str]]) -> str:
    def line(cells) -> str:
        return "| " + " | ".join(_markdown(c).replace("|", "\\|") for c in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, lines)])


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff; }
.wide { overflow-x: auto; }
svg { width: 100%; max-width: 64rem; height: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
"""
TITLE = "Latency"
ABOUT = (
    "Times are of one image. Partitions are the parts of the graph that the delegate "
    "runs; one is best. Ratios are to MobileNetV2 in 32 bits in the same setting, or "
    "to the first row where there is nothing of the suite. Accuracies are published "
    "ones, each of its own training recipe, and were not measured here."
)


def _by_device(rows: list[Row]) -> dict[str, list[Row]]:
    devices = {}
    for row in rows:
        devices.setdefault(row.device, []).append(row)
    return devices


def render_html(records: list[dict], rows: list[Row]) -> str:
    """Returns the page."""
    parts = [f"<h1>{TITLE}</h1><p>{ABOUT}</p>"]
    accuracy = plot_accuracy(rows)
    if accuracy:
        parts.append("<h2>Latency and accuracy</h2>")
        parts.append(_svg(accuracy, "Latency against published accuracy"))
    for device, measured in _by_device(rows).items():
        parts.append(f"<h2>{html.escape(device)}</h2>")
        facts = facts_of(records, device)
        parts.append(_html_table(("fact", "value"), [list(f) for f in facts.items()]))
        table = _html_table(COLUMNS, table_of(measured))
        parts.append(f'<div class="wide">{table}</div>')
        parts.append(_svg(plot_latency(measured), f"Latencies on {device}"))
    missing = not_measured(records)
    if missing:
        parts.append("<h2>Not measured</h2>")
        columns = ("device", "what", "why")
        parts.append(_html_table(columns, [list(line) for line in missing]))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{TITLE}</title>\n<style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def render_markdown(records: list[dict], rows: list[Row]) -> str:
    """Returns the same without pictures."""
    parts = [f"# {TITLE}", ABOUT]
    for device, measured in _by_device(rows).items():
        parts.append(f"## {_markdown(device)}")
        facts = facts_of(records, device).items()
        parts.append(
            "\n".join(f"- {name}: {_markdown(value)}" for name, value in facts)
        )
        parts.append(_markdown_table(COLUMNS, table_of(measured)))
    missing = not_measured(records)
    if missing:
        parts.append("## Not measured")
        columns = ("device", "what", "why")
        parts.append(_markdown_table(columns, [list(line) for line in missing]))
    return "\n\n".join(parts) + "\n"


def write_report(paths: list[str], output: Path) -> list[Row]:
    """Writes the page, and the Markdown beside it.

    Args:
        paths: of files of JSON lines.
        output: the page, `.html`.

    Returns:
        What was measured.

    Raises:
        ValueError: if a file has anything else, or there is no measurement at all.
    """
    if output.suffix != ".html":
        raise ValueError(f"--output must end in .html. Received: {output}.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent}.")
    records = name_devices([r for path in paths for r in read_measurements(path)])
    if not records:
        raise ValueError(f"There is no measurement in {', '.join(map(str, paths))}.")
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


def main(argv) -> None:
    if len(argv) < 2:
        raise app.UsageError("Name at least one file of tflite/benchmark.py --output.")
    print_any_name()
    output = Path(flags.FLAGS.output).expanduser()
    try:
        rows = write_report(argv[1:], output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{output} and {output.with_suffix('.md')}")
    if not rows:
        print("Nothing was measured: the page says why.")


if __name__ == "__main__":
    flags.DEFINE_string("output", "latency.html", "The page that is written.")
    app.run(main)
