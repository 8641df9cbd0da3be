"""Measuring in a browser: the server alone, and with headless Chromium."""

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from keras_mobilevit.drawing import class_color
from keras_mobilevit.litert import LiteRTModel
from keras_mobilevit.predict import load_image
from keras_mobilevit.preprocessing import resize_and_center_crop
from tests.helpers import chromium
from tests.helpers.chromium import Chromium
from tests.helpers.page import (
    WEBGPU,
    found_items,
    needs_browser,
    wait_until_done,
    write_png,
)
from tflite.drivers import browser, browser_server
from tflite.drivers.browser_files import page_constants
from tflite.drivers.browser_results import ResultLimits, parse_result
from tflite.drivers.browser_server import BrowserOptions, PageServer

ROOT = Path(__file__).parents[2]
try:
    browser_server.runtime_version()
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def server(tflite_file):
    options = BrowserOptions(runs=3, warmup_runs=1, browsers=1)
    with PageServer([str(tflite_file)], options) as running:
        yield running


def request(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    with contextlib.closing(connection):
        connection.request(
            method,
            path,
            body,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )
        response = connection.getresponse()
        return SimpleNamespace(
            status=response.status, headers=response.headers, text=response.read()
        )


def good_result(server) -> dict:
    return {
        "file": 0,
        "accelerator": "wasm",
        "error": "",
        "init_ms": 1.5,
        "first_ms": 4,
        "warmup_ms": 3.0,
        "times_ms": [1.0, 2.0, 6.0],
        "fully_accelerated": True,
        "num_threads": 1,
        "visit": "0.5",
        "output": server.files[0].outputs.tolist(),
        "device": {"user_agent": "Mozilla/5.0 (X11) Chrome/156.0", "model": "Pixel 8"},
    }


def test_the_page_is_small_and_closed(server):
    page = request(server, "GET", f"/{server.token}/")
    assert page.status == 200 and b"importmap" in page.text
    policy = page.headers["Content-Security-Policy"]
    nonce = re.search(rb'nonce="(.+?)"', page.text)[1].decode()
    assert "default-src 'none'" in policy and f"'nonce-{nonce}'" in policy
    assert page.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    own = {route for route in server.routes if not route.startswith("runtime/core")}
    sizes = [
        len(request(server, "GET", f"/{server.token}/{name}").text) for name in own
    ]
    size = sum(sizes) - Path(server.files[0].path).stat().st_size
    assert 5_000 < size < 60_000
    assert "https://" not in "".join(
        path.read_text()
        for path in browser_server.WEB.iterdir()
        if path.suffix == ".js"
    )


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/wrong/",
        "/wrong/config.json",
        "/{token}x/",
        "/{token}/package.json",
        "/{token}/../pyproject.toml",
        "/{token}/runtime/../../../pyproject.toml",
        "/{token}/%2e%2e/%2e%2e/pyproject.toml",
        "/{token}//etc/passwd",
        "/{token}/files/1.tflite",
    ],
)
def test_nothing_else_is_served(path, server):
    answer = request(server, "GET", path.replace("{token}", server.token))
    assert answer.status == 404 and len(answer.text) < 100


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8080", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.0.2.7", 403),
        ("", 403),
    ],
)
def test_foreign_names_of_this_address_are_refused(host, status, server):
    assert request(server, "GET", f"/{server.token}/", Host=host).status == status
    body = json.dumps(good_result(server) | {"visit": f"from {host}"}).encode()
    posted = request(server, "POST", f"/{server.token}/results", body, Host=host)
    assert posted.status == {200: 204, 403: 403}[status]
    if status == 200:
        assert server.results.get(timeout=10).status == "measured"
    assert server.results.empty()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": 1}, "no file 1"),
        ({"file": True}, "no file True"),
        ({"accelerator": "cpu"}, "no accelerator 'cpu'"),
        ({"times_ms": []}, "times_ms is not a list"),
        ({"times_ms": [-1]}, "times_ms has values outside"),
        ({"times_ms": [1, "2"]}, "values that are not numbers"),
        ({"times_ms": [1] * 10_001}, "times_ms is not a list of 1 to 10000"),
        ({"init_ms": None}, "init_ms is not a number"),
        ({"first_ms": 1e9}, "first_ms is 1000000000.0"),
        ({"output": [0.0, 10**400, 0.0]}, "output has values outside"),
        ({"output": [1.0]}, "output has 1 values. Expected: 3"),
        ({"num_threads": 0}, "num_threads is not a number from 1 to 256"),
        ({"num_threads": 1.5}, "num_threads is not a number from 1 to 256"),
        ({"device": "Pixel"}, "not an object with a device"),
        ({"device": {"model": "x" * 501}}, "model is not text of at most 500"),
        ({"error": 3}, "error is not text"),
    ],
)
def test_a_result_that_the_page_would_not_post_is_refused(change, message, server):
    body = json.dumps(good_result(server) | change).encode()
    answer = request(server, "POST", f"/{server.token}/results", body)
    assert answer.status == 400 and message in answer.text.decode()
    assert server.results.empty()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"x", {"Content_Length": str(browser_server.MAX_BODY + 1)}, 413),
        (b"", {"Content_Length": "-1"}, 411),
        (b"", {"Content_Length": "1e3"}, 411),
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"init_ms": NaN}', {}, 400),
        (b'{"init_ms": 1e999}', {}, 400),
        (b'{"init_ms": 1' + b"0" * 5000 + b"}", {}, 400),
    ],
)
def test_other_bodies_are_refused(body, headers, status, server):
    answer = request(server, "POST", f"/{server.token}/results", body, **headers)
    assert answer.status == status
    assert server.results.empty()
    assert request(server, "POST", f"/{server.token}/config.json", b"{}").status == 404
    assert request(server, "POST", "/wrong/results", b"{}").status == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=5,
)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_other_value_is_refused_or_harmless(server, data):
    result = good_result(server)
    name = data.draw(st.sampled_from(sorted(result)))
    content = json.dumps(result | {name: data.draw(JSON)}).encode()
    try:
        measurement = parse_result(content, server.files)
    except ValueError as error:
        assert str(error)
    else:
        assert measurement.device.isprintable()


