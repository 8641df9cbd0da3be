"""Lays out numbers as a table of text."""


def format_cell(value: object) -> str:
    """Formats a value: floats with three digits, `-` for `None`."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return str(value)


def format_table(headings: list[str], rows: list[list]) -> str:
    """Lays out rows as text: first column left-aligned, the others right-aligned."""
    cells = [headings, *([format_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0])] + [*map(str.rjust, row[1:], widths[1:])])
        for row in cells
    )
