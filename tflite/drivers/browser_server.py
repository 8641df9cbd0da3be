"""Serves the page that measures files with LiteRT.js (`tflite/web/`).

The page posts its results. The server has only the page, its runtime and the chosen
files. A request must know a random token and name this server's address; with a
certificate it may use any name.
"""

import contextlib
import dataclasses
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
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tflite.drivers.browser_files import page_constants, read_file
from tflite.drivers.browser_results import (
    ACCELERATORS,
    MAX_RUNS,
    BrowserMeasurement,
    PageFile,
    ResultLimits,
    parse_result,
)
from tflite.drivers.options import RunOptions, check_choices, option

WEB = Path(__file__).parents[1] / "web"
RUNTIME = WEB / "node_modules/@litertjs"
MAX_BODY = 512 * 1024  # bytes of a posted result
MAX_CONNECTIONS = 64  # at the same time; a browser opens six
TIMEOUT_S = 30  # for a connection that sends nothing
CLOSING_S = 1  # for the thread of a connection that is closed
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".tflite": "application/octet-stream",
}
# Threads and a fine clock need cross-origin isolation. No request may leave the server.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrowserOptions(RunOptions):
    """Options of `--target=browser`."""

    accelerators: tuple[str, ...] = option(ACCELERATORS, "Runtimes that run the files.")
    host: str = option(
        "127.0.0.1",
        "Address to serve on, or the name by which browsers reach this machine. "
        f"{EVERY_ADDRESS}: serve the whole local network.",
    )
    port: int = option(
        0, "TCP port to serve on. 0: any free port.", lower_bound=0, upper_bound=65535
    )
    certificate: str | None = option(
        None,
        "PEM file of a certificate, to serve HTTPS. Without it, browsers offer WebGPU "
        "and threads on localhost only.",
        is_path=True,
    )
    key: str | None = option(
        None, "PEM file of the certificate's private key.", is_path=True
    )
    browsers: int | None = option(
        None,
        "End after this many browsers have measured every file. Default: Ctrl-C ends.",
        lower_bound=1,
    )

    def __post_init__(self) -> None:
        """Raises a ValueError if an option does not fit."""
        check_choices("accelerators", self.accelerators, ACCELERATORS)
        if self.runs > MAX_RUNS:
            raise ValueError(
                f"A page measures at most {MAX_RUNS} runs. "
                f"Received: --runs={self.runs}."
            )
        if self.key and not self.certificate:
            raise ValueError("--key needs --certificate.")


def runtime_version() -> str:
    """Returns the version of LiteRT.js; raises a ValueError if it is not installed."""
    file = RUNTIME / "core/package.json"
    if not file.exists():
        raise ValueError(
            "LiteRT.js is not installed: run `npm ci --prefix tflite/web` in the "
            "checkout (`make web`)."
        )
    return json.loads(file.read_text("utf-8"))["version"]


