"""An Android device for the real `adb`, on 127.0.0.1.

`AdbDevice` speaks adb's wire protocol (AOSP, packages/modules/adb: protocol.txt,
SYNC.TXT, shell_protocol.h). Shell commands run on this machine, in a folder that plays
the device's. It is not fast, hot or of ARM: it stands for the device's behaviour alone.
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
FEATURES = ("shell_v2", "cmd", "stat_v2")
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
  AC powered: false
  USB powered: true
  Wireless powered: false
  Dock powered: false
  Max charging current: 500000
  Max charging voltage: 5000000
  Charge counter: 4212000
  status: 2
  health: 2
  present: true
  level: 84
  scale: 100
  voltage: 4263
  temperature: 291
  technology: Li-ion
""",
    "thermalservice": """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 3
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 4
\tkilled: false
\tbroadcasts count: -1
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=29.1, mType=2, mName=battery, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
\tTemperature{mValue=38.0, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=29.1, mType=2, mName=battery, mStatus=0}
\tTemperature{mValue=31.4, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
""",
}
# What the device has and this machine lacks. ROOT is the folder that plays the device.
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
    "logcat": "cat ROOT/logcat.txt 2>/dev/null || true",
    # The app gets the string after "args" as it is, and splits it at spaces.
    "am": """echo "$*" >> ROOT/am.log
[ "$1" = force-stop ] && exit
while [ "$1" != args ]; do shift; done
set -f
ROOT/app $2 >> ROOT/logcat.txt 2>&1""",
    "log": 'shift 2\necho "$*" >> ROOT/logcat.txt',
    "pidof": "true",
    "pm": 'echo "$*" >> ROOT/pm.log\necho Success',
}

_HEADER = struct.Struct("<4s5I")  # command, two arguments, length, checksum, magic
_SHELL = struct.Struct("<BI")  # kind, length
_SYNC = struct.Struct("<4sI")  # request, length
_STAT_V2 = struct.Struct("<4sIQQIIIIQqqq")
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_VERSION, _MAX_DATA = 0x01000001, 1 << 20
_AUTH_TOKEN, _AUTH_PUBLIC_KEY = 1, 3
_SYNC_CHUNK = 64 * 1024


