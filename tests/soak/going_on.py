"""A guest that works hard is saved and goes on, is forked, and moves from machine to machine, again and again.

    python -m tests.soak.going_on [--saves N] [--moves N] [--memory MIB] [--seed N] [--directory DIR]

The guest has two processors.  It compresses and decompresses, starts processes, writes to its disk and reads back,
downloads and uploads, and compares the checksum of all that; an echo in it answers on a port of its own, byte for byte.
After each round the host looks at it:

* no checksum was wrong, and the kernel has nothing to complain of;
* the clock has not gone back, nor further than the host's, and the time of day goes with it;
* each byte that a machine took from the port has come back once and in order, whichever machine sent it;
* a file goes through the agent unchanged.

Rounds of different kinds follow one another: saved in a folder, with the images or with overlays; savevm and loadvm;
a fork, whose child goes on; a live migration over a unix socket.  Exit status 0 means that nothing was wrong.  What a
failed round leaves stays in the directory.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import random
import shutil
import socket
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from images.build import Image, build
from pyvm import Machine
from pyvm.agent import AgentFailure
from pyvm.block.create import create_image
from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.open import open_image
from tests.guest.support import boot_options, complaints

PATIENCE = 180.0
"""Seconds that anything may take on a machine that has much else to do."""
DISK_BYTES = 64 << 20
ECHO_PORT = "soak.0"
ECHO_BYTES = 12 << 10
FILE_BYTES = 24 << 10
CLOCK_SLACK = 0.1
"""Seconds that the guest's clock may seem ahead: it shows hundredths, and asking takes time."""
EVERY = 10
"""Rounds between two looks at what takes longer."""
OVERLAY_SHARE, DISK_SHARE = 0.5, 0.1
"""Of all that is saved: how much with overlays, and how much in the disk."""
FAST = 100 << 30
WAYS: tuple[dict[str, bool], ...] = (
    {"multifd": False, "xbzrle": False},
    {"multifd": True, "xbzrle": False},
    {"multifd": False, "xbzrle": True},
)

_WORK = {
    "compute": """
mkdir -p /tmp/c; find /lib/modules /bin /etc | sort | md5sum > /tmp/c/list
while true; do
    i=$((i + 1))
    dd if=/dev/urandom of=/tmp/c/a bs=64k count=6 2>/dev/null
    md5sum < /tmp/c/a > /tmp/c/sum
    gzip -c /tmp/c/a | gunzip -c | md5sum | cmp -s - /tmp/c/sum || echo "compute $i: gzip" >> /tmp/wrong
    find /lib/modules /bin /etc | sort | md5sum | cmp -s - /tmp/c/list || echo "compute $i: list" >> /tmp/wrong
    for word in 1 2 3 4 5 6 7 8; do
        [ "$(echo $word $i | sed 's/ .*//')" = $word ] || echo "compute $i: sed $word" >> /tmp/wrong
    done
    echo $i > /tmp/c/done; mv /tmp/c/done /tmp/compute
done
""",
    "disk": """
mkdir -p /tmp/d
while true; do
    i=$((i + 1)); slot=$((i % 32)); other=$((i * 7 % 32))
    dd if=/dev/urandom of=/tmp/d/new bs=64k count=8 2>/dev/null
    dd if=/tmp/d/new of=/dev/vda bs=512k seek=$slot conv=fsync 2>/dev/null || echo "disk $i: write" >> /tmp/wrong
    md5sum < /tmp/d/new > /tmp/d/$slot
    echo 1 > /proc/sys/vm/drop_caches
    for from in $slot $other; do
        [ -e /tmp/d/$from ] || continue
        dd if=/dev/vda bs=512k skip=$from count=1 2>/dev/null | md5sum | cmp -s - /tmp/d/$from ||
            echo "disk $i: slot $from" >> /tmp/wrong
    done
    echo $i > /tmp/d/done; mv /tmp/d/done /tmp/disk
done
""",
    "network": """
mkdir -p /tmp/n
while true; do
    # A connection does not outlive its machine: that is no error, but what was received whole is right.
    if timeout 6 wget -q -O /tmp/n/got http://10.0.2.2:@PORT@/; then
        i=$((i + 1))
        [ "$(md5sum < /tmp/n/got)" = "@SUM@  -" ] || echo "network $i: download" >> /tmp/wrong
        head -c 200000 /tmp/n/got | base64 > /tmp/n/text  # what it sends ends at a byte of zero
        if timeout 6 wget -q -O /tmp/n/sum --post-file=/tmp/n/text http://10.0.2.2:@PORT@/; then
            [ "$(cat /tmp/n/sum)  -" = "$(md5sum < /tmp/n/text)" ] || echo "network $i: upload" >> /tmp/wrong
        fi
        echo $i > /tmp/n/done; mv /tmp/n/done /tmp/network
    else
        usleep 100000
    fi
done
""",
    "echo": f"while true; do cat 0<>/dev/virtio-ports/{ECHO_PORT} 1>&0; usleep 10000; done",
}
_COUNTED = ("compute", "disk", "network")
_LOOK = f"""
cat /proc/uptime; grep btime /proc/stat
for name in {" ".join(_COUNTED)}; do cat /tmp/$name 2>/dev/null || echo 0; done
cat /tmp/wrong 2>/dev/null
"""


