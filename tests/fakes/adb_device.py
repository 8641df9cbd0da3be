"""A fake Android device on 127.0.0.1 for the real adb server.

`FakeAdbDevice` speaks adb's wire protocol (AOSP, packages/modules/adb: protocol.txt,
SYNC.TXT), without what only newer devices have. Shell commands run on this machine, in
a folder that contains the device's files. Speed, heat and the ARM processor are not
imitated.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import shlex
import signal
import struct
import threading
from pathlib import Path

TMP = "/data/local/tmp"
FEATURES = "cmd"  # neither exit codes nor a separate stderr
PROPERTIES = {
    "ro.product.name": "husky",
    "ro.product.model": "Pixel 8 Pro",
    "ro.product.device": "husky",
    "ro.product.manufacturer": "Google",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.soc.manufacturer": "Google",
    "ro.soc.model": "Tensor G3",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
    "ro.build.fingerprint": (
        "google/husky/husky:15/AP3A.241005.015/12366759:user/release-keys"
    ),
}
DUMPSYS = {
    "battery": """Current Battery Service state:
  USB powered: true
  level: 84
  scale: 100
  voltage: 4263
  temperature: 291
""",
    "thermalservice": """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=29.1, mType=2, mName=battery, mStatus=0}
HAL Ready: true
""",
}
# Programs that the device has and this machine may lack. ROOT is the device's folder.
PROGRAMS = {
    "getprop": """if [ $# -gt 0 ]; then
  sed -n "s/^\\[$1\\]: \\[\\(.*\\)\\]$/\\1/p" ROOT/getprop.txt
else
  cat ROOT/getprop.txt
fi""",
    "dumpsys": """cat "ROOT/dumpsys/$1.txt" 2>/dev/null || {
  echo "Can't find service: $1" >&2
  exit 20
}""",
    "taskset": 'echo "$1" >> ROOT/taskset.log\nshift\nexec "$@"',
    "nproc": "echo 9",
}

_HEADER = struct.Struct("<4s5I")  # command, two arguments, length, checksum, magic
_SYNC = struct.Struct("<4sI")  # request, length
_VERSION, _MAX_DATA = 0x01000001, 1 << 20
_AUTH_TOKEN, _AUTH_PUBLIC_KEY = 1, 3
_SYNC_CHUNK = 64 * 1024


class FakeAdbDevice:
    """A device that `adb connect` reaches at `address`, while the context lasts.

    Args:
        folder: on this machine, with the device's files.
        dumpsys: output by service, in place of that in `DUMPSYS`.
        require_auth: the device never accepts a key.

    Attributes:
        pushed_bytes: size of all pushes.
        free_bytes: free space on the device; `None` for no limit.
        drop_when: predicate of a shell command, or of "SEND <path>" or "RECV <path>".
            The device starts such an action and then goes offline.
        online: whether the device answers.
    """

    def __init__(self, folder, dumpsys=None, require_auth=False):
        self.folder = Path(folder)
        self.require_auth = require_auth
        self.pushed_bytes = 0
        self.free_bytes = self.drop_when = None
        self.online = True
        self._connections = {}  # writer by task
        self._write_files(DUMPSYS | (dumpsys or {}))

    def _write_files(self, dumpsys: dict):
        for name in (TMP[1:], "bin", "dumpsys"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        lines = [f"[{name}]: [{value}]\n" for name, value in PROPERTIES.items()]
        (self.folder / "getprop.txt").write_text("".join(lines))
        for service, text in dumpsys.items():
            (self.folder / "dumpsys" / f"{service}.txt").write_text(text)
        for name, script in PROGRAMS.items():
            program = self.folder / "bin" / name
            root = shlex.quote(str(self.folder))
            program.write_text("#!/bin/sh\n" + script.replace("ROOT", root) + "\n")
            program.chmod(0o755)

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    def __exit__(self, *_):
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _close(self):
        self._server.close()
        for writer in self._connections.values():
            writer.transport.abort()  # which ends its task
        await asyncio.gather(*self._connections)

    async def _accept(self, reader, writer):
        self._connections[asyncio.current_task()] = writer
        try:
            if self.online:
                await _Connection(self, reader, writer).serve()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client or the device has disconnected
        finally:
            writer.close()
            del self._connections[asyncio.current_task()]

    @property
    def banner(self) -> bytes:
        names = ("ro.product.name", "ro.product.model", "ro.product.device")
        properties = "".join(f"{name}={PROPERTIES[name]};" for name in names)
        return f"device::{properties}features={FEATURES}".encode()

    def locate(self, path: str) -> Path:
        """Returns this machine's path of a file that the shell user may access."""
        path = Path(os.path.normpath(path))
        if not path.is_relative_to(TMP):
            raise PermissionError(errno.EACCES, "Permission denied")
        return self.folder / path.relative_to("/")

    def store(self, size: int):
        """Takes `size` bytes of the free space."""
        self.pushed_bytes += size
        if self.free_bytes is not None:
            if size > self.free_bytes:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.free_bytes -= size

    def drops(self, action: str) -> bool:
        return bool(self.drop_when and self.drop_when(action))

    async def start(self, command: str):
        """Starts a shell command as the leader of a process group."""
        environment = os.environ | {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "LC_ALL": "C",
        }
        # The second line keeps sh from exec'ing the command, so that sh names signals.
        script = command.replace(TMP, f"{self.folder}{TMP}") + "\nexit $?"
        return await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", script),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self.folder,
            env=environment,
            start_new_session=True,
        )


