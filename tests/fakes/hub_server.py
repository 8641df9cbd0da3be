"""A fake of the Hugging Face Hub on 127.0.0.1."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves `/<repository>/resolve/<revision>/<file>` by a redirect, like a CDN.

    It lists a repository's files at `/api/models/<repository>/revision/<revision>`.

    Attributes:
        files: content by `"<repository>/<file>"`.
        etags: ETags that replace a file's SHA-256, by the same names.
        sizes: sizes that are stated in place of the true ones, by the same names.
        commit: the commit that is stated; by default the true one.
        cut_after: number of bytes after which the next GET breaks off; or `None`.
        requests: (method, path, Range header) of each request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.etags, self.sizes, self.requests = {}, {}, {}, []
        self.commit, self.cut_after = None, None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_of(self, revision: str) -> str:
        return self.commit or (revision if len(revision) == 40 else COMMIT)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self):
        server = self.server
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.path.startswith("/api/models/"):
            self._list_files()
            return
        is_content = self.path.startswith("/cdn/")
        if is_content:
            name, revision = self.path.removeprefix("/cdn/"), COMMIT
        else:
            repository, _, rest = self.path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            name = f"{repository}/{file}"
        if name not in server.files:
            self._answer_missing("EntryNotFound", revision)
            return
        content = server.files[name]
        if is_content:
            self._send_content(content)
            return
        etag = server.etags.get(name, hashlib.sha256(content).hexdigest())
        self.send_response(302)
        # Another host, as with a CDN: the client reads the headers of this response.
        self.send_header(
            "Location", f"http://localhost:{server.server_port}/cdn/{name}"
        )
        self.send_header("ETag", '"git-object"')
        self.send_header("X-Linked-ETag", f'"{etag}"')
        self.send_header("X-Linked-Size", str(server.sizes.get(name, len(content))))
        self.send_header("X-Repo-Commit", server.commit_of(revision))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer_missing(self, code: str, revision: str):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", self.server.commit_of(revision))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list_files(self):
        path = self.path.removeprefix("/api/models/")
        repository, _, revision = path.partition("/revision/")
        prefix = f"{repository}/"
        names = [
            x.removeprefix(prefix) for x in self.server.files if x.startswith(prefix)
        ]
        if not names:
            self._answer_missing("RepoNotFound", revision)
            return
        answer = {
            "id": repository,
            "sha": self.server.commit_of(revision),
            "siblings": [{"rfilename": name} for name in names],
        }
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_content(self, content: bytes):
        start = 0
        if self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", whole)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(rest[:cut])
        if cut is not None:
            self.close_connection = True

    do_GET = do_HEAD = _answer

    def log_message(self, *args):
        pass


def replace_hub(monkeypatch, endpoint: str, cache) -> None:
    """Points the Hub's library to a server and to an empty cache."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@contextlib.contextmanager
def serve():
    """Runs a `HubServer` within the context."""
    server = HubServer()
    # The end of the server waits for one turn of this loop.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