def _routes(files: list[PageFile], config: dict) -> dict[str, Path | bytes]:
    """Returns everything that the server has, by its address below the token."""
    pages = [path for path in WEB.iterdir() if path.suffix in (".html", ".css", ".js")]
    routes: dict[str, Path | bytes] = {path.name: path for path in pages}
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
    """Answers one connection."""

    server: "PageServer"

    server_version, sys_version = "keras_mobilevit", ""
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing: the terminal is for results."""

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # the body may be unread
        self._answer(status, reason.encode(), "text/plain; charset=utf-8")

    def _answer(
        self, status: HTTPStatus, content: bytes, content_type: str, nonce: str = ""
    ) -> None:
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
        """Returns the path below the token. Answers and returns `None` without it."""
        host, own = self.headers.get("Host", ""), self.connection.getsockname()[0]
        if not self.server.is_called(host, own):
            self._refuse(HTTPStatus.FORBIDDEN, "This server has another address.")
            return None
        parts = self.path.partition("?")[0].split("/", 2)
        token, rest = (parts[1:] + ["", ""])[:2]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "The address is not complete.")
            return None
        self.server.strangers.remove(self.connection)
        return rest

    def do_GET(self) -> None:
        route = self._route()
        if route is None:
            return
        if self.path == f"/{self.server.token}":  # without the slash at the end
            self.send_response(HTTPStatus.MOVED_PERMANENTLY)
            self.send_header("Location", f"{self.path}/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        found = self.server.routes.get(route)
        if found is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
        nonce, suffix = "", Path(route or "index.html").suffix
        content = found if isinstance(found, bytes) else found.read_bytes()
        if suffix == ".html":
            nonce = secrets.token_urlsafe(16)
            content = content.replace(b"{nonce}", nonce.encode())
        self._answer(HTTPStatus.OK, content, CONTENT_TYPES[suffix], nonce)

    def do_POST(self) -> None:
        route = self._route()
        if route is None:
            return
        if route != "results":
            return self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length):
            return self._refuse(
                HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing."
            )
        if int(length) > MAX_BODY:
            return self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"A result has at most {MAX_BODY} bytes.",
            )
        try:
            self.server.take(self.rfile.read(int(length)), self.client_address[0])
        except ValueError as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        self._answer(HTTPStatus.NO_CONTENT, b"", "text/plain")


def _read_certificate(certificate: str, key: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # it does not name a missing file
        raise ValueError(
            f"The certificate {certificate} and key {key or certificate} cannot be "
            f"read: {error}."
        ) from error
    return context


class _Strangers:
    """The connections that have not shown the token yet, the oldest first."""

    def __init__(self) -> None:
        self._found: dict[int, socket.socket] = {}  # by identity: sockets are not equal
        self._lock = threading.Lock()

    def add(self, connection: socket.socket) -> None:
        with self._lock:
            self._found[id(connection)] = connection

    def remove(self, connection: socket.socket) -> None:
        with self._lock:
            self._found.pop(id(connection), None)

    def close_oldest(self) -> bool:
        """Ends the oldest connection and so its thread; false if none is left."""
        with self._lock:
            if not self._found:
                return False
            connection = self._found.pop(next(iter(self._found)))
            with contextlib.suppress(OSError):  # it has ended
                # Not SSLSocket's own, which would change what its thread still uses.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        return True


class PageServer(http.server.ThreadingHTTPServer):
    """Serves the page and collects its results, while the context lasts.

    Raises a ValueError if LiteRT.js is not installed, a file is not a classifier,
    detector or segmenter, the certificate cannot be read, or the port is in use.
    """

    daemon_threads = True
    request_queue_size = 2 * MAX_CONNECTIONS  # that wait to be accepted

    def __init__(self, paths: list[str], options: BrowserOptions):
        version = runtime_version()
        self.options = options
        self.files = [read_file(path, index) for index, path in enumerate(paths)]
        config = {
            "files": [file.description for file in self.files],
            "accelerators": list(options.accelerators),
            "num_threads": options.num_threads,
            "runs": options.runs,
            "warmup_runs": options.warmup_runs,
            "runtime_version": version,
            **page_constants(),
        }
        self.token = secrets.token_urlsafe(16)
        self.routes = _routes(self.files, config)
        self.results: queue.Queue[BrowserMeasurement] = queue.Queue()
        everything = len(self.files) * len(options.accelerators)
        self.limits = ResultLimits(everything)
        self.connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.strangers = _Strangers()
        context = None
        if options.certificate:
            context = _read_certificate(options.certificate, options.key)
        try:
            super().__init__((options.host, options.port), _Handler)
        except OSError as error:
            raise ValueError(
                f"Cannot serve on {options.host}:{options.port}: {error}."
            ) from error
        self.name, self.scheme = options.host, "https" if context else "http"
        if context:
            # Each connection does its handshake in its own thread.
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def is_called(self, host: str, own: str) -> bool:
        """Returns whether a request names this server.

        A foreign page can point its own name to our address (DNS rebinding). Its
        requests then carry that name in `host`. They do not know the token, which is
        the second protection. With HTTPS the browser has compared the name with the
        certificate, so any name is allowed. `own` is the address at which the request
        arrived.
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
        """Address of the page for a browser."""
        host, port = self.name, self.server_address[1]
        if host == EVERY_ADDRESS:
            host = _network_address()
        return f"{self.scheme}://{host}:{port}/{self.token}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Accepts a connection.

        If there are too many, it takes the place of the oldest that has not shown the
        token: anyone on the network can open connections and send a byte now and then.
        """
        is_free = self.connections.acquire(blocking=False)
        if not is_free and self.strangers.close_oldest():
            is_free = self.connections.acquire(timeout=CLOSING_S)
        if not is_free:
            self.shutdown_request(request)
            return
        self.strangers.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.strangers.remove(request)
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors of connections and TLS. Reports all others."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def take(self, content: bytes, address: str) -> None:
        """Adds a result that was posted from an address, or raises a ValueError."""
        result = parse_result(content, self.files, self.options.accelerators)
        self.limits.add(result, address, time.monotonic())
        self.results.put(result)

    def __enter__(self) -> "PageServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the server."""
        self.shutdown()
        self.server_close()


def _network_address() -> str:
    """Returns this machine's address on the network with the default route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
