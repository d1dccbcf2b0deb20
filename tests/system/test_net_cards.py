"""Network cards in a machine: models, defaults, coming and going, and what monitors hear of them."""

from __future__ import annotations

from typing import Any

import pytest

from pyvm.commandline import parse_arguments
from pyvm.devices.e1000.function import E1000Function
from pyvm.errors import ConfigError
from tests.system.machine_rig import Machine

INTEL = 0x8086


def cards(machine: Machine) -> list[tuple[int, int, str]]:
    """Return vendor, device and ID of the network cards on the PCI bus."""
    (bus,) = machine.execute("query-pci")
    found = [item for item in bus["devices"] if item["class_info"]["class"] == 0x0200]
    return [(item["id"]["vendor"], item["id"]["device"], item["qdev_id"]) for item in found]


def test_a_card_without_a_model_is_an_intel_card() -> None:
    with Machine("-nic", "user,id=n", "-net", "nic", "-net", "user") as machine:
        assert cards(machine) == [(INTEL, 0x100E, "")] * 2
        shown = machine.execute("human-monitor-command", command_line="info network")
        assert "e1000.0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56" in shown


@pytest.mark.parametrize(
    ("model", "device"),
    [("e1000", 0x100E), ("e1000-82540em", 0x100E), ("e1000-82544gc", 0x1008), ("e1000-82545em", 0x100F)],
)
def test_intel_cards(model: str, device: int) -> None:
    with Machine("-device", f"{model},id=c,mac=52:54:00:00:00:07") as machine:
        assert cards(machine) == [(INTEL, device, "c")]
        assert machine.get("/machine/peripheral/c", "type") == ("e1000" if model == "e1000-82540em" else model)
        found = [item for item in machine.execute("query-pci")[0]["devices"] if item["qdev_id"] == "c"]
        bars = found[0]["regions"]
        assert [(bar["type"], bar["size"]) for bar in bars] == [("memory", 128 << 10), ("io", 64)]
        assert machine.error("query-rx-filter", name="c") == "net client(c) doesn't support rx-filter querying"
        assert machine.execute("query-rx-filter") == []


def test_an_intel_card_comes_and_goes() -> None:
    with Machine("-netdev", "user,id=n") as machine:
        machine.execute("device_add", driver="e1000", id="c", netdev="n")
        assert machine.error("device_add", driver="e1000", id="d", netdev="n").endswith("it's in use")
        assert machine.error("device_add", driver="e1000", id="d", addr="1").startswith("PCI: slot 1 function 0")
        assert "d: index" not in machine.execute("human-monitor-command", command_line="info network")
        machine.execute("device_del", id="c")
        machine.execute("system_reset")
        machine.run()
        assert cards(machine) == []
        assert machine.pc.plugger.plugged.cards == []


def test_an_intel_card_is_stopped_with_the_machine() -> None:
    with Machine("-nic", "user") as machine:
        (card,) = machine.pc.plugger.plugged.cards
        machine.pc.plugger.pause()
        assert card.paused
        machine.pc.plugger.resume()
        assert not card.paused


def test_links_of_intel_cards_are_set() -> None:
    with Machine("-device", "e1000,id=c") as machine:
        found: Any = machine.pc.plugger.plugged.identifiers["c"]
        assert isinstance(found, E1000Function)
        assert found.device.phy.link
        machine.execute("set_link", name="c", up=False)
        assert not found.device.phy.link


@pytest.mark.parametrize(("queues", "pairs"), [("", 1), (",queues=3", 3)])
def test_a_card_has_as_many_pairs_of_queues_as_its_back_end(queues: str, pairs: int) -> None:
    words = f"tap,id=n,script=no,downscript=no{queues}" if queues else "user,id=n"
    try:
        machine = Machine("-netdev", words, "-device", "virtio-net-pci,netdev=n,mq=on")
    except ConfigError as error:
        pytest.skip(str(error))
    with machine:
        (card,) = machine.pc.plugger.plugged.virtio
        assert len(card.queues) == 2 * pairs + 1
        assert card.config_read(8, 2) == pairs
        assert machine.get("/machine/peripheral-anon/device[0]", "vectors") == 2 * pairs + 2


@pytest.mark.parametrize("name", ["rss", "hash", "failover", "guest_rsc_ext"])
def test_what_virtio_cards_lack_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=on is not supported by pyvm yet"):
        Machine("-device", f"virtio-net-pci,{name}=on")


@pytest.mark.parametrize("words", ["user,model=e1000e", "user,model=rtl8139"])
def test_other_models_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="Unsupported NIC model"):
        parse_arguments(["-nic", words])
