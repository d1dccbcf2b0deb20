"""The 8254x: EEPROM, transceiver, interrupts, frames both ways, offloads, filters, state, hostile drivers."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.e1000 import phy
from pyvm.devices.e1000 import registers as r
from pyvm.devices.e1000.card import E1000State
from pyvm.devices.e1000.eeprom import WORDS, Eeprom
from pyvm.devices.e1000.function import E1000Function
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.client import GSO_TCPV4, NEEDS_CSUM, Offload
from pyvm.net.nic import NicClient
from pyvm.state import StateError
from tests.unit.e1000_rig import BUFFERS, DONE, MAC, OTHER, RING_SIZE, TX_RING, Driver, frame

BROADCAST = b"\xff" * 6
SECOND = 1_000_000_000


def started(control: int = 0, **options: Any) -> Driver:
    driver = Driver(**options)
    driver.start(r.RCTL_EN | r.RCTL_BAM | control)
    driver.read(r.ICR)
    driver.levels.clear()
    return driver


def put_mdic(driver: Driver, number: int, operation: int, value: int = 0) -> int:
    driver.write(r.MDIC, operation | 1 << 21 | number << 16 | value)
    found = driver.read(r.MDIC)
    assert found & r.MDIC_READY
    return found & r.MDIC_DATA


# ---- EEPROM


def microwire(driver: Driver, bits: str, count: int = 0) -> list[int]:
    """Send a command bit by bit; return the words that come behind it."""
    base = r.EECD_REQ | r.EECD_CS

    def clock(bit: int) -> None:
        for pins in (0, r.EECD_SK):
            driver.write(r.EECD, base | pins | (r.EECD_DI if bit else 0))

    driver.write(r.EECD, base)
    for bit in bits:
        clock(int(bit))
    words = []
    for _ in range(count):
        word = 0
        for _ in range(16):
            clock(0)
            word = word << 1 | bool(driver.read(r.EECD) & r.EECD_DO)
        words.append(word)
    driver.write(r.EECD, 0)
    return words


def test_the_eeprom_holds_the_address_and_a_checksum() -> None:
    driver = Driver()
    words = microwire(driver, f"110{0:06b}", WORDS)
    assert b"".join(word.to_bytes(2, "little") for word in words[:3]) == MAC
    assert sum(words) & 0xFFFF == 0xBABA
    driver.write(r.EERD, 2 << 8 | r.EERD_START)
    assert driver.read(r.EERD) == words[2] << 16 | 2 << 8 | r.EERD_DONE
    driver.write(r.EERD, 200 << 8 | r.EERD_START)
    assert driver.read(r.EERD) == 200 << 8 | r.EERD_DONE


def test_the_eeprom_is_written_only_when_that_is_allowed() -> None:
    driver = Driver()
    write = f"101{5:06b}{0x1234:016b}"
    microwire(driver, write)
    assert microwire(driver, f"110{5:06b}", 1) == [0xFFFF]
    microwire(driver, "100110000")
    microwire(driver, write)
    assert microwire(driver, f"110{5:06b}", 1) == [0x1234]
    microwire(driver, f"111{5:06b}")
    assert microwire(driver, f"110{5:06b}", 1) == [0xFFFF]
    microwire(driver, "100000000")
    microwire(driver, write)
    assert microwire(driver, f"110{5:06b}", 1) == [0xFFFF]


# ---- Transceiver and link


def test_a_link_is_negotiated() -> None:
    driver = started()
    assert driver.read(r.STATUS) & r.STATUS_LU
    assert put_mdic(driver, phy.ID1, r.MDIC_READ) == 0x0141
    control = put_mdic(driver, phy.CONTROL, r.MDIC_READ)
    put_mdic(driver, phy.CONTROL, r.MDIC_WRITE, control | phy.CONTROL_RESTART)
    assert not driver.read(r.STATUS) & r.STATUS_LU
    assert driver.read(r.ICR) & r.CAUSE_LSC
    driver.clock.advance(SECOND)
    assert driver.read(r.ICR) & r.CAUSE_LSC
    assert driver.read(r.STATUS) & r.STATUS_LU
    assert put_mdic(driver, phy.STATUS, r.MDIC_READ) & phy.STATUS_COMPLETE


def test_a_cable_that_is_pulled_out_is_seen() -> None:
    driver = started()
    driver.card.link_changed(False)
    assert driver.read(r.ICR) & r.CAUSE_LSC
    assert not driver.read(r.STATUS) & r.STATUS_LU
    driver.peer.send(frame())
    assert driver.received() == []
    driver.card.link_changed(True)
    driver.clock.advance(SECOND)
    assert driver.read(r.STATUS) & r.STATUS_LU


def test_another_transceiver_is_not_there() -> None:
    driver = Driver()
    driver.write(r.MDIC, r.MDIC_READ | 2 << 21 | 1 << 16)
    assert driver.read(r.MDIC) & r.MDIC_ERROR


def test_frames_come_back_in_loopback() -> None:
    driver = started(control=r.RCTL_UPE)
    put_mdic(driver, phy.CONTROL, r.MDIC_WRITE, phy.CONTROL_LOOPBACK)
    driver.legacy(frame(OTHER))
    driver.kick()
    assert driver.sent() == []
    assert [data[:-4] for data, *_ in driver.received()] == [frame(OTHER)]


# ---- Interrupts


def test_causes_wait_for_their_mask_and_go_when_they_are_read() -> None:
    driver = Driver()
    driver.write(r.ICS, r.CAUSE_LSC | r.CAUSE_RXT0)
    assert driver.levels == []
    driver.write(r.IMS, r.CAUSE_LSC)
    assert driver.levels == [True]
    assert driver.read(r.IMS) == r.CAUSE_LSC
    driver.write(r.IMC, r.CAUSE_LSC)
    assert driver.levels == [True, False]
    assert driver.read(r.ICR) == r.CAUSE_LSC | r.CAUSE_RXT0
    assert driver.read(r.ICR) == 0
    driver.write(r.ICS, r.CAUSE_MDAC)
    driver.write(r.ICR, r.CAUSE_MDAC)
    assert driver.read(r.ICR) == 0


@pytest.mark.parametrize("mitigation", [True, False])
def test_interrupts_are_kept_apart(mitigation: bool) -> None:
    driver = started(mitigation=mitigation)
    driver.write(r.ITR, 1000)
    driver.write(r.ICS, r.CAUSE_LSC)
    driver.read(r.ICR)
    assert driver.levels == [True, False]
    driver.write(r.ICS, r.CAUSE_LSC)
    assert driver.line.level is not mitigation
    driver.clock.advance(1000 * r.ITR_TICK)
    assert driver.levels == [True, False, True]


def test_receive_interrupts_wait_for_more_frames_but_not_for_ever() -> None:
    driver = started()
    driver.write(r.RDTR, 10)
    driver.write(r.RADV, 25)
    for _ in range(4):
        driver.peer.send(frame())
        driver.clock.advance(8 * r.DELAY_TICK)
    assert driver.levels == [True]
    assert driver.read(r.ICR) == r.CAUSE_RXT0
    driver.peer.send(frame())
    driver.write(r.RDTR, 10 | r.RDTR_FPD)
    assert driver.read(r.ICR) == r.CAUSE_RXT0


def test_transmit_interrupts_are_put_off_where_descriptors_say_so() -> None:
    driver = started()
    driver.write(r.IMC, r.CAUSE_TXQE | r.CAUSE_TXD_LOW)
    driver.write(r.TIDV, 10)
    driver.legacy(frame(OTHER), DONE | r.TX_IDE)
    driver.kick()
    assert driver.levels == []
    driver.clock.advance(10 * r.DELAY_TICK)
    assert driver.levels == [True]
    driver.read(r.ICR)
    driver.legacy(frame(OTHER))
    driver.kick()
    assert driver.levels == [True, False, True]


# ---- Sending


def test_frames_are_sent_and_descriptors_written_back() -> None:
    driver = started()
    driver.legacy(frame(OTHER, 40)[:20], r.TX_RS)
    driver.legacy(frame(OTHER, 40)[20:])
    driver.kick()
    assert driver.sent() == [frame(OTHER, 40).ljust(60, b"\0")]
    assert [driver.memory.read(TX_RING + 16 * n + 12, 1) for n in range(3)] == [b"\1", b"\1", b"\0"]
    assert driver.read(r.ICR) & (r.CAUSE_TXDW | r.CAUSE_TXQE) == r.CAUSE_TXDW | r.CAUSE_TXQE
    assert driver.peer.batches


def test_nothing_is_sent_while_the_transmitter_is_off_or_may_not_access_memory() -> None:
    driver = started()
    driver.write(r.TCTL, 0)
    driver.legacy(frame(OTHER))
    driver.kick()
    assert driver.sent() == []
    driver.card.set_dma(False)
    driver.write(r.TCTL, r.TCTL_EN)
    assert driver.sent() == []
    driver.card.set_dma(True)
    assert driver.sent() == [frame(OTHER)]


def test_frames_wait_for_room_at_the_peer() -> None:
    driver = started()
    driver.peer.room = False
    for _ in range(3):
        driver.legacy(frame(OTHER))
    driver.kick()
    assert driver.read(r.TDH) == 1
    driver.peer.make_room()
    assert len(driver.sent()) == 3


def test_a_checksum_is_put_where_a_legacy_descriptor_says() -> None:
    driver = started()
    body = bytes(range(20))
    driver.legacy(frame(OTHER, 14) + body + b"\0\0", DONE | r.TX_IC, start=14, offset=34)
    driver.kick()
    (sent,) = driver.sent()
    assert int.from_bytes(sent[34:36], "big") == p.checksum(p.words_sum(body))


def test_tags_are_put_in_and_taken_out() -> None:
    driver = started()
    driver.write(r.CTRL, driver.read(r.CTRL) | r.CTRL_VME)
    driver.write(r.VET, 0x8100)
    driver.legacy(frame(OTHER), DONE | r.TX_VLE, special=0x2005)
    driver.kick()
    tagged = frame(OTHER)[:12] + b"\x81\x00\x20\x05" + frame(OTHER)[12:]
    assert driver.sent() == [tagged]
    driver.peer.send(MAC + tagged[6:])
    ((data, status, _, special),) = driver.received()
    assert data[:-4] == frame(MAC)[:6] + frame(OTHER)[6:]
    assert (bool(status & r.RX_VP), special) == (True, 0x2005)


def tcp_frame(payload: bytes, *, six: bool = False, flags: int = p.TCP_ACK | p.TCP_PSH) -> tuple[bytes, int, int]:
    """Return a frame as a driver prepares it for segmentation, where TCP begins, and the length of the headers."""
    source, target = (bytes(15) + b"\1", bytes(15) + b"\2") if six else (b"\x0a\0\0\1", b"\x0a\0\0\2")
    tcp = p.TCP.pack(1, 2, 1000, 2000, 5 << 4, flags, 500, p.pseudo_sum(source, target, p.PROTO_TCP, 0), 0)
    if six:
        head = p6.ipv6_header(source, target, p.PROTO_TCP, 0)
    else:
        head = p.IPV4.pack(0x45, 0, 0, 7, p.IP_DONT_FRAGMENT, 64, p.PROTO_TCP, 0, source, target)
    start = 14 + len(head)
    return OTHER + MAC + (b"\x86\xdd" if six else b"\x08\x00") + head + tcp + payload, start, start + p.TCP.size


def send_long(driver: Driver, payload: bytes, mss: int, *, six: bool = False) -> None:
    whole, start, header = tcp_frame(payload, six=six)
    command = r.TX_TSE | r.CONTEXT_TCP | (0 if six else r.CONTEXT_IP)
    fields = (14, 24, start - 1, start, start + 16, 0)
    driver.context(fields, len(payload), command, header, mss)
    options = r.POPTS_TXSM | (0 if six else r.POPTS_IXSM)
    driver.data(whole[:100], r.TX_TSE, options)
    driver.data(whole[100:], DONE | r.TX_TSE, options)
    driver.kick()


@pytest.mark.parametrize("six", [False, True])
def test_long_frames_are_cut(six: bool) -> None:
    driver = started()
    payload = bytes(range(250)) * 20
    send_long(driver, payload, 1400, six=six)
    frames = driver.sent()
    start = 54 if six else 34
    assert len(frames) == 4
    assert b"".join(item[start + 20 :] for item in frames) == payload
    for number, item in enumerate(frames):
        segment = item[start:]
        if six:
            length, source, target = p6.IPV6.unpack_from(item, 14)[1], item[22:38], item[38:54]
        else:
            fields = p.IPV4.unpack_from(item, 14)
            length, source, target = fields[2] - 20, fields[8], fields[9]
            assert fields[3] == 7 + number
            assert p.words_sum(item[14:34]) == 0
        assert length == len(segment)
        assert (p.pseudo_sum(source, target, p.PROTO_TCP, length) + p.words_sum(segment)) % 0xFFFF == 0
        assert int.from_bytes(segment[4:8], "big") == 1000 + number * 1400
        assert bool(segment[13] & p.TCP_PSH) == (number == 3)
    assert driver.read(r.TSCTC) == 1


def test_long_frames_go_whole_to_who_cuts_them_himself() -> None:
    driver = started(offloads=True)
    payload = bytes(5000)
    send_long(driver, payload, 1400)
    assert driver.peer.offload == [Offload(NEEDS_CSUM, GSO_TCPV4, 54, 1400, 34, 16)]
    (sent,) = driver.sent()
    fields = p.IPV4.unpack_from(sent, 14)
    assert fields[2] == len(sent) - 14
    assert p.words_sum(sent[14:34]) == 0
    assert int.from_bytes(sent[50:52], "big") == p.pseudo_sum(fields[8], fields[9], p.PROTO_TCP, 5020)


def test_a_plain_frame_gets_checksums_by_its_context() -> None:
    driver = started()
    whole, start, _ = tcp_frame(b"hello")
    driver.context((14, 24, start - 1, start, start + 16, 0), 0, r.CONTEXT_TCP | r.CONTEXT_IP)
    driver.data(whole, DONE, r.POPTS_TXSM | r.POPTS_IXSM)
    driver.kick()
    (sent,) = driver.sent()
    assert p.words_sum(sent[14:34]) == 0
    fields = p.IPV4.unpack_from(sent, 14)
    seed = p.pseudo_sum(fields[8], fields[9], p.PROTO_TCP, 0)
    assert (seed + p.words_sum(sent[34:59])) % 0xFFFF == 0


# ---- Receiving


def test_frames_are_received_with_their_check_sequence() -> None:
    driver = started()
    driver.peer.send(frame(size=42))
    ((data, status, errors, _),) = driver.received()
    padded = frame(size=42).ljust(60, b"\0")
    assert data == padded + zlib.crc32(padded).to_bytes(4, "little")
    assert (status, errors) == (r.RX_DD | r.RX_EOP | r.RX_IXSM, 0)
    assert driver.levels == [True]
    driver.write(r.RCTL, r.RCTL_EN | r.RCTL_SECRC)
    driver.peer.send(frame())
    assert driver.received()[0][0] == frame()


def test_a_full_ring_holds_frames_back() -> None:
    driver = started()
    for _ in range(RING_SIZE - 1):
        assert driver.peer.send(frame())
    assert not driver.peer.send(frame())
    assert driver.read(r.ICR) & (r.CAUSE_RXO | r.CAUSE_RXDMT0) == r.CAUSE_RXO | r.CAUSE_RXDMT0
    driver.give_back()
    assert driver.peer.resumed
    assert driver.peer.send(frame())


def test_long_frames_take_several_buffers_and_leave_to_be_taken() -> None:
    driver = started()
    long = frame(size=5000)
    driver.peer.send(long)
    assert driver.received() == []
    assert driver.read(r.ROC) == 1
    driver.write(r.RCTL, r.RCTL_EN | r.RCTL_LPE | r.RCTL_SECRC)
    driver.peer.send(long)
    parts = driver.received()
    assert [len(data) for data, *_ in parts] == [2048, 2048, 904]
    assert [bool(status & r.RX_EOP) for _, status, *_ in parts] == [False, False, True]
    assert b"".join(data for data, *_ in parts) == long


@pytest.mark.parametrize("damaged", [None, 24, 40])
def test_checksums_are_verified(damaged: int | None) -> None:
    driver = started()
    driver.write(r.RXCSUM, r.RXCSUM_IPOFL | r.RXCSUM_TUOFL)
    source, target = b"\x0a\0\0\1", b"\x0a\0\0\2"
    datagram = p.udp_datagram(source, 1, target, 2, b"some data")
    header = p.ipv4_header(source, target, p.PROTO_UDP, len(datagram), 1)
    packet = bytearray(MAC + OTHER + b"\x08\x00" + header + datagram)
    if damaged is not None:
        packet[damaged] ^= 0xFF
    driver.peer.send(bytes(packet))
    ((_, status, errors, _),) = driver.received()
    assert status == r.RX_DD | r.RX_EOP | r.RX_IPCS | r.RX_TCPCS
    assert errors == {None: 0, 24: r.RX_IPE, 40: r.RX_TCPE}[damaged]


def test_filters() -> None:
    driver = started()
    group = bytes.fromhex("01005e000001")

    def takes(target: bytes, tag: int | None = None) -> bool:
        made = frame(target)
        if tag is not None:
            made = made[:12] + b"\x81\x00" + tag.to_bytes(2, "big") + made[12:]
        driver.give_back()
        driver.peer.send(made)
        return bool(driver.received())

    driver.write(r.VET, 0x8100)
    assert [takes(target) for target in (MAC, BROADCAST, OTHER, group)] == [True, True, False, False]
    place = (group[5] << 8 | group[4]) >> 4 & 0xFFF
    driver.write(r.MTA + 4 * (place >> 5), 1 << (place & 31))
    driver.write(r.RA + 8, int.from_bytes(OTHER[:4], "little"))
    driver.write(r.RA + 12, int.from_bytes(OTHER[4:], "little") | r.RAH_AV)
    assert [takes(target) for target in (OTHER, group)] == [True, True]
    driver.write(r.RCTL, r.RCTL_EN | r.RCTL_UPE | r.RCTL_MPE | r.RCTL_VFE)
    stranger = bytes.fromhex("020000000009")
    assert [takes(stranger), takes(b"\x01" + stranger[1:]), takes(stranger, 5)] == [True, True, False]
    driver.write(r.VFTA, 1 << 5)
    assert [takes(stranger, 5), takes(stranger, 6)] == [True, False]


def test_a_new_address_is_shown() -> None:
    driver = Driver()
    driver.write(r.RA, 0x03020100)
    driver.write(r.RA + 4, 0x0504 | r.RAH_AV)
    assert driver.client.info == "model=e1000,macaddr=00:01:02:03:04:05"
    driver.write(r.CTRL, r.CTRL_RST)
    assert driver.client.info == "model=e1000,macaddr=52:54:00:12:34:56"


def test_statistics_are_cleared_by_reading() -> None:
    driver = started()
    driver.peer.send(frame(BROADCAST, 100))
    assert [driver.read(offset) for offset in (r.TPR, r.BPRC, r.TORL, r.TORL + 4)] == [1, 1, 104, 0]
    assert [driver.read(offset) for offset in (r.TPR, r.BPRC, r.TORL, r.PRC64 + 4)] == [0, 0, 0, 1]


def test_registers_are_found_at_their_old_places() -> None:
    driver = Driver()
    driver.write(0x0110, 0x5000)
    assert driver.read(r.RDBAL) == 0x5000
    assert driver.read(0x0040) == int.from_bytes(MAC[:4], "little")


# ---- On PCI


def test_registers_are_reached_through_the_window_in_io_space() -> None:
    driver = Driver()
    client = NicClient("nic1", "e1000", MAC)
    function = E1000Function("e1000", ManualClock(), driver.memory, client)
    function.window_write(0, 4, r.RDBAL)
    function.window_write(4, 4, 0x7000)
    assert function.window_read(0, 4) == r.RDBAL
    assert function.window_read(4, 4) == function.device.read(r.RDBAL, 4) == 0x7000
    function.window_write(0, 4, 0xFFFFFFFC)
    assert function.window_read(4, 4) == 0
    other = E1000Function("e1000", ManualClock(), driver.memory, NicClient("nic2", "e1000", MAC))
    other.load(function.save())
    assert other.window_read(0, 4) == 0xFFFFFFFC


# ---- State


def test_a_card_goes_on_where_it_was_saved() -> None:
    driver = started()
    driver.write(r.RDTR, 10)
    driver.peer.send(frame())
    driver.legacy(frame(OTHER, 60)[:30], 0)
    driver.kick()
    driver.card.pause()
    state = E1000State.from_dict(driver.card.save().to_dict())
    again = Driver()
    again.memory.write(0, driver.memory.read(0, 1 << 20))
    again.card.load(state)
    again.tail = driver.tail
    again.legacy(frame(OTHER, 60)[30:])
    again.kick()
    assert again.sent() == [frame(OTHER, 60)]
    again.read(r.ICR)
    again.clock.advance(SECOND)
    assert again.read(r.ICR) == r.CAUSE_RXT0
    assert again.read(r.RDH) == 1


def test_a_state_that_cannot_be_is_refused() -> None:
    state = Driver().card.save()
    state.phy = state.phy[:5]
    with pytest.raises(StateError):
        Driver().card.load(state)


def test_a_card_that_is_paused_leaves_memory_alone() -> None:
    driver = started()
    driver.card.pause()
    driver.legacy(frame(OTHER))
    driver.kick()
    assert not driver.peer.send(frame())
    assert driver.sent() == driver.received() == []
    driver.card.resume()
    assert driver.sent() == [frame(OTHER)]
    assert driver.peer.resumed


# ---- Hostile drivers

OFFSETS = st.one_of(st.sampled_from(sorted({*r.PLAIN, r.ICR, r.ICS, r.IMS, r.IMC, r.MDIC, r.EECD, r.EERD, r.TDT})),
                    st.integers(0, 0x1FFFF))  # fmt: skip
VALUES = st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([TX_RING, 256, 4, r.TCTL_EN, r.RCTL_EN | r.RCTL_LPE]))
DESCRIPTORS = st.binary(min_size=16, max_size=16) | st.builds(
    lambda place, length, command, options: struct.pack("<QIBBH", place, length | command << 24, 0, options, 0),
    st.integers(0, 1 << 21),
    st.integers(0, 0x1FFFFF),
    st.integers(0, 0xFF),
    st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(OFFSETS, VALUES, DESCRIPTORS, st.binary(max_size=60)), max_size=20), st.booleans())
def test_no_driver_does_harm(steps: list[tuple[int, int, bytes, bytes]], offloads: bool) -> None:
    driver = started(offloads=offloads)
    for index, (offset, value, descriptor, data) in enumerate(steps):
        driver.memory.write(TX_RING + index % RING_SIZE * 16, descriptor)
        driver.write(offset, value)
        driver.write(r.TDT, index % RING_SIZE)
        driver.peer.send(MAC + OTHER + data)
        driver.read(offset)
        driver.clock.advance(1000)
    driver.card.load(E1000State.from_dict(driver.card.save().to_dict()))
    driver.clock.advance(SECOND)
    driver.peer.take()
    driver.write(r.CTRL, r.CTRL_RST)
    driver.card.phy.reset()
    driver.tail = driver.seen = 0
    driver.start(r.RCTL_EN)
    assert driver.peer.send(frame())
    assert driver.memory.read(BUFFERS, 60) == frame()


@pytest.mark.parametrize(("bits", "reading"), [(25, False), (16, True), (25, True)])
def test_a_command_longer_than_any_is_refused(bits: int, reading: bool) -> None:
    chip = Eeprom([0] * WORDS)
    state = chip.save()
    state.bits, state.reading = bits, reading
    with pytest.raises(StateError, match="more than a command has"):
        chip.load(state)
    state.bits -= 10
    chip.load(state)