def test_only_what_was_asked_for_is_taken_and_once(tflite_file):
    options = BrowserOptions(accelerators=("wasm",))
    with PageServer([str(tflite_file)], options) as server:
        path, result = f"/{server.token}/results", good_result(server)
        answers = [
            request(server, "POST", path, json.dumps(posted).encode())
            for posted in (result, result | {"accelerator": "webgpu"}, result)
        ]
        assert [answer.status for answer in answers] == [204, 400, 400]
        assert b"no accelerator 'webgpu'. Expected one of: wasm" in answers[1].text
        assert b"has posted this result before" in answers[2].text
        assert server.results.qsize() == 1


def test_results_come_at_most_as_fast_as_a_page_posts_them(server):
    parsed = parse_result(json.dumps(good_result(server)).encode(), server.files)
    limits, taken = ResultLimits(2), 0

    def add(seconds: float, address: str = "192.0.2.1") -> None:
        nonlocal taken
        taken += 1
        limits.add(dataclasses.replace(parsed, visit=str(taken)), address, seconds)

    for index in range(60):
        add(0.01 * index)
    with pytest.raises(ValueError, match="More than 60 results in 10 seconds"):
        add(9.9)
    add(9.9, "192.0.2.2")  # another phone
    add(10.05)
    limits = ResultLimits(10_000)
    for _ in range(10_000):
        add(0)
    with pytest.raises(ValueError, match="10000 results, the maximum"):
        add(100)