async def _cancel(tasks):
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Connection:
    """One client's connection, which carries streams."""

    def __init__(self, device, reader, writer):
        self.device, self._reader, self._writer = device, reader, writer
        self._streams, self._tasks, self._ids = {}, set(), itertools.count(1)
        self.max_data = _MAX_DATA

    async def serve(self):
        try:
            while True:
                header = await self._reader.readexactly(_HEADER.size)
                command, first, second, length, _, _ = _HEADER.unpack(header)
                payload = await self._reader.readexactly(length)
                self._handle(command, first, second, payload)
        finally:
            await _cancel(self._tasks)

    def _handle(self, command, first, second, payload):
        if command == b"CNXN":
            self.max_data = min(second, _MAX_DATA)
            if self.device.require_auth:
                self.send(b"AUTH", _AUTH_TOKEN, 0, bytes(20))
            else:
                self.send(b"CNXN", _VERSION, _MAX_DATA, self.device.banner)
        elif command == b"AUTH" and first != _AUTH_PUBLIC_KEY:
            # It accepts no signature. The client then sends its public key, for which
            # nobody taps on the screen.
            self.send(b"AUTH", _AUTH_TOKEN, 0, bytes(20))
        elif command == b"OPEN":
            self._open(first, payload.rstrip(b"\0").decode())
        elif second in self._streams:
            stream = self._streams[second]
            if command == b"OKAY":
                stream.writable.set()
            elif command == b"WRTE":
                stream.incoming.put_nowait(payload)
            elif command == b"CLSE":
                stream.task.cancel()

    def _open(self, remote: int, service: str):
        kind, _, rest = service.partition(":")
        if kind == "sync":
            serve = _serve_sync
        elif kind == "shell":
            serve = _serve_shell
        else:
            self.send(b"CLSE", 0, remote)
            return
        local = next(self._ids)
        stream = self._streams[local] = _Stream(self, local, remote)
        self.send(b"OKAY", local, remote)
        stream.task = asyncio.create_task(self._serve_stream(stream, serve, rest))
        self._tasks.add(stream.task)

    async def _serve_stream(self, stream, serve, rest: str):
        try:
            await serve(self.device, stream, rest)
        finally:
            self._tasks.discard(stream.task)
            del self._streams[stream.local]
            self.send(b"CLSE", stream.local, stream.remote)

    def send(self, command: bytes, first: int, second: int, payload=b""):
        magic = int.from_bytes(command, "little") ^ 0xFFFFFFFF
        checksum = sum(payload) if command == b"CNXN" else 0
        header = _HEADER.pack(command, first, second, len(payload), checksum, magic)
        if not self._writer.is_closing():
            self._writer.write(header + payload)

    def drop(self):
        """Goes offline at once."""
        self.device.online = False
        self._writer.transport.abort()


