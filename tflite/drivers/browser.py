"""Measures files in the browser of whoever opens the page that is served here.

The page (`tflite/web/`) runs them with LiteRT.js and posts what it measured. Nothing is
served but the page, its runtime and the chosen files, under a random token, and to
requests that name this very address; with a certificate any name is taken.
"""

import collections
import hmac
import http.server
import ipaddress
import json
import queue
import re
import secrets
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from tflite.drivers.browser_files import read_file
from tflite.drivers.browser_results import (
    ACCELERATORS,
    MAX_RUNS,
    PageFile,
    parse_result,
)
from tflite.drivers.measurement import Measurement

WEB = Path(__file__).parents[1] / "web"
RUNTIME = WEB / "node_modules/@litertjs"
MAX_BODY = 512 * 1024  # bytes of a posted result
MAX_CONNECTIONS = 64  # at once; a browser opens six
TIMEOUT_S = 30  # of a connection on which nothing comes

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".tflite": "application/octet-stream",
}
# Cross-origin isolation is what threads and a fine clock take. No request may leave.
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'wasm-unsafe-eval'; "
    "style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def runtime_version() -> str:
    """Returns the version of LiteRT.js that is installed.

    Raises:
        ValueError: if none is.
    """
    file = RUNTIME / "core/package.json"
    if not file.exists():
        raise ValueError(
            "LiteRT.js is not installed: run `npm ci --prefix tflite/web` in the "
            "checkout (`make web`)."
        )
    return json.loads(file.read_text("utf-8"))["version"]