class AdbDevice:
    """A device that `adb connect` reaches at `address`, while the context lasts.

    Args:
        folder: plays the device's file system, `/data/local/tmp` inside it.
        features: what the device offers. Without "shell_v2" exit codes are lost and
            stderr joins stdout, as on old devices.
        properties: put beside or in place of `PROPERTIES`.
        dumpsys: output by service, beside or in place of `DUMPSYS`.
        require_auth: whether nobody ever accepts the key on the device's screen.

    Attributes:
        commands: shell commands that came, as sent.
        pushed_files, pushed_bytes: device paths that came whole; bytes of all pushes.
        free_bytes: room on the device, which pushes use up; or `None`.
        drop_when: a predicate of a shell command or of "SEND <path>"/"RECV <path>".
            What it says yes to starts, then the device goes offline.
        online: whether the device answers. A dropped one does not, until set again.
    """

    def __init__(
        self,
        folder,
        features=FEATURES,
        properties=None,
        dumpsys=None,
        require_auth=False,
    ):
        self.folder = Path(folder)
        self.features = tuple(features)
        self.properties = PROPERTIES | (properties or {})
        self.require_auth = require_auth
        self.commands, self.pushed_files, self.pushed_bytes = [], [], 0
        self.free_bytes = self.drop_when = None
        self.online = True
        self._connections = {}  # writer by task
        self._furnish(DUMPSYS | (dumpsys or {}))

    def _furnish(self, dumpsys: dict):
        for name in (TMP[1:], "bin", "dumpsys"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        lines = [f"[{name}]: [{value}]\n" for name, value in self.properties.items()]
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
            pass  # the client went, or the device did
        finally:
            writer.close()
            del self._connections[asyncio.current_task()]

    @property
    def banner(self) -> bytes:
        names = ("ro.product.name", "ro.product.model", "ro.product.device")
        properties = "".join(f"{name}={self.properties[name]};" for name in names)
        return f"device::{properties}features={','.join(self.features)}".encode()

    def locate(self, path: str) -> Path:
        """Returns the file that plays `path`, which the shell user may touch."""
        path = Path(os.path.normpath(path))
        if not path.is_relative_to(TMP):
            raise PermissionError(errno.EACCES, "Permission denied")
        return self.folder / path.relative_to("/")

    def store(self, size: int):
        """Takes `size` bytes of the room that is left."""
        self.pushed_bytes += size
        if self.free_bytes is not None:
            if size > self.free_bytes:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.free_bytes -= size

    def drops(self, action: str) -> bool:
        return bool(self.drop_when and self.drop_when(action))

    async def start(self, command: str, stderr: int):
        """Starts a shell command, as the leader of a process group."""
        self.commands.append(command)
        environment = os.environ | {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "LC_ALL": "C",
        }
        # The second line keeps sh from exec'ing the command: so sh tells of signals.
        script = command.replace(TMP, f"{self.folder}{TMP}") + "\nexit $?"
        return await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
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
            # No signature will do; the client's last resort, its public key, waits for
            # a tap on the screen that never comes.
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
        elif kind == "exec" or kind.split(",")[0] == "shell":
            serve = _serve_shell_v2 if "v2" in kind.split(",") else _serve_shell
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
    """One service's two-way stream: a packet is sent when the last was confirmed."""

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


async def _serve_shell_v2(device, stream, command: str):
    def packet(kind, data):
        return _SHELL.pack(kind, len(data)) + data

    await _serve_command(device, stream, command, asyncio.subprocess.PIPE, packet)


async def _serve_shell(device, stream, command: str):
    def raw(kind, data):
        return data if kind == _STDOUT else b""

    await _serve_command(device, stream, command, asyncio.subprocess.STDOUT, raw)


async def _serve_command(device, stream, command: str, stderr: int, packet):
    drops = device.drops(command)
    process = await device.start(command, stderr)

    async def send_output(kind, pipe):
        while data := await pipe.read(_SYNC_CHUNK):
            await stream.write(packet(kind, data))
            if drops:
                await stream.drop()

    outputs = [send_output(_STDOUT, process.stdout)]
    if process.stderr:
        outputs.append(send_output(_STDERR, process.stderr))
        stdin = asyncio.create_task(_feed(stream, process.stdin))
    else:
        stdin = None  # of raw streams the end cannot be told
    try:
        await asyncio.gather(*outputs)
        code = await process.wait()
        if drops:
            await stream.drop()
        code = 128 - code if code < 0 else code
        await stream.write(packet(_EXIT, bytes([code])))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if stdin:
            await _cancel([stdin])
        process.stdin.close()
        await process.wait()


async def _feed(stream, stdin):
    while True:
        kind, length = _SHELL.unpack(await stream.read(_SHELL.size))
        data = await stream.read(length)
        if kind == _STDIN:
            stdin.write(data)
            with contextlib.suppress(ConnectionError):
                await stdin.drain()
        elif kind == _CLOSE_STDIN:
            stdin.close()


async def _serve_sync(device, stream, _):
    while True:
        request, data = await _read_request(stream)
        if request == b"QUIT":
            return
        argument = data.decode()
        try:
            if request in (b"STAT", b"STA2", b"LST2"):
                await stream.write(_status(device, request, argument))
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
                pass  # adbd too reads on, until the client has seen the failure
            return


async def _read_request(stream):
    request, length = _SYNC.unpack(await stream.read(_SYNC.size))
    if request == b"DONE":
        return request, length  # the file's time
    return request, await stream.read(length)


def _status(device, request: bytes, path: str) -> bytes:
    try:
        file, error = device.locate(path), 0
        s = os.stat(file, follow_symlinks=request == b"STA2")
    except OSError:
        s, error = os.stat_result([0] * 10), errno.ENOENT
    if request == b"STAT":
        return struct.pack("<4sIII", request, s.st_mode, s.st_size, int(s.st_mtime))
    node = (s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size)
    times = (int(s.st_atime), int(s.st_mtime), int(s.st_ctime))
    return _STAT_V2.pack(request, error, *node, *times)


@contextlib.contextmanager
def _told_as(what: str):
    """Turns an error of the file system into adbd's message to the client."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"{what}: {error.strerror}") from error


async def _receive_file(device, stream, path: str, mode: str):
    drops = device.drops(f"SEND {path}")
    with _told_as("couldn't create file"):
        target = device.locate(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    with file, _told_as("write failed"):
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
    device.pushed_files.append(path)
    await stream.write(_SYNC.pack(b"OKAY", 0))


async def _send_file(device, stream, path: str):
    drops = device.drops(f"RECV {path}")
    with _told_as("open failed"):
        file = device.locate(path).open("rb")
    with file:
        while data := file.read(_SYNC_CHUNK):
            await stream.write(_SYNC.pack(b"DATA", len(data)) + data)
            if drops:
                await stream.drop()
    await stream.write(_SYNC.pack(b"DONE", 0))