class _Stream:
    """Two-way stream of a service. Sends a packet after the last one is confirmed."""

    def __init__(self, connection, local: int, remote: int):
        self.connection, self.local, self.remote = connection, local, remote
        self.incoming, self._rest, self.task = asyncio.Queue(), b"", None
        self.writable, self._turn = asyncio.Event(), asyncio.Lock()
        self.writable.set()

    async def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._rest += await self.incoming.get()
            self.connection.send(b"OKAY", self.local, self.remote)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def write(self, data: bytes):
        async with self._turn:
            for start in range(0, len(data), self.connection.max_data):
                await self.writable.wait()
                self.writable.clear()
                part = data[start : start + self.connection.max_data]
                self.connection.send(b"WRTE", self.local, self.remote, part)

    async def drop(self):
        """Goes offline, and never returns."""
        await self.writable.wait()  # until the client has what was written
        self.connection.drop()
        await asyncio.Future()  # until this is cancelled, as all of the connection is


async def _serve_shell(device, stream, command: str):
    drops = device.drops(command)
    process = await device.start(command)
    try:
        while data := await process.stdout.read(_SYNC_CHUNK):
            await stream.write(data)
            if drops:
                await stream.drop()
        await process.wait()
        if drops:
            await stream.drop()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _serve_sync(device, stream, _):
    while True:
        request, data = await _read_request(stream)
        if request == b"QUIT":
            return
        argument = data.decode()
        try:
            if request == b"STAT":
                await stream.write(_status(device, argument))
            elif request == b"SEND":
                await _receive_file(device, stream, *argument.rsplit(",", 1))
            elif request == b"RECV":
                await _send_file(device, stream, argument)
            else:
                raise RuntimeError(f"unknown command {request.hex()}")
        except RuntimeError as error:
            message = str(error).encode()
            await stream.write(_SYNC.pack(b"FAIL", len(message)) + message)
            while (await _read_request(stream))[0] == b"DATA":
                pass  # adbd also reads on until the client has seen the failure
            return


async def _read_request(stream):
    request, length = _SYNC.unpack(await stream.read(_SYNC.size))
    if request == b"DONE":
        return request, length  # time of the file
    return request, await stream.read(length)


def _status(device, path: str) -> bytes:
    try:
        status = device.locate(path).lstat()
    except OSError:
        status = os.stat_result([0] * 10)
    numbers = status.st_mode, status.st_size, int(status.st_mtime)
    return struct.pack("<4sIII", b"STAT", *numbers)


@contextlib.contextmanager
def _error_prefix(what: str):
    """Turns a file system error into adbd's message to the client."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"{what}: {error.strerror}") from error


async def _receive_file(device, stream, path: str, mode: str):
    drops = device.drops(f"SEND {path}")
    with _error_prefix("couldn't create file"):
        target = device.locate(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    with file, _error_prefix("write failed"):
        while (request := await _read_request(stream))[0] == b"DATA":
            if drops:
                await stream.drop()
            try:
                device.store(len(request[1]))
                file.write(request[1])
            except OSError:
                if device.free_bytes is not None:
                    device.free_bytes += file.tell()
                target.unlink()
                raise
    target.chmod(int(mode) & 0o777)
    os.utime(target, (request[1], request[1]))
    await stream.write(_SYNC.pack(b"OKAY", 0))


async def _send_file(device, stream, path: str):
    drops = device.drops(f"RECV {path}")
    with _error_prefix("open failed"):
        file = device.locate(path).open("rb")
    with file:
        while data := file.read(_SYNC_CHUNK):
            await stream.write(_SYNC.pack(b"DATA", len(data)) + data)
            if drops:
                await stream.drop()
    await stream.write(_SYNC.pack(b"DONE", 0))
