"""Peers that mean harm: streams of a machine in which something is not as its source wrote it.

    python -m tests.fuzz.stream_inputs [--seed N] [--seconds S]

Each case is made from its seed alone.  It is the stream of a machine, of which records were changed, left out, doubled,
put elsewhere or made up, and whose checksums are right unless they are what was changed.  A machine takes it in as from
any other connection.  Exit status 0 means that each one was taken, or refused with an error that says why.
"""

from __future__ import annotations

import argparse
import io
import random
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from pyvm.errors import ConfigError
from pyvm.migration import progress
from pyvm.migration.channel import Channel
from pyvm.migration.components import memory_of
from pyvm.migration.incoming import Incoming
from pyvm.migration.loop_calls import MainLoopCalls
from pyvm.migration.pages import DELTA, PLAIN, ZEROES, ZLIB, ZSTD, pack, pack_deltas, pack_pages
from pyvm.migration.stream import (
    DONE,
    PAGES,
    SECTION,
    START_ORDER,
    SYNC,
    Section,
    StreamWriter,
    pack_record,
)
from pyvm.migration.values import decode_value, encode_value
from pyvm.state import StateError
from tests.system.machine_rig import Machine

DEVICES = ("-vga", "std", "-device", "virtio-serial-pci", "-device", "virtio-balloon-pci")
OPTIONS = ("-smp", "2", *DEVICES, "-incoming", "defer")
PAGE = 4096
PATIENCE = 60.0
ANSWER_SECONDS = 0.2
"""How long a peer waits for an answer, which it may have forgotten to earn, before it hangs up."""
TOKEN = bytes(16)
JUNK: tuple[Any, ...] = (
    None, True, 0, 1, -1, 255, 1 << 31, 1 << 63, 1 << 70, 0.5, "", "x", "pc.ram", b"", b"\xff" * 64, [], [0] * 300,
    [["pc.ram", 1]], {}, {"x": 1}, {"state": "running"},
)  # fmt: skip
REFUSALS = (ConfigError, StateError, OSError)


class Record(NamedTuple):
    """One record of a stream, without its checksum."""

    kind: bytes
    flags: int
    body: bytes

    def packed(self) -> bytes:
        return pack_record(self.kind, self.body, flags=self.flags) + self.body


class Listening:
    """Where the connections of one case wait."""

    def __init__(self, streams: list[bytes], patient: bool) -> None:
        self.addresses: list[dict[str, Any]] = []
        self._streams = streams
        self._patient = patient
        self._peers: list[socket.socket] = []

    def accept(self) -> Channel:
        """Return the next connection: all that it will ever say was said."""
        if not self._streams:
            raise OSError("there are no more connections")
        here, peer = socket.socketpair()
        self._peers.append(peer)
        data = self._streams.pop(0)
        threading.Thread(target=self._say, args=(peer, data), daemon=True).start()
        return Channel(here.detach(), "socket", two_way=True)

    def _say(self, peer: socket.socket, data: bytes) -> None:
        with suppress(OSError):
            peer.sendall(data)
            if self._patient:
                peer.settimeout(ANSWER_SECONDS)
                peer.recv(1)
        with suppress(OSError):
            peer.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Nobody waits any more."""

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


class Guest:
    """The machine that streams are taken into; it keeps what it is told of the end."""

    def __init__(self, machine: Machine) -> None:
        self._migrations = machine.pc.migrations
        self._memory = memory_of(machine.pc)
        self.reason: str | None = None
        self.here = False

    def prepare(self) -> None:
        """All is loaded."""

    def memory(self) -> Mapping[str, memoryview]:
        return self._memory

    def check_header(self, header: Mapping[str, Any]) -> None:
        self._migrations.check_header(header)

    def load(self, header: Mapping[str, Any], sections: Mapping[str, Section]) -> None:
        self._migrations.load(header, sections)

    def arrived(self) -> None:
        self.here = True

    def lost(self, reason: str) -> None:
        self.reason = reason


class Watched(Incoming):
    """A migration that knows whether it was refused for a reason that there may be."""

    wrong: Exception | None = None

    def _run(self) -> None:
        try:
            super()._run()
        except REFUSALS:
            raise
        except Exception as error:
            self.wrong = error
            raise


def source_of(machine: Machine) -> tuple[dict[str, Any], list[Record]]:
    """Return what the stream of a machine has: its header, and its records."""
    migrations = machine.pc.migrations
    blocks = memory_of(machine.pc)
    header = {
        **migrations.header(),
        "ram": [[name, len(view)] for name, view in blocks.items()],
        "page-size": PAGE,
        "answers": False,
        "channels": 0,
        "token": TOKEN,
    }
    pages = [b"".join(map(bytes, pack_pages(PLAIN, 0, [(3, 2), (9, 1)], b"abcd" * (3 * PAGE // 4))))]
    pages.append(b"".join(map(bytes, pack_pages(ZEROES, 1, [(0, 5)]))))
    records = [Record(PAGES, 0, data[16:]) for data in pages]
    for section in migrations.sections():
        records.append(Record(SECTION, 0, _encoded(section)))
    return header, [*records, Record(DONE, 0, b"")]


def _encoded(section: Section) -> bytes:
    body: dict[str, Any] = {"name": section.name, "version": section.version, "fields": section.fields}
    if section.subsections:
        body["subsections"] = section.subsections
    return encode_value(body)


def places_of(value: Any) -> list[tuple[Any, Any]]:
    """Return every place within a value: what holds it, and under which key."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        found += [(one, key) for key in keys]
        waiting += [one[key] for key in keys]
    return found