def _routes(files: list[PageFile], config: dict) -> dict[str, Path | bytes]:
    """Returns everything that is served, by its address below the token."""
    pages = [path for path in WEB.iterdir() if path.suffix in (".html", ".css", ".js")]
    routes = {path.name: path for path in pages}
    routes[""] = routes.pop("index.html")
    routes["config.json"] = json.dumps(config).encode()
    for folder in ("core/dist", "core/wasm", "wasm-utils/dist"):
        for path in (RUNTIME / folder).iterdir():
            if path.suffix in (".js", ".wasm"):
                routes[f"runtime/{folder}/{path.name}"] = path
    for file in files:
        routes[file.description["url"]] = file.content
    return routes


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection; `server` is a `PageServer`."""

    server_version, sys_version = "keras_mobilevit", ""
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S

    def log_message(self, format, *arguments):
        """Keeps the terminal for results."""

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # its body may not have been read
        self._answer(status, reason.encode(), "text/plain; charset=utf-8")

    def _answer(self, status, content: bytes, content_type: str, nonce: str = ""):
        self.send_response(status)
        headers = HEADERS | {
            "Content-Type": content_type,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": POLICY.format(nonce=nonce),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _route(self) -> str | None:
        """Returns what is asked for below the token; refuses a stranger."""
        host, own = self.headers.get("Host", ""), self.connection.getsockname()[0]
        if not self.server.is_called(host, own):
            self._refuse(HTTPStatus.FORBIDDEN, "This server has another address.")
            return None
        parts = self.path.partition("?")[0].split("/", 2)
        token, rest = (parts[1:] + ["", ""])[:2]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "The address is not complete.")
            return None
        return rest

    def do_GET(self):
        route = self._route()
        if route is None:
            return
        if self.path == f"/{self.server.token}":  # typed by hand, without its end
            self.send_response(HTTPStatus.MOVED_PERMANENTLY)
            self.send_header("Location", f"{self.path}/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        found = self.server.routes.get(route)
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
            return
        nonce, suffix = "", Path(route or "index.html").suffix
        content = found if isinstance(found, bytes) else found.read_bytes()
        if suffix == ".html":
            nonce = secrets.token_urlsafe(16)
            content = content.replace(b"{nonce}", nonce.encode())
        self._answer(HTTPStatus.OK, content, CONTENT_TYPES[suffix], nonce)

    def do_POST(self):
        route = self._route()
        if route is None:
            return
        if route != "results":
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing.")
            return
        if int(length) > MAX_BODY:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"A result has at most {MAX_BODY} bytes.",
            )
            return
        try:
            self.server.take(self.rfile.read(int(length)))
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._answer(HTTPStatus.NO_CONTENT, b"", "text/plain")


def _read_certificate(certificate: str, key: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # of a missing file too, which it does not name
        raise ValueError(
            f"The certificate {certificate} and key {key or certificate} cannot be "
            f"read: {error}."
        ) from error
    return context


class PageServer(http.server.ThreadingHTTPServer):
    """Serves the page, and hands over what comes back.

    Args:
        paths: of the files that it measures.
        host: address of this machine on which it listens, or a name of it.
        port: likewise; 0 for any free one.
        accelerators: some of `ACCELERATORS`.
        num_threads: CPU threads; browsers give more than one to secure pages only.
        runs: measured inferences of each.
        warmup_runs: inferences before them.
        certificate, key: PEM files, for HTTPS.

    Raises:
        ValueError: if LiteRT.js is not installed, a file is no classifier, detector
            or segmenter, the certificate cannot be read, or it cannot listen there.
    """

    daemon_threads = True

    def __init__(
        self,
        paths: list[str],
        host: str = "127.0.0.1",
        port: int = 0,
        accelerators=ACCELERATORS,
        num_threads: int = 1,
        runs: int = 50,
        warmup_runs: int = 5,
        certificate: str | None = None,
        key: str | None = None,
    ):
        version = runtime_version()
        if runs > MAX_RUNS:
            raise ValueError(f"A page measures at most {MAX_RUNS} times, not {runs}.")
        self.files = [read_file(path, index) for index, path in enumerate(paths)]
        self.accelerators = tuple(accelerators)
        config = {
            "files": [file.description for file in self.files],
            "accelerators": list(accelerators),
            "num_threads": num_threads,
            "runs": runs,
            "warmup_runs": warmup_runs,
            "runtime_version": version,
        }
        self.token = secrets.token_urlsafe(16)
        self.routes = _routes(self.files, config)
        self.results = queue.Queue()
        self.places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if key and not certificate:
            raise ValueError("The key is of no use without its certificate.")
        context = _read_certificate(certificate, key) if certificate else None
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ValueError(f"Cannot serve on {host}:{port}: {error}.") from error
        self.name, self.scheme = host, "https" if context else "http"
        if context:
            # The handshake waits for the thread of its connection.
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def is_called(self, host: str, own: str) -> bool:
        """Tells whether a request was meant for us.

        A foreign page can give its own name our address (DNS rebinding), and would
        then be asked by that name. It does not know the token, which alone would do.
        With HTTPS the browser has compared the name with the certificate, so that any
        name is right: a certificate that browsers trust is of a name, not an address.

        Args:
            host: what the request calls us, perhaps with a port.
            own: the address at which it came.
        """
        name = re.sub(r":\d+$", "", host).lower().rstrip(".")
        if not name:
            return False
        if self.scheme == "https" or name in ("localhost", self.name.lower(), own):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    @property
    def address(self) -> str:
        """Where the page is, for a browser."""
        host, port = self.name, self.server_address[1]
        if host == "0.0.0.0":  # noqa: S104  every address; name the one of the network
            host = _network_address()
        return f"{self.scheme}://{host}:{port}/{self.token}/"

    def process_request(self, request, client_address):
        """Takes a connection, if there are not too many."""
        if not self.places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request, client_address):
        """Passes over browsers that hang up; anything else is a defect."""
        if not isinstance(sys.exc_info()[1], OSError):  # of connections, time and TLS
            super().handle_error(request, client_address)

    def take(self, content: bytes) -> None:
        """Takes a posted result, or raises a ValueError."""
        self.results.put(parse_result(content, self.files))

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()


def _network_address() -> str:
    """Returns this machine's address on the network that leads out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


def measurements(server: PageServer, browsers: int | None) -> Iterator[Measurement]:
    """Yields results as they come.

    Args:
        server: that is running.
        browsers: after how many that have measured everything to stop; `None` for
            never. A page that was loaded again counts anew.
    """
    everything = len({file.path for file in server.files}) * len(server.accelerators)
    seen, done = collections.defaultdict(set), 0
    while browsers is None or done < browsers:
        measurement = server.results.get()
        seen[measurement.visit].add((measurement.file, measurement.accelerator))
        done = sum(len(measured) == everything for measured in seen.values())
        yield measurement
