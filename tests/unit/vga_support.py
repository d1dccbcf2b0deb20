"""What the display tests share: an adapter to program as a guest would, and QEMU's to compare with."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyvm.clock import ManualClock
from pyvm.devices.display.screendump import picture
from pyvm.devices.display.vga import Vga

QEMU = shutil.which("qemu-system-x86_64")
LFB = 0xE0000000
MMIO = 0xF0000000


class Adapter(Protocol):
    """A display adapter behind a bus."""

    def outb(self, port: int, value: int) -> None: ...
    def inb(self, port: int) -> int: ...
    def outw(self, port: int, value: int) -> None: ...
    def inw(self, port: int) -> int: ...
    def writeb(self, address: int, value: int) -> None: ...
    def readb(self, address: int) -> int: ...
    def fill(self, address: int, data: bytes) -> None:
        """Write memory, byte by byte where it is a window on planes."""

    def dump(self, address: int, length: int) -> bytes:
        """Read memory."""

    def screen(self) -> NDArray[np.uint8]:
        """Return what it shows."""


class Ours:
    """pyvm's adapter on a board of nothing else."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.vga = Vga(self.clock)

    def outb(self, port: int, value: int) -> None:
        self.vga.port_write(port - 0x3B0, 1, value)

    def inb(self, port: int) -> int:
        return self.vga.port_read(port - 0x3B0, 1)

    def outw(self, port: int, value: int) -> None:
        if port < 0x1D2:
            self.vga.dispi_write(port - 0x1CE, 2, value)
        else:
            self.outb(port, value & 0xFF)
            self.outb(port + 1, value >> 8)

    def inw(self, port: int) -> int:
        return self.vga.dispi_read(port - 0x1CE, 2)

    def writeb(self, address: int, value: int) -> None:
        if address >= MMIO:
            self.vga.mmio_write(address - MMIO, 1, value)
        elif address >= LFB:
            self.vga.vram.write(address - LFB, 1, value)
        else:
            self.vga.window_write(address - 0xA0000, 1, value)

    def readb(self, address: int) -> int:
        if address >= MMIO:
            return self.vga.mmio_read(address - MMIO, 1)
        if address >= LFB:
            return self.vga.vram.read(address - LFB, 1)
        return self.vga.window_read(address - 0xA0000, 1)

    def fill(self, address: int, data: bytes) -> None:
        if LFB <= address < MMIO:
            self.vga.vram.view[address - LFB : address - LFB + len(data)] = data
        else:
            for offset, value in enumerate(data):
                self.writeb(address + offset, value)

    def dump(self, address: int, length: int) -> bytes:
        if LFB <= address < MMIO:
            self.vga.sync_text()
            return bytes(self.vga.vram.view[address - LFB : address - LFB + length])
        return bytes(self.readb(address + offset) for offset in range(length))

    def screen(self) -> NDArray[np.uint8]:
        return picture(self.vga)