class Source:
    """Makes the streams of one seed."""

    def __init__(self, seed: int, header: dict[str, Any], records: list[Record]) -> None:
        self._random = random.Random(seed)
        self._header = decode_value(encode_value(header))
        self._records = list(records)

    def streams(self) -> tuple[list[bytes], bool]:
        """Return what each connection says, the main one first, and whether their ends wait for an answer."""
        source = self._random
        for _ in range(source.choice((0, 1, 1, 1, 2, 4))):
            source.choice((self._spoil_header, self._spoil_section, self._spoil_section, self._spoil_body,
                           self._spoil_order, self._add_pages, self._add_record))()  # fmt: skip
        further: list[bytes] = []
        if source.random() < 0.25:
            further = self._further()
        patient = self._header.get("answers") is True
        if source.random() < 0.1:
            self._header["answers"], patient = True, True
            if source.random() < 0.8:
                self._records.append(Record(START_ORDER, 0, b""))
        file = io.BytesIO()
        StreamWriter(file, self._header)
        data = bytearray(file.getvalue() + b"".join(record.packed() for record in self._records))
        if source.random() < 0.15:
            self._damage(data)
        return [bytes(data), *further], patient

    def _further(self) -> list[bytes]:
        """Return the streams of more connections, not always as many as the header says."""
        source = self._random
        count = source.randint(1, 3)
        self._header["channels"] = count if source.random() < 0.8 else source.choice((255, 256, 0, -1))
        self._records.insert(source.randrange(len(self._records)), Record(SYNC, 0, b""))
        streams = []
        for number in range(count):
            said = bytearray(b"pyvmchan" + TOKEN + number.to_bytes(4, "little"))
            said += self._pages().packed() + Record(SYNC, 0, b"").packed()
            if source.random() < 0.8:
                said += Record(DONE, 0, b"").packed()
            if source.random() < 0.15:
                self._damage(said)
            streams.append(bytes(said))
        return streams

    def _damage(self, data: bytearray) -> None:
        source = self._random
        if source.random() < 0.3:
            del data[source.randrange(len(data)) :]
        elif data:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)

    def _put_junk(self, value: Any) -> None:
        holder, key = self._random.choice(places_of(value))
        before = holder[key]
        if self._random.random() < 0.2 and isinstance(holder, dict):
            del holder[key]
        elif isinstance(before, int) and self._random.random() < 0.5:
            holder[key] = before ^ 1 << self._random.randrange(64)
        else:
            holder[key] = self._random.choice(JUNK)

    def _spoil_header(self) -> None:
        if self._header:
            self._put_junk(self._header)

    def _spoil_section(self) -> None:
        numbers = [number for number, record in enumerate(self._records) if record.kind == SECTION]
        if not numbers:
            return
        number = self._random.choice(numbers)
        record = self._records[number]
        try:
            value = decode_value(record.body)
        except ValueError:
            return
        if places_of(value):
            self._put_junk(value)
        self._records[number] = record._replace(body=encode_value(value))

    def _spoil_body(self) -> None:
        number = self._random.randrange(len(self._records))
        body = bytearray(self._records[number].body)
        self._damage(body or bytearray(b"x"))
        self._records[number] = self._records[number]._replace(body=bytes(body))

    def _spoil_order(self) -> None:
        source, records = self._random, self._records
        record = records[source.randrange(len(records))]
        if source.random() < 0.5 and len(records) > 1:
            records.remove(record)
        if source.random() < 0.6:
            records.insert(source.randrange(len(records) + 1), record)

    def _add_record(self) -> None:
        source = self._random
        kind = source.choice((b"XXXX", b"\xff\0\xff\0", SYNC, SECTION, START_ORDER))
        body = source.choice((b"", b"[]", b"{}", b'{"base64": 1}', b"[" * 9000, b'{"name":"y","version":1,"fields":0}'))
        self._records.insert(source.randrange(len(self._records) + 1), Record(kind, source.randrange(2), body))

    def _add_pages(self) -> None:
        self._records.insert(self._random.randrange(len(self._records)), self._pages())

    def _pages(self) -> Record:
        """Return a record of pages: well-made ones, and some that promise what they do not hold."""
        source = self._random
        first = source.choice((0, 1, 4000, 4095, 4096, (1 << 32) - 1, source.randrange(4096)))
        count = source.choice((1, 1, 2, 16, 300, 1 << 31)) if source.random() < 0.3 else 1
        runs = [(first, count)] * source.choice((1, 1, 1, 0, 6))
        pages = min(sum(pages for _, pages in runs), 64)
        plain = source.randbytes(PAGE) * pages
        encoding = source.choice((PLAIN, ZEROES, ZLIB, ZSTD, DELTA, 9))
        if encoding in (ZLIB, ZSTD):
            data = pack(encoding, plain or b"x", 1)
        elif encoding == DELTA:
            data = pack_deltas(source.choice((b"", b"\0\0\4\0abcd", b"\xff\x0f\2\0ab", b"\0")) for _ in range(pages))
        else:
            data = plain if encoding == PLAIN else b""
        packed = pack_pages(encoding, source.choice((0, 0, 0, 1, 7)), runs, data)
        return Record(PAGES, 0, b"".join(map(bytes, packed[1:])))


