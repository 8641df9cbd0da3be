"""Runs `python -m keras_mobilevit`."""

import importlib.util
import sys

from keras_mobilevit.command_line import make_parser
from keras_mobilevit.terminal import guard_terminal


def main() -> None:
    """Runs the command and exits with a message if it fails."""
    guard_terminal()
    if importlib.util.find_spec("PIL") is None:
        sys.exit("error: `predict` reads images with Pillow. Run `pip install pillow`.")
    from keras_mobilevit.predict import predict  # needs Pillow

    args = make_parser().parse_args()
    try:
        predict(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as a shell after Ctrl-C


if __name__ == "__main__":
    main()