class Qemu:
    """QEMU's standard VGA, driven over its test protocol while the CPU stands still."""

    def __init__(self) -> None:
        assert QEMU is not None
        self._directory = tempfile.TemporaryDirectory()
        self._path = Path(self._directory.name)
        listeners = {name: socket.socket(socket.AF_UNIX) for name in ("qtest", "qmp")}
        for name, listener in listeners.items():
            listener.bind(str(self._path / name))
            listener.listen()
            listener.settimeout(60)
        command = [QEMU, "-machine", "pc", "-accel", "tcg", "-S", "-nodefaults", "-vga", "std", "-display", "none"]
        command += ["-qtest-log", os.devnull, "-qtest", f"unix:{self._path}/qtest"]
        command += ["-qmp", f"unix:{self._path}/qmp"]
        self._process = subprocess.Popen(command)
        streams = []
        for listener in listeners.values():
            connection, _ = listener.accept()
            streams.append(connection.makefile("rw", encoding="ascii", newline="\n"))
            connection.close()
            listener.close()
        self._qtest, self._qmp = streams
        self._qmp.readline()
        self.execute("qmp_capabilities")
        self._place_bars()

    def _place_bars(self) -> None:
        for register, value in ((0x10, LFB), (0x18, MMIO), (0x04, 3)):
            self._ask(f"outl 0xcf8 {0x80001000 | register:#x}")
            self._ask(f"outl 0xcfc {value:#x}")

    def config_read(self, register: int) -> int:
        self._ask(f"outl 0xcf8 {0x80001000 | register:#x}")
        return int(self._ask("inl 0xcfc"), 16)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._qtest.close()
        self._qmp.close()
        self._directory.cleanup()

    def _ask(self, line: str) -> str:
        self._qtest.write(line + "\n")
        self._qtest.flush()
        words = self._qtest.readline().split()
        assert words[0] == "OK", (line, words)
        return words[1] if len(words) > 1 else ""

    def execute(self, command: str, **arguments: Any) -> Any:
        self._qmp.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._qmp.flush()
        while True:
            message = json.loads(self._qmp.readline())
            if "event" not in message:
                return message

    def reset(self) -> None:
        assert "return" in self.execute("system_reset")
        self._place_bars()

    def outb(self, port: int, value: int) -> None:
        self._ask(f"outb {port:#x} {value:#x}")

    def inb(self, port: int) -> int:
        return int(self._ask(f"inb {port:#x}"), 16)

    def outw(self, port: int, value: int) -> None:
        self._ask(f"outw {port:#x} {value:#x}")

    def inw(self, port: int) -> int:
        return int(self._ask(f"inw {port:#x}"), 16)

    def writeb(self, address: int, value: int) -> None:
        self._ask(f"writeb {address:#x} {value:#x}")

    def readb(self, address: int) -> int:
        return int(self._ask(f"readb {address:#x}"), 16)

    def fill(self, address: int, data: bytes) -> None:
        self._ask(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def dump(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self._ask(f"read {address:#x} {length:#x}")[2:])

    def screen(self) -> NDArray[np.uint8]:
        path = self._path / "screen.ppm"
        reply = self.execute("screendump", filename=str(path))
        assert reply == {"return": {}}, reply
        return read_ppm(path.read_bytes())


def read_ppm(data: bytes) -> NDArray[np.uint8]:
    """Return the picture in a raw PPM file."""
    kind, size, depth, pixels = data.split(b"\n", 3)
    assert (kind, depth) == (b"P6", b"255")
    width, height = map(int, size.split())
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


# ---- Modes, as tables of registers

TEXT_CRTC = "5f4f50825581bf1f004f0d0e00000000 9c8e8f281f96b9a3ff"
MODES: dict[str, dict[str, str]] = {
    # misc; sequencer 1-4; CRTC; attribute controller; graphics controller: as the BIOS sets them
    "text": {
        "misc": "67",
        "seq": "00030002",
        "crtc": TEXT_CRTC,
        "atc": "000102030405140738393a3b3c3d3e3f0c000f0800",
        "gc": "0000000000100e0fff",
    },
    "text8": {
        "misc": "63",
        "seq": "01030002",
        "crtc": TEXT_CRTC,
        "atc": "000102030405140738393a3b3c3d3e3f08000f0000",
        "gc": "0000000000100e0fff",
    },
    "text40": {
        "misc": "67",
        "seq": "08030002",
        "crtc": "2d2728902ba0bf1f004f0d0e00000000 9c8e8f141f96b9a3ff",
        "atc": "000102030405140738393a3b3c3d3e3f0c000f0800",
        "gc": "0000000000100e0fff",
    },
    "mono": {
        "misc": "66",
        "seq": "00030002",
        "crtc": "5f4f50825581bf1f004f0d0e00000000 9c8e8f280d96b9a3ff",
        "atc": "00080808080808081018181818181818" + "0e000f0800",
        "gc": "0000000000100a0fff",
    },
    "cga4": {
        "misc": "63",
        "seq": "09030002",
        "crtc": "2d2728902b80bf1f00c100000000000 09c8e8f140096b9a2ff",
        "atc": "0013151702040607101112131415161701000300 00",
        "gc": "0000000000300f0fff",
    },
    "cga2": {
        "misc": "63",
        "seq": "01010006",
        "crtc": "5f4f50825480bf1f00c1000000000000 9c8e8f280096b9c2ff",
        "atc": "0017171717171717171717171717171701000100 00",
        "gc": "00000000000 00d0fff",
    },
    "ega": {
        "misc": "63",
        "seq": "090f0006",
        "crtc": "2d2728902b80bf1f00c0000000000000 9c8e8f140096b9e3ff",
        "atc": "000102030405060710111213141516170 1000f0000",
        "gc": "0000000000000 50fff",
    },
    "mode12": {
        "misc": "e3",
        "seq": "010f0006",
        "crtc": "5f4f508254800b3e0040000000000000 ea8cdf2800e704e3ff",
        "atc": "000102030405140738393a3b3c3d3e3f01000f0000",
        "gc": "0000000000000 50fff",
    },
    "mode13": {
        "misc": "63",
        "seq": "010f000e",
        "crtc": "5f4f50825480bf1f0041000000000000 9c8e8f284096b9a3ff",
        "atc": "000102030405060708090a0b0c0d0e0f41000f0000",
        "gc": "0000000000400 50fff",
    },
    "modex": {
        "misc": "e3",
        "seq": "010f0006",
        "crtc": "5f4f508254800d3e0041000000000000 ea8cdf2800e706e3ff",
        "atc": "000102030405060708090a0b0c0d0e0f41000f0000",
        "gc": "0000000000400 50fff",
    },
}


def set_mode(adapter: Adapter, name: str) -> None:
    """Program all registers of a mode, and switch the screen on."""
    table = {part: bytes.fromhex(text.replace(" ", "")) for part, text in MODES[name].items()}
    adapter.outb(0x3C2, table["misc"][0])
    base = 0x3D4 if table["misc"][0] & 1 else 0x3B4
    for index, value in enumerate(table["seq"], 1):
        adapter.outw(0x3C4, value << 8 | index)
    adapter.outw(base, 0x0011)
    for index, value in enumerate(table["crtc"]):
        adapter.outw(base, value << 8 | index)
    for index, value in enumerate(table["gc"]):
        adapter.outw(0x3CE, value << 8 | index)
    adapter.inb(base + 6)
    for index, value in enumerate(table["atc"]):
        adapter.outb(0x3C0, index)
        adapter.outb(0x3C0, value)
    adapter.outb(0x3C0, 0x20)
    adapter.outb(0x3C6, 0xFF)


def set_colours(adapter: Adapter, values: Iterable[int]) -> None:
    """Load the DAC."""
    adapter.outb(0x3C8, 0)
    for value in values:
        adapter.outb(0x3C9, value)


def load_font(adapter: Adapter, font: bytes, height: int, block: int = 0) -> None:
    """Load a font into plane 2, as a text mode's user does; the mode's registers are kept."""
    for port, index, value in ((0x3C4, 2, 4), (0x3C4, 4, 6), (0x3CE, 4, 2), (0x3CE, 5, 0), (0x3CE, 6, 4)):
        adapter.outw(port, value << 8 | index)
    data = b"".join(font[height * code : height * (code + 1)].ljust(32, b"\0") for code in range(256))
    adapter.fill(0xA0000 + 0x2000 * block, data)
    for port, index, value in ((0x3C4, 2, 3), (0x3C4, 4, 2), (0x3CE, 4, 0), (0x3CE, 5, 0x10), (0x3CE, 6, 0xE)):
        adapter.outw(port, value << 8 | index)


def dispi_mode(adapter: Adapter, width: int, height: int, depth: int, **more: int) -> None:
    """Set a mode of the Bochs display interface and switch the screen on."""
    numbers = {"virt_width": 6, "x": 8, "y": 9, "bank": 5}
    flags = more.pop("flags", 0x41)
    for index, value in ((4, 0), (1, width), (2, height), (3, depth), (4, flags)):
        adapter.outw(0x1CE, index)
        adapter.outw(0x1CF, value)
    for name, value in more.items():
        adapter.outw(0x1CE, numbers[name])
        adapter.outw(0x1CF, value)
    adapter.inb(0x3DA)
    adapter.outb(0x3C0, 0x20)
