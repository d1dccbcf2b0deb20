"""How an ATA disk moves data: addresses, PIO and DMA, and what it does between a command and its end.

ATA/ATAPI-6 (T13/1410D), sections 6.2 (addresses), 9.5 to 9.7 (protocols); DATA SET MANAGEMENT is of ACS-2
(T13/2015-D).  What the guest reads by PIO is fetched ahead of it, in pieces of up to the buffer's size, but shown in
blocks as the command wants them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from pyvm.block.vectors import total
from pyvm.devices.ide import constants as c
from pyvm.devices.ide import smart
from pyvm.devices.ide.disk_state import BY_DMA, MAX_LBA, MAX_TRIM_SECTORS, Activity, DiskState, check_disk
from pyvm.devices.ide.drive import BUFFER_SIZE, TaskFileState, TransferState
from pyvm.devices.ide.real_drive import RealDrive
from pyvm.devices.scsi.steps import Step, Steps

if TYPE_CHECKING:
    pass

_BUFFER_SECTORS: Final = BUFFER_SIZE // c.SECTOR
_TRIM_ENTRY: Final = struct.Struct("<Q")  # first sector in 47:0, number of sectors in 63:48


class DiskTransfers(RealDrive):
    """The part of a disk that moves data.  `state` is what it is at first; `trims` whether it offers TRIM."""

    offers_trim: bool

    def _set_state(self, state: DiskState) -> None:
        self._activity = Activity(state.activity)
        self._lba = state.lba
        self._remaining = state.remaining
        self._block = state.block
        self._extended = state.extended
        self._durable = state.durable
        self._multiple = state.multiple
        self._mode = state.mode
        self._heads = state.heads
        self._sectors = state.sectors
        self._standby = state.standby
        self._asleep = state.asleep
        self._smart = smart.Smart(state.smart)
        self.backend.write_cache = state.write_cache

    @property
    def total(self) -> int:
        """The size in sectors."""
        return min(self.backend.size // c.SECTOR, MAX_LBA)

    # -- addresses --------------------------------------------------------------------------------------------------

    def _take_address(self, extended: bool) -> bool:
        """Take first sector and number of sectors from the task file; where they are not on the disk, fail."""
        registers, previous = self.registers, self.previous
        count = registers[c.COUNT]
        if extended:
            count |= previous[c.COUNT] << 8
            first = int.from_bytes(registers[c.LBA_LOW : c.DEVICE], "little")
            first |= int.from_bytes(previous[c.LBA_LOW : c.DEVICE], "little") << 24
            count = count or 1 << 16
        else:
            first = self._short_address()
            count = count or 256
        if not 0 <= first <= first + count <= self.total:
            self._lba = max(first, 0)
            self._remaining = count
            self.fail(c.IDNF)
            return False
        self._lba, self._remaining = first, count
        self._standby = False
        return True

    def _short_address(self) -> int:
        """Return the sector that a 28-bit or CHS address names, -1 where there is none such."""
        registers = self.registers
        head = registers[c.DEVICE] & c.DEVICE_HEAD
        low = registers[c.LBA_LOW]
        cylinder = registers[c.LBA_MID] | registers[c.LBA_HIGH] << 8
        if registers[c.DEVICE] & c.DEVICE_LBA:
            return low | cylinder << 8 | head << 24
        if head >= self._heads or not 1 <= low <= self._sectors:
            return -1
        return (cylinder * self._heads + head) * self._sectors + low - 1

    def _show_address(self, sector: int, extended: bool) -> None:
        """Put a sector's address into the task file, as an answer or to say where an error was."""
        registers, previous = self.registers, self.previous
        if extended:
            registers[c.LBA_LOW : c.DEVICE] = (sector & 0xFFFFFF).to_bytes(3, "little")
            previous[c.LBA_LOW : c.DEVICE] = (sector >> 24 & 0xFFFFFF).to_bytes(3, "little")
        elif registers[c.DEVICE] & c.DEVICE_LBA:
            registers[c.LBA_LOW : c.DEVICE] = (sector & 0xFFFFFF).to_bytes(3, "little")
            registers[c.DEVICE] = registers[c.DEVICE] & ~c.DEVICE_HEAD | sector >> 24 & c.DEVICE_HEAD
        else:
            track, place = divmod(sector, self._sectors)
            cylinder, head = divmod(track, self._heads)
            registers[c.LBA_LOW] = place + 1
            registers[c.LBA_MID : c.DEVICE] = (cylinder & 0xFFFF).to_bytes(2, "little")
            registers[c.DEVICE] = registers[c.DEVICE] & ~c.DEVICE_HEAD | head

    def _fail_at(self, error: int) -> None:
        """End the command with an error at the sector that the drive is at."""
        self._activity = Activity.NONE
        self._show_address(self._lba, self._extended)
        self.registers[c.COUNT] = self._remaining & 0xFF
        if self._extended:
            self.previous[c.COUNT] = self._remaining >> 8 & 0xFF
        self.fail(error)

    # -- PIO --------------------------------------------------------------------------------------------------------

    def start_pio(
        self, activity: Activity, *, extended: bool = False, multiple: bool = False, durable: bool = False
    ) -> None:
        """Read or write by PIO: `extended` by 48-bit addresses, in `multiple` sectors a block, `durable` at its end."""
        if multiple and not self._multiple:
            self.fail(c.ABRT)
            return
        if not self._take_address(extended):
            return
        self._extended = extended
        self._activity = activity
        self._block = self._multiple if multiple else 1
        self._durable = durable
        if activity is Activity.READ:
            self._fetch(_BUFFER_SECTORS)
        else:
            self.expect(min(self._block, self._remaining) * c.SECTOR, interrupt=False)

    def _fetch(self, limit: int) -> None:
        """Read the next sectors of the command, at most `limit`, into the buffer."""
        self.status = c.BUSY
        self.filled = min(self._remaining, limit) * c.SECTOR
        self.backend.read(self._lba * c.SECTOR, (self.view[: self.filled],), self.guarded(self._fetched))

    def _fetched(self, error: int) -> None:
        if not error:
            self.offer(0, min(self._block * c.SECTOR, self.filled))
        elif self.filled > c.SECTOR:
            self._fetch(1)  # find out which sector it is; those before can be read
        else:
            self._fail_at(c.UNC)

    def block_read(self) -> None:
        """The guest has read a block: show the next one."""
        if self._activity is not Activity.READ:
            self._activity = Activity.NONE
            self.status = c.READY
            return
        end = self.position
        start = (end - 1) // (self._block * c.SECTOR) * (self._block * c.SECTOR)
        done = min((end - start) // c.SECTOR, self._remaining)
        self._lba += done
        self._remaining -= done
        if not self._remaining:
            self._activity = Activity.NONE
            self.status = c.READY
        elif end < self.filled:
            self.offer(end, min(self._block * c.SECTOR, self.filled - end))
        else:
            self._fetch(_BUFFER_SECTORS)

    def block_written(self) -> None:
        """The guest has written a block: store it."""
        self.status = c.BUSY
        self.filled = self.position
        self.backend.write(self._lba * c.SECTOR, (self.view[: self.filled],), self.guarded(self._stored))

    def _stored(self, error: int) -> None:
        if error:
            self._fail_at(c.ABRT)
            return
        done = self.filled // c.SECTOR
        self._lba += done
        self._remaining -= done
        if self._remaining:
            self.expect(min(self._block, self._remaining) * c.SECTOR, interrupt=True)
        else:
            self._finish_write()

    def _reply(self, data: bytes) -> None:
        """Let the guest read 512 bytes that are not of the disk."""
        self._activity = Activity.REPLY
        self.filled = 0
        self.data[: len(data)] = data
        self.offer(0, len(data))

    # -- DMA --------------------------------------------------------------------------------------------------------

    def start_dma(self, activity: Activity, *, extended: bool = False, durable: bool = False) -> None:
        """Read or write by DMA."""
        if not self._take_address(extended):
            return
        self._extended = extended
        self._activity = activity
        self._durable = durable
        self._request_dma()

    def _request_dma(self) -> None:
        self.status = c.READY | c.DRQ
        self.bus.dma_request(self, self._remaining * c.SECTOR, to_memory=self._activity is Activity.READ_DMA)

    def dma_start(self, buffers: list[memoryview]) -> None:
        """Move the data of the command between the back end and guest memory."""
        if total(buffers) < self._remaining * c.SECTOR:
            # The table is too short: no interrupt tells of it (SFF-8038i, section 3.1).
            self._activity = Activity.NONE
            self.bus.dma_abort()
            self.status = c.READY
            return
        self.status = c.BUSY
        if self._activity is Activity.READ_DMA:
            self.backend.read(self._lba * c.SECTOR, buffers, self.guarded(self._moved))
        elif self._activity is Activity.WRITE_DMA:
            self.backend.write(self._lba * c.SECTOR, buffers, self.guarded(self._moved))
        else:
            self._trim(b"".join(buffers))

    def _moved(self, error: int) -> None:
        if error:
            self.bus.dma_abort()
            self._fail_at(c.UNC if self._activity is Activity.READ_DMA else c.ABRT)
            return
        self.bus.dma_complete()
        if self._activity is Activity.WRITE_DMA:
            self._finish_write()
        else:
            self._finish(0)

    def dma_failed(self) -> None:
        """End the command: the engine met memory that is not there."""
        self._fail_at(c.ABRT)

    def _finish_write(self) -> None:
        """End a write; one that is to be durable (FUA) flushes first."""
        if self._durable:
            self.flush()
        else:
            self._finish(0)

    def _finish(self, error: int) -> None:
        """End a command after the back end's last answer."""
        self._activity = Activity.NONE
        if error:
            self.fail(c.ABRT)
        else:
            self.succeed()

    # -- without a data register --------------------------------------------------------------------------------------

    def flush(self) -> None:
        """FLUSH CACHE."""
        self._activity = Activity.FLUSH
        self.status = c.BUSY
        self.backend.flush(self.guarded(self._finish))

    def verify(self, extended: bool) -> None:
        """READ VERIFY SECTORS: all of them are read, and dropped."""
        if self._take_address(extended):
            self._extended = extended
            self._activity = Activity.VERIFY
            self._run_verify()

    def _run_verify(self) -> None:
        self.status = c.BUSY
        Steps(self._verify_steps(), self.guarded(self._verified), self.still()).run()

    def _verify_steps(self) -> Iterator[Step]:
        """Read what is to be verified, piece by piece, and drop it."""
        while self._remaining:
            count = min(self._remaining, _BUFFER_SECTORS)

            def step(done: Callable[[int], None], offset: int = self._lba * c.SECTOR, count: int = count) -> None:
                self.backend.read(offset, (self.view[: count * c.SECTOR],), done)

            yield step
            self._lba += count
            self._remaining -= count

    def _verified(self, error: int) -> None:
        if error:
            self._fail_at(c.UNC)
        else:
            self._finish(0)

    def data_set_management(self) -> None:
        """DATA SET MANAGEMENT: TRIM."""
        count = self.registers[c.COUNT] | self.previous[c.COUNT] << 8
        trims = self.registers[c.FEATURES] == c.DSM_TRIM and self.offers_trim
        if not trims or not 1 <= count <= MAX_TRIM_SECTORS:
            self.fail(c.ABRT)
            return
        self._lba, self._remaining = 0, count
        self._extended = True
        self._activity = Activity.TRIM
        self._request_dma()

    def _trim(self, data: bytes) -> None:
        """Discard the ranges that `data` lists; those that adjoin go together."""
        ranges: list[tuple[int, int]] = []
        for (entry,) in _TRIM_ENTRY.iter_unpack(data):
            first, count = entry & (MAX_LBA - 1), entry >> 48
            if not count:
                continue
            if first + count > self.total:
                self.bus.dma_complete()
                self._fail_at(c.ABRT | c.IDNF)
                return
            if ranges and sum(ranges[-1]) == first:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + count)
            else:
                ranges.append((first, count))
        Steps(self._trim_steps(ranges), self.guarded(self._moved), self.still()).run()

    def _trim_steps(self, ranges: list[tuple[int, int]]) -> Iterator[Step]:
        for first, count in ranges:

            def step(done: Callable[[int], None], offset: int = first, length: int = count) -> None:
                self.backend.discard(offset * c.SECTOR, length * c.SECTOR, done)

            yield step

    # -- life -------------------------------------------------------------------------------------------------------

    def save(self) -> DiskState:
        """Return what is not in the task file; a request that the back end holds is started again by a load."""
        return DiskState(
            transfer=self._save_buffer(),
            activity=int(self._activity),
            lba=min(self._lba, MAX_LBA - 1),
            remaining=self._remaining,
            block=self._block,
            extended=self._extended,
            durable=self._durable,
            multiple=self._multiple,
            mode=self._mode,
            heads=self._heads,
            sectors=self._sectors,
            standby=self._standby,
            asleep=self._asleep,
            write_cache=self.backend.write_cache,
            smart=self._smart.save(),
        )

    def _save_buffer(self) -> TransferState:
        """Return the data register's state; a block on its way to the back end goes with it."""
        transfer = self.save_transfer()
        if self._activity is Activity.WRITE and self.status & c.BSY:
            transfer.data = bytes(self.view[: self.filled])
        return transfer

    def check(self, state: DiskState, file: TaskFileState) -> None:
        """Raise StateError unless the disk can be in `state`, its task file being `file`."""
        check_disk(state, file)

    def load(self, state: DiskState) -> None:
        """Take over a state that :meth:`check` has passed, and go on with what the disk was doing."""
        self._set_state(state)
        self.load_transfer(state.transfer)
        self._restart()

    def _restart(self) -> None:
        """Start again what the back end was working on, or what waits for the engine."""
        activity = self._activity
        if activity in BY_DMA:
            self._request_dma()
        elif not self.status & c.BSY:
            return
        elif activity is Activity.READ:
            self._fetch(_BUFFER_SECTORS)
        elif activity is Activity.WRITE and self.filled:
            self.position = self.filled
            self.block_written()
        elif activity is Activity.FLUSH:
            self.flush()
        elif activity is Activity.VERIFY:
            self._run_verify()
