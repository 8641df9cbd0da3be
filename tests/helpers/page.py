"""The page of tflite/drivers/browser.py in Chromium, and small files for it."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import chromium
from tests.helpers.chromium import Chromium
from tflite.drivers import browser_server
from tflite.drivers.browser_server import BrowserOptions, PageServer
from tflite.formats.to_tflite import tflite_content

SIZE = 64  # side of the images that `converted` files take
WASM = BrowserOptions(accelerators=("wasm",), runs=2)
WEBGPU = BrowserOptions(accelerators=("webgpu",), runs=1, warmup_runs=1)


def _reason_to_skip() -> str:
    try:
        browser_server.runtime_version()
    except ValueError as error:
        return str(error)
    return "" if chromium.PROGRAM else "there is no Chromium (apt install chromium)"


needs_browser = pytest.mark.skipif(bool(_reason_to_skip()), reason=_reason_to_skip())


def converted(serve) -> bytes:
    """Converts a function from one image to `{name: output}`."""
    image = tf.TensorSpec((1, SIZE, SIZE, 3), name="images")
    return tflite_content(tf.function(serve, input_signature=[image]))


def write_file(path, content: bytes, **card) -> str:
    """Writes a .tflite and its card."""
    path.write_bytes(content)
    path.with_suffix(".json").write_text(json.dumps(card))
    return str(path)


def write_png(path, pixels) -> None:
    path.write_bytes(tf.io.encode_png(np.uint8(pixels)).numpy())


def wait_until_done(page: Chromium, server: PageServer) -> None:
    """Opens the page and waits until it has measured every file."""
    page.call("Page.navigate", url=server.address)
    page.wait_for("document.getElementById('status')?.innerText.startsWith('Done')")


def choose_model(page: Chromium, index: int, text: str) -> str:
    """Chooses a file and waits for a status with a text. Returns the status."""
    page.evaluate(
        f"document.getElementById('model').value = {index};"
        "document.getElementById('model').dispatchEvent(new Event('change'))"
    )
    status = "document.getElementById('picture-status').innerText"
    return page.wait_for(f"{status}.includes({json.dumps(text)}) && {status}")


def found_items(page: Chromium) -> list[str]:
    """Returns the list of classes or objects that the page shows."""
    return page.evaluate("document.getElementById('found').innerText").split("\n")


def canvas_pixel(page: Chromium, x: float, y: float) -> list[int]:
    """Returns the color of the canvas at fractions of its size."""
    return page.evaluate(
        "(canvas => [...canvas.getContext('2d').getImageData("
        f"{x} * canvas.width, {y} * canvas.height, 1, 1).data.slice(0, 3)])"
        "(document.getElementById('preview'))"
    )