class WrongError(Exception):
    """Something is not as it should be."""


class Handler(BaseHTTPRequestHandler):
    """Serves some bytes, and answers what it is sent with the checksum of that."""

    protocol_version = "HTTP/1.0"
    content = b""

    def do_GET(self) -> None:
        self._answer(self.content)

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        found = hashlib.md5(usedforsecurity=False)
        while left and (part := self.rfile.read(min(left, 1 << 16))):
            found.update(part)
            left -= len(part)
        self._answer(found.hexdigest().encode())

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class has
        """Say nothing."""


class QuietServer(ThreadingHTTPServer):
    """Does not mind clients that go away."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: machines end while their guests are connected."""


@contextmanager
def http_server(content: bytes) -> Iterator[int]:
    """Serve `content`, and yield the port."""
    server = QuietServer(("127.0.0.1", 0), type("Content", (Handler,), {"content": content}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Echo:
    """The host's end of the port whose bytes all come back, whatever machine the guest is in."""

    def __init__(self, path: Path, source: random.Random) -> None:
        self._path = path
        self._random = source
        self._socket: socket.socket | None = None
        self._expected = bytearray()
        """What was sent, and has not come back yet."""
        self.total = 0

    def connected(self, start: Callable[[], Machine]) -> tuple[Machine, socket.socket]:
        """Start a machine, which waits for the connection, and return both."""
        self._path.unlink(missing_ok=True)
        found: list[socket.socket] = []
        ended = threading.Event()

        def connect() -> None:
            while not ended.is_set():
                client = socket.socket(socket.AF_UNIX)
                try:
                    client.connect(str(self._path))
                except OSError:
                    client.close()
                    time.sleep(0.002)
                else:
                    found.append(client)
                    return

        thread = threading.Thread(target=connect)
        thread.start()
        try:
            machine = start()
        finally:
            ended.set()
            thread.join()
        return machine, found[0]

    def use(self, connection: socket.socket) -> None:
        """The guest is in another machine from now on; the one before is gone, or stands still for good."""
        if self._socket is not None:
            self.collect(0.0)
            self._socket.close()
        self._socket = connection

    def send(self) -> None:
        """Send something, and return when the machine has taken all of it: what is back by then is another matter."""
        assert self._socket is not None
        data = self._random.randbytes(self._random.randrange(1, ECHO_BYTES))
        self._expected += data
        self._socket.sendall(data)
        until(lambda: self._unread() == 0, "the machine to take what it was sent")

    def _unread(self) -> int:
        assert self._socket is not None
        (count,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return int(count)

    def collect(self, seconds: float) -> None:
        """Compare what comes back within some time, or all of it."""
        assert self._socket is not None
        end = time.monotonic() + seconds
        while True:
            self._socket.settimeout(max(end - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return
            if not data:
                return
            if data != self._expected[: len(data)]:
                raise WrongError(f"the echo differs behind byte {self.total}: {len(data)} bytes")
            del self._expected[: len(data)]
            self.total += len(data)
            if not self._expected:
                return

    def settle(self) -> None:
        """Wait until all has come back."""
        if self._expected:
            self.collect(PATIENCE)
        if self._expected:
            raise WrongError(f"{len(self._expected)} bytes of the echo are lost behind byte {self.total}")


def until(question: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Ask until the answer is true.  Raises WrongError."""
    end = time.monotonic() + PATIENCE
    while not question():
        if time.monotonic() > end:
            raise WrongError(f"waited {PATIENCE:.0f} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.005)


class Guest:
    """The guest, in whichever machine it is; what it says is compared with what it said before."""

    def __init__(self, image: Image, directory: Path, memory: int, source: random.Random) -> None:
        self._random = source
        self.directory = directory
        self.disk = directory / "disk.qcow2"
        create_image(str(self.disk), "qcow2", DISK_BYTES, {})
        path = directory / "echo"
        self.echo = Echo(path, source)
        self.arguments = [
            *boot_options(image),
            *("-m", str(memory), "-smp", "2"),
            *("-drive", f"file={self.disk},if=none,id=d0,node-name=n0", "-device", "virtio-blk-pci,drive=d0"),
            *("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=echo,path={path},server=on,wait=on"),
            *("-device", f"virtserialport,chardev=echo,name={ECHO_PORT}"),
        ]
        self.vm = self._start(lambda: Machine(*self.arguments).start())
        self._counts: dict[str, int] = {}
        self._seen = (0.0, 0.0, 0.0)
        """The guest's uptime when it was last asked for, and the host's time before and after that."""
        self._btime = 0

    def _start(self, start: Callable[[], Machine]) -> Machine:
        machine, connection = self.echo.connected(start)
        self.echo.use(connection)
        return machine

    def work(self, port: int, checksum: str) -> None:
        """Let the guest begin its work."""
        self.vm.wait_agent(PATIENCE)
        for name, script in _WORK.items():
            filled = script.replace("@PORT@", str(port)).replace("@SUM@", checksum)
            self.vm.write_file(f"/tmp/{name}.sh", filled.encode())
            self.vm.run(f"sh /tmp/{name}.sh > /dev/null 2>&1 &")
        self.look_closely()

    def _has_worked(self, before: dict[str, int]) -> bool:
        """Return whether each part of the work has come further than `before`."""
        self.look()
        return all(self._counts.get(name, 0) > before.get(name, 0) for name in _COUNTED)

    # ---- Looking

    def look(self) -> None:
        """Ask the guest how it is.  Raises WrongError."""
        before = time.monotonic()
        lines = self.vm.run(_LOOK, timeout=PATIENCE, check=False).text.splitlines()
        after = time.monotonic()
        uptime, btime = float(lines[0].split()[0]), int(lines[1].split()[1])
        numbers = lines[2:5]
        if lines[5:]:
            raise WrongError(f"wrong in the guest: {lines[5:]}")
        self._counts = {name: int(number) for name, number in zip(_COUNTED, numbers, strict=False)}
        last, asked, _ = self._seen
        passed, real = uptime - last, after - asked
        if last and not 0 <= passed <= real + CLOCK_SLACK:
            raise WrongError(f"the guest's clock went on by {passed:.2f} s in {real:.2f} s")
        if self._btime and abs(btime - self._btime) > 1:
            raise WrongError(f"the time of day went {btime - self._btime} s ahead of the clock")
        self._seen, self._btime = (uptime, before, after), btime

    def look_closely(self) -> None:
        """Wait until each part of the work has come further, and look at the kernel's log.  Raises WrongError."""
        before = dict(self._counts)
        until(lambda: self._has_worked(before), lambda: f"the guest to work on from {before}: {self._counts}")
        found = complaints(self.vm.run("dmesg", timeout=PATIENCE).text)
        if found:
            raise WrongError(f"the kernel complains: {found[:4]}")

    def check(self) -> None:
        """All is as it should be in a machine that has just taken over.  Raises WrongError."""
        self.vm.wait_agent(PATIENCE)
        self.look()
        self.echo.settle()
        data = self._random.randbytes(self._random.randrange(1, FILE_BYTES))
        self.vm.write_file("/tmp/file", data)
        if self.vm.read_file("/tmp/file") != data:
            raise WrongError("a file did not go through the agent unchanged")

    @property
    def told(self) -> str:
        """How far the guest's work is."""
        return ", ".join(f"{name} {count}" for name, count in self._counts.items()) + f", echo {self.echo.total} B"

    # ---- Rounds

    def save_in_folder(self, number: int, disks: str) -> None:
        """Save, end, restore; the folder of the time before may go then."""
        folder = self.directory / f"saved-{number}"
        self.echo.send()
        self.vm.pause()
        self.vm.snapshot(folder)
        self.echo.collect(0.0)
        self.vm.stop()
        restored = Machine.restore(folder, disks="overlay" if disks == "overlay" else "images")
        self.vm = self._start(restored.start)
        self.vm.resume()  # whoever has moved was made to wait
        self.check()
        for path in self.directory.glob("saved-*"):
            if path != folder:
                shutil.rmtree(path)

    def save_in_disk(self) -> None:
        """Save, go on, and come back: what happened in between has not."""
        self.echo.settle()
        self._monitor("savevm one")
        seen = self._seen
        self.vm.run("echo later > /tmp/later")
        self._monitor("loadvm one")
        self._seen = seen
        self.check()
        if self.vm.run("cat /tmp/later", check=False).ok:
            raise WrongError("what happened behind savevm is still there after loadvm")
        self._monitor("delvm one")

    def _monitor(self, line: str) -> None:
        answer = self.vm.qmp("human-monitor-command", command_line=line)
        if answer:
            raise WrongError(f"{line}: {answer.strip()}")

    def fork(self) -> None:
        """Make two machines of one; the second one goes on."""
        self.echo.settle()
        parent = self.vm
        child, connection = self.echo.connected(parent.fork)
        try:
            parent.wait_agent(PATIENCE)
            parent.run("echo parent > /tmp/parent")
        finally:
            parent.stop()
        self.echo.use(connection)
        self.vm = child
        self.check()
        if self.vm.run("cat /tmp/parent", check=False).ok:
            raise WrongError("a fork sees what the other machine did")

    def move(self, number: int) -> None:
        """Move to another machine while the guest works."""
        way = WAYS[number % len(WAYS)]
        uri = f"unix:{self.directory}/move"
        words = [word for word in self.arguments if word != "-S"]
        target, connection = self.echo.connected(lambda: Machine(*words, "-S", "-incoming", uri).start())
        source = self.vm
        try:
            for machine in (source, target):
                states = [{"capability": name, "state": state} for name, state in way.items()]
                machine.qmp("migrate-set-capabilities", capabilities=states)
                machine.qmp("migrate-set-parameters", max_bandwidth=FAST, downtime_limit=1000)
            self.echo.send()
            source.qmp("migrate", uri=uri)
            until(lambda: self._has_moved(source), "the end of the migration")
            until(lambda: bool(target.qmp("query-status")["status"] == "paused"), "the machine")
        except BaseException:
            target.stop()
            raise
        self.echo.collect(0.0)
        source.stop()
        self.echo.use(connection)
        target.qmp("cont")
        self.vm = target
        self.check()

    @staticmethod
    def _has_moved(source: Machine) -> bool:
        figures = source.qmp("query-migrate")
        if figures["status"] == "failed":
            raise WrongError(f"the migration failed: {figures}")
        return bool(figures["status"] == "completed")


def check_image(path: Path) -> None:
    """Raise WrongError unless an image that nobody uses is in order."""
    image = open_image(str(path), read_only=True)
    assert isinstance(image, Qcow2Node)
    try:
        found = image.check()
    finally:
        image.release()
    if found.corruptions or found.leaks or found.check_errors:
        raise WrongError(f"{path.name}: {found.corruptions} errors, {found.leaks} leaks")


def plan(saves: int, moves: int, source: random.Random) -> Iterator[str]:
    """Yield the kinds of the rounds: first those in which the guest keeps its disk image, then those with overlays."""
    overlays, in_disk = int(saves * OVERLAY_SHARE), int(saves * DISK_SHARE)
    kinds = ["move"] * moves + ["disk"] * in_disk + ["images"] * (saves - overlays - in_disk)
    source.shuffle(kinds)
    yield from kinds
    forks = overlays // 20
    kinds = ["fork"] * forks + ["overlay"] * (overlays - forks)
    source.shuffle(kinds)
    yield from kinds


def run(guest: Guest, kinds: Iterator[str]) -> dict[str, int]:
    """Carry out all rounds, and return how many there were of each kind."""
    done: dict[str, int] = {}
    for number, kind in enumerate(kinds):
        start = time.monotonic()
        if kind == "move":
            guest.move(number)
        elif kind == "disk":
            guest.save_in_disk()
        elif kind == "fork":
            guest.fork()
        else:
            guest.save_in_folder(number, kind)
        done[kind] = done.get(kind, 0) + 1
        if number % EVERY == EVERY - 1:
            guest.look_closely()
        print(f"{number + 1} {kind}: {time.monotonic() - start:.2f} s; {guest.told}; {process()}", flush=True)
    guest.look_closely()
    return done


def process() -> str:
    """Return what this process has of the host."""
    status = Path("/proc/self/status").read_text()
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return f"{int(resident) >> 10} MiB, {len(os.listdir('/proc/self/fd'))} files, {threading.active_count()} threads"


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--saves", type=int, default=100, metavar="N", help="how often it is saved and goes on")
    parser.add_argument("--moves", type=int, default=20, metavar="N", help="how often it moves")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="the guest's memory")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--directory", type=Path, help="where files are made; a temporary one otherwise")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    source = random.Random(arguments.seed)
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="pyvm-soak-"))
    directory.mkdir(exist_ok=True)
    content = source.randbytes(1 << 20)
    guest = None
    try:
        guest = Guest(build("demo", quiet=True), directory, arguments.memory, source)
        with http_server(content) as port:
            guest.work(port, hashlib.md5(content, usedforsecurity=False).hexdigest())
            done = run(guest, plan(arguments.saves, arguments.moves, source))
            guest.vm.stop()
            check_image(guest.disk)
    except (WrongError, AgentFailure) as error:
        print(f"{type(error).__name__}: {error}\n{directory} is left", file=sys.stderr)
        return 1
    finally:
        if guest is not None:
            guest.vm.stop()
    shutil.rmtree(directory)
    print(", ".join(f"{count} {kind}" for kind, count in done.items()), "- nothing was wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