def run_case(machine: Machine, seed: int, header: dict[str, Any], records: list[Record]) -> bool:
    """Let a machine take a stream in; return whether it did.  Raises AssertionError where it went wrong."""
    streams, patient = Source(seed, header, records).streams()
    guest = Guest(machine)
    incoming = Watched(guest, MainLoopCalls(lambda work: work()), Listening(streams, patient), lambda _: None)  # type: ignore[arg-type]
    incoming.start()
    incoming.join(PATIENCE)
    assert incoming.status in (progress.COMPLETED, progress.FAILED), f"case {seed} does not end"
    assert incoming.wrong is None, f"case {seed}: {incoming.wrong!r}"
    assert guest.here == (incoming.status == progress.COMPLETED), f"case {seed} has two ends"
    assert guest.here or guest.reason, f"case {seed} failed without a reason"
    return guest.here


def hunt(seed: int, seconds: float) -> tuple[int, int]:
    """Run the cases from `seed` on for some time; return how many there were, and how many were taken."""
    taken = cases = 0
    with Machine(*OPTIONS) as machine:
        header, records = source_of(machine)
        end = time.monotonic() + seconds
        while not cases or time.monotonic() < end:
            taken += run_case(machine, seed + cases, header, records)
            cases += 1
    return cases, taken


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="the first case (1)")
    parser.add_argument("--seconds", type=float, default=10, help="how long (10)")
    given = parser.parse_args()
    cases, taken = hunt(given.seed, given.seconds)
    print(f"{cases} streams, {taken} taken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
