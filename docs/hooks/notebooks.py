"""Makes a page of a notebook: its text, its code and its saved outputs."""

import json
from collections.abc import Iterator

PICTURES = ("image/png", "image/jpeg")


def _joined(text: str | list[str]) -> str:
    """Returns text that a notebook holds as a string or as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def _outputs(cell: dict) -> Iterator[str]:
    """Yields what a cell printed and drew, as Markdown."""
    for output in cell["outputs"]:
        data = output.get("data", {})
        found = [kind for kind in PICTURES if kind in data]
        if found:
            content = "".join(_joined(data[found[0]]).split())
            yield f"![output](data:{found[0]};base64,{content})"
        elif output["output_type"] == "stream":
            yield f"~~~~text\n{_joined(output['text']).strip()}\n~~~~"


def notebook_markdown(text: str) -> str:
    """Converts the JSON of a notebook to Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"~~~~python\n{source}\n~~~~", *_outputs(cell)]
    return "\n\n".join(parts) + "\n"
