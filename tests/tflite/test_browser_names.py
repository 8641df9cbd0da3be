"""The names to which the page's server answers. LiteRT.js is not needed."""

import contextlib
import http.client
import shutil
import ssl
import subprocess

import pytest

from tflite.drivers import browser_server
from tflite.drivers.browser_server import EVERY_ADDRESS, BrowserOptions, PageServer


@pytest.fixture
def start_server(monkeypatch):
    """Returns a function that starts a server whose page is one word."""
    monkeypatch.setattr(browser_server, "runtime_version", lambda: "0")
    monkeypatch.setattr(browser_server, "_routes", lambda files, config: {"": b"page"})
    started = []

    def start(**options) -> PageServer:
        started.append(PageServer([], BrowserOptions(**options)))
        return started[-1].__enter__()

    yield start
    for server in started:
        server.__exit__(None, None, None)


def status_of(connection, server, name: str) -> int:
    connection.request("GET", f"/{server.token}/", headers={"Host": name})
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("127.0.0.1:80", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("192.0.2.7", 403),
        ("", 403),
    ],
)
def test_without_a_certificate_names_are_refused(name, status, start_server):
    server = start_server()
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    with contextlib.closing(connection):
        assert status_of(connection, server, name) == status


def test_the_name_to_serve_on_is_answered_and_printed(start_server):
    server = start_server(host="localhost")
    assert server.address.startswith("http://localhost:")
    server.name = "Bench.example"  # which other machines resolve to this one
    assert server.is_called("bench.example:8080", "10.0.0.1")
    assert server.is_called("bench.example.", "10.0.0.1")
    assert server.is_called("10.0.0.1", "10.0.0.1")
    assert not server.is_called("other.example", "10.0.0.1")
    server.name = EVERY_ADDRESS
    assert not server.is_called("bench.example", "10.0.0.1")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
@pytest.mark.parametrize("name", ["bench.example:8443", "192.0.2.7", "127.0.0.1"])
def test_with_a_certificate_the_browser_has_compared_the_name(
    name, start_server, tmp_path
):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=bench.example", "-addext"),
            *("subjectAltName=DNS:bench.example", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    server = start_server(certificate=str(certificate), key=str(key))
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False  # the name does not resolve here
    address = server.server_address
    connection = http.client.HTTPSConnection(*address, context=context, timeout=10)
    assert status_of(connection, server, name) == 200
    connection.request("GET", "/wrong/", headers={"Host": name})
    assert connection.getresponse().status == 404
