"""The names of the networks, without loading Keras."""

import functools
import runpy
from pathlib import Path

# The import of the package loads Keras. The file with the table loads nothing.
_TABLE = Path(__file__).parents[2] / "keras_mobilevit" / "configs.py"


@functools.cache
def variant_names() -> tuple[str, ...]:
    """Returns the keys of `keras_mobilevit.VARIANTS`."""
    return tuple(runpy.run_path(str(_TABLE))["VARIANTS"])
