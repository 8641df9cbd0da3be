"""Runs `python -m keras_mobilevit`."""

import importlib.util
import sys

from keras_mobilevit.command_line import INTERRUPTED, make_parser, raise_interrupts
from keras_mobilevit.terminal import guard_terminal


def _is_memory(error: Exception) -> bool:
    """Recognizes a lack of memory; TensorFlow and JAX have errors of their own."""
    return isinstance(error, MemoryError) or "ResourceExhausted" in type(error).__name__


def main() -> None:
    """Runs the command and exits with a message if it fails."""
    guard_terminal()
    if importlib.util.find_spec("PIL") is None:
        sys.exit("error: `predict` reads images with Pillow. Run `pip install pillow`.")
    from keras_mobilevit.predict import predict  # needs Pillow

    args = make_parser().parse_args()
    try:
        raise_interrupts()
        predict(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not _is_memory(error):
            raise
        sys.exit(
            "error: This machine has too little memory. End other programs, or use a "
            "smaller --size."
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
