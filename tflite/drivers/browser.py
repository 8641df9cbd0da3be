"""Measures files in every browser that opens a page."""

import collections
import contextlib
import io
import sys
from collections.abc import Iterator

from tflite.drivers.browser_results import BrowserMeasurement
from tflite.drivers.browser_server import BrowserOptions, PageServer, runtime_version
from tflite.drivers.measurement import print_progress


def check(options: BrowserOptions) -> None:
    """Raises a ValueError if LiteRT.js is not installed."""
    runtime_version()


def measurements(server: PageServer) -> Iterator[BrowserMeasurement]:
    """Yields results as they arrive.

    Ends after as many browsers as the options say have measured everything. A page
    that is loaded again starts again.
    """
    files = {file.path for file in server.files}
    everything = len(files) * len(server.options.accelerators)
    seen, done = collections.defaultdict(set), 0
    while server.options.browsers is None or done < server.options.browsers:
        measurement = server.results.get()
        seen[measurement.visit].add((measurement.file, measurement.accelerator))
        done = sum(len(measured) == everything for measured in seen.values())
        yield measurement


def _print_address(address: str, browsers: int | None) -> None:
    """Prints the page's address, also as a QR code for a phone."""
    with contextlib.suppress(ImportError):
        import segno

        from keras_mobilevit.terminal import write_unguarded  # loads Keras

        code = io.StringIO()
        segno.make(address).terminal(out=code, compact=True)
        write_unguarded(sys.stderr, code.getvalue())
    end = f"{browsers} browser(s) have measured" if browsers else "Ctrl-C"
    lines = [f"Open {address}", f"until {end}."]
    if address.startswith("https:"):
        lines.append("If the certificate has another name, use that name.")
    if not address.startswith(("https:", "http://127.")):
        lines.append(
            "Browsers give WebGPU and threads to HTTPS (--certificate) or localhost "
            "only; see docs/latency.md."
        )
        lines.append(
            "HTTP is not encrypted: on a shared Wi-Fi, others can read this address, "
            "open the page and post results."
        )
    print("\n".join(lines), file=sys.stderr, flush=True)


def measure(paths: list[str], options: BrowserOptions) -> Iterator[BrowserMeasurement]:
    """Serves the page and prints its results as they arrive."""
    with PageServer(paths, options) as server:
        _print_address(server.address, options.browsers)
        for measurement in measurements(server):
            print_progress(measurement)
            yield measurement