@pytest.mark.parametrize("start", [b"", b"G", b"GET / HTTP/1.1\r\nHost: "])
def test_slow_strangers_give_way_to_a_phone_with_the_token(start, server):
    strangers = [socket.create_connection(server.server_address) for _ in range(64)]
    try:
        for stranger in strangers:
            stranger.sendall(start)
        wait_for(lambda: server.connections._value == 0)
        started = time.monotonic()
        answer = request(server, "GET", f"/{server.token}/config.json")
        seconds = time.monotonic() - started
    finally:
        for stranger in strangers:
            stranger.close()
    assert answer.status == 200 and seconds < 2
    wait_for(lambda: server.connections._value == browser_server.MAX_CONNECTIONS)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_whoever_has_shown_the_token_keeps_the_place(server):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    strangers = []
    with contextlib.closing(connection):
        for _ in range(2):
            connection.request("GET", f"/{server.token}/config.json")
            assert connection.getresponse().read()
            strangers += [
                socket.create_connection(server.server_address) for _ in range(70)
            ]
            wait_for(lambda: server.connections._value == 0)
    for stranger in strangers:
        stranger.close()
    wait_for(lambda: server.connections._value == browser_server.MAX_CONNECTIONS)


def test_a_result_becomes_a_measurement(server):
    result = good_result(server)
    result["device"]["gpu"] = "Mali\x1b[31m"  # control characters are removed
    measurement = parse_result(json.dumps(result).encode(), server.files)
    assert (measurement.median_ms, measurement.mean_ms) == (2.0, 3.0)
    assert (measurement.runs, measurement.max_abs_difference) == (3, 0.0)
    assert measurement.device == "Pixel 8, X11, Chrome 156"
    assert measurement.gpu == "Mali[31m" and measurement.num_threads == 1
    refused = {"file": 0, "accelerator": "webgpu", "error": "no", "device": {}}
    measurement = parse_result(json.dumps(refused).encode(), server.files)
    assert (measurement.status, measurement.reason) == ("not measured", "no")


def test_a_browser_counts_when_it_has_measured_everything(server):
    result = good_result(server)
    refused = result | {"accelerator": "webgpu", "error": "no"}
    # The page is loaded again after the first result.
    posted = [result, result | {"visit": "1"}, refused | {"visit": "1"}]
    for each in posted:
        server.take(json.dumps(each).encode(), "192.0.2.1")
    received = list(browser.measurements(server))
    assert [m.status for m in received] == ["measured", "measured", "not measured"]


def test_the_page_has_the_constants_of_python(server):
    config = json.loads(request(server, "GET", f"/{server.token}/config.json").text)
    constants = json.loads(json.dumps(page_constants()))
    assert constants.items() <= config.items()
    colors = constants["drawing"]["colors"]
    assert colors == [list(class_color(label)) for label in range(len(colors))]


def test_an_address_without_its_end_leads_to_the_page(server):
    answer = request(server, "GET", f"/{server.token}")
    assert answer.status == 301
    assert answer.headers["Location"] == f"/{server.token}/"


def test_an_unusable_port_or_certificate_is_reported(server, tflite_file):
    host, port = server.server_address
    with pytest.raises(ValueError, match=f"Cannot serve on {host}:{port}: .*in use"):
        PageServer([str(tflite_file)], BrowserOptions(host=host, port=port))
    options = BrowserOptions(certificate="/x.pem", key="/y.pem")
    with pytest.raises(ValueError, match="The certificate /x.pem and key /y.pem"):
        PageServer([str(tflite_file)], options)
    with pytest.raises(ValueError, match="--key needs --certificate"):
        BrowserOptions(key="/y.pem")
    with pytest.raises(ValueError, match="at most 10000 runs. Received: --runs=10001"):
        BrowserOptions(runs=10_001)


def test_without_the_runtime_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(browser_server, "RUNTIME", tmp_path)
    with pytest.raises(ValueError, match="npm ci --prefix tflite/web"):
        browser_server.runtime_version()


