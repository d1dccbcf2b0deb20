"""Debian's kernel for real hardware: more drivers, more initcalls, another configuration of the same machine."""

from __future__ import annotations

import pytest

from images.build import Image
from tests.guest.conftest import GuestFactory
from tests.guest.support import complaints


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_it_boots_and_its_agent_answers(boot: GuestFactory, generic: Image, cpus: int) -> None:
    vm = boot(smp=cpus, image=generic, device=["virtio-rng-pci", "virtio-balloon-pci"])
    assert vm.run("uname -r").text == generic.release
    assert "cloud" not in generic.release
    assert vm.run("nproc").text == str(cpus)
    assert vm.agent.get_osinfo().kernel_release == generic.release
    assert complaints(vm.run("dmesg").text) == []
    drivers = vm.run("cd /sys/bus/virtio/devices; for d in *; do basename $(readlink $d/driver); done").text
    assert sorted(drivers.split()) == ["virtio_balloon", "virtio_console", "virtio_rng"]
    vm.agent.shutdown()
    assert vm.wait_event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-shutdown"}
    vm.wait()
