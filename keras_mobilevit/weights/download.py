"""Downloads files from plain addresses: Apple's detectors and ImageNet's class names.

`keras.utils.get_file` would wait forever for a server that does not answer.
"""

import hashlib
import http.client
import urllib.request
from pathlib import Path

from keras_mobilevit.files import atomic_write
from keras_mobilevit.weights import hub_cache

_CHUNK = 2**16  # bytes


def download(url: str, path: Path, max_bytes: int, md5: str | None = None) -> None:
    """Writes the content of an address to `path`, with a progress bar on a terminal.

    Raises an OSError, and writes nothing, if the server does not answer within seconds,
    if it sends more than `max_bytes` or less than it states, or if the content does not
    have the `md5`.
    """
    hub_cache.require_network(url)
    try:
        content = _read(url, path.name, max_bytes)
    except (TimeoutError, http.client.HTTPException) as error:
        raise OSError(f"The server does not answer as expected: {error!r}.") from error
    found = md5_of(content)
    if md5 not in (None, found):
        raise OSError(f"The server sends content with the MD5 {found}, not {md5}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def md5_of(content: bytes) -> str:
    """Returns the MD5 of a file's content, by which Keras knows its files."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read(url: str, name: str, max_bytes: int) -> bytes:
    from huggingface_hub.utils import tqdm

    content = bytearray()
    with urllib.request.urlopen(url, timeout=hub_cache.ANSWER_SECONDS) as answer:
        length = answer.headers.get("Content-Length", "")
        stated = int(length) if length.isdecimal() else None
        # `None` shows the bar on a terminal only.
        with tqdm(
            desc=name, total=stated, unit="B", unit_scale=True, disable=None
        ) as bar:
            while chunk := answer.read(_CHUNK):
                content += chunk
                bar.update(len(chunk))
                if len(content) > max_bytes:
                    raise OSError(
                        f"The server sends more than {max_bytes:,} bytes. {name} is "
                        "smaller."
                    )
    if stated not in (None, len(content)):
        raise OSError(
            f"The connection ended after {len(content):,} of {stated:,} bytes."
        )
    return bytes(content)