@needs_browser
def test_chromium_measures_and_names_a_picture(server, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    write_png(tmp_path / "a.png", pixels)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with Chromium(tmp_path / "profile") as page:
        wait_until_done(page, server)
        wasm, webgpu = server.results.get(timeout=10), server.results.get(timeout=10)
        page.choose_file("#file", tmp_path / "a.png")
        page.wait_for("document.querySelectorAll('#found li').length")
        found = found_items(page)
        page.choose_file("#file", tmp_path / "b.png")
        error = page.wait_for("document.querySelector('.error')?.innerText")
        bars = page.evaluate("document.querySelectorAll('#results .bar').length")
        requests = page.requests
    assert wasm.status == "measured" and wasm.runs == 3
    assert wasm.max_abs_difference <= 1e-4
    assert wasm.fully_accelerated and "Chrome" in wasm.device
    assert webgpu.reason == "WebGPU finds no GPU." and bars == 1
    assert error == "This browser cannot read b.png as a picture."
    assert len(requests) > 8
    assert all(url.startswith(("data:", server.address)) for url in requests)

    model = LiteRTModel(server.files[0].path)
    shares = model.predict(pixels[None].astype("float32"))["probabilities"][0]
    expected = [f"class {i} {100 * shares[i]:.1f} %" for i in np.argsort(-shares)]
    assert found == expected


def photo_of_a_camera_on_its_side(path: Path) -> Path:
    """Writes a rotated photo. Upright it is bright above and dark below."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = (250, 200, 40)
    image = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    data = image.getexif()
    data[ExifTags.Base.Orientation] = 6
    image.save(path, exif=data, quality=95)
    return path


@needs_browser
def test_the_page_sees_photos_upright_as_the_training_does(tmp_path):
    inputs = keras.Input(batch_shape=(1, 32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.AveragePooling2D(16)(x)  # [2, 2, 3]: above, below
    x = keras.layers.Flatten()(x)
    head = keras.layers.Dense(2)  # without a card the output has logits
    model = keras.Model(inputs, head(x))
    above = np.repeat([1.0, 0.0], 6)
    head.set_weights([2 * np.stack([above, 1 - above], axis=1), np.zeros(2)])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    (tmp_path / "above.tflite").write_bytes(converter.convert())
    photo = photo_of_a_camera_on_its_side(tmp_path / "photo.jpg")
    file = str(tmp_path / "above.tflite")
    with PageServer([file], BrowserOptions(runs=1, warmup_runs=1)) as server:
        with Chromium(tmp_path / "profile") as page:
            wait_until_done(page, server)
            page.choose_file("#file", photo)
            page.wait_for("document.querySelectorAll('#found li').length")
            (first, _) = found_items(page)
    image = resize_and_center_crop(load_image(photo), (32, 32), 1.0)
    share = float(keras.ops.softmax(model(image[None]))[0, 0])
    assert share > 0.95  # 0.5 without the rotation
    best = re.fullmatch(r"class 0 (\S+) %", first)
    assert best and float(best[1]) == pytest.approx(100 * share, abs=0.3)


@needs_browser
def test_the_command_ends_when_a_browser_has_measured(tflite_file, tmp_path):
    output = tmp_path / "latency.jsonl"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tflite.benchmark", "--target=browser"),
            *(tflite_file, "--browsers=1", "--accelerators=wasm", "--runs=3"),
            *("--num_threads=2", f"--output={output}"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = iter(process.stderr.readline, "")
    address = next(found[1] for x in lines if (found := re.match("Open (.*)", x)))
    with Chromium(tmp_path / "profile") as page:
        page.call("Page.navigate", url=address)
        page.wait_for("document.getElementById('status')?.innerText.startsWith('Done')")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "tiny.tflite litert.js wasm x2" in stdout
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert record["status"] == "measured" and record["num_threads"] == 2
    assert record["max_abs_difference"] <= 1e-4


@needs_browser
@pytest.mark.slow
def test_webgpu_takes_the_graph_whole(tflite_file, tmp_path):
    """On SwiftShader, a software GPU."""
    files = [str(tflite_file)]
    with (
        PageServer(files, WEBGPU) as server,
        Chromium(tmp_path / "profile", chromium.SOFTWARE_WEBGPU) as page,
    ):
        wait_until_done(page, server)
        measurement = server.results.get(timeout=10)
    assert measurement.status == "measured" and measurement.fully_accelerated
    assert measurement.max_abs_difference <= 1e-3
    assert "swiftshader" in measurement.gpu
